"""`guidance_channels`: which forwards are two halves of one guidance, and which half of them has the condition."""

import contextlib

import pytest
import torch
from helpers import BY_NAME

from fastdit import DyDiT, FlexDiT, accelerate
from fastdit.models.base import family_of, load_families

METHODS = {
    "flexdit": FlexDiT(pooling=0, modules=0, guidance_channels=3),
    "dydit": DyDiT(route="tokens", capacity=1.0, guidance_channels=3),
}
CONDITIONAL = {"dit": 0, "pixart_alpha": 1}


@contextlib.contextmanager
def outputs_of(transformer):
    """What every forward puts out in its end."""
    seen = []
    handle = transformer.register_forward_hook(lambda module, args, output: seen.append(output[0].clone()))
    try:
        yield seen
    finally:
        handle.remove()


@contextlib.contextmanager
def guided_by_hand(transformer, conditional, scale):
    """Guidance made channel by channel, each half put out so that the pipeline's own formula changes nothing."""

    def guide(module, args, output):
        halves = output[0].chunk(2)
        condition, other = halves[conditional], halves[1 - conditional]
        result = condition.clone()
        for channel in range(3):
            result[:, channel] = other[:, channel] + scale * (condition[:, channel] - other[:, channel])
        both = torch.cat([result, result])
        return (both,) if isinstance(output, tuple) else type(output)(sample=both)

    handle = transformer.register_forward_hook(guide)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("name", CONDITIONAL)
def test_the_picture_is_that_of_guiding_by_hand(name, method):
    tiny = BY_NAME[name]
    pipe = tiny.make()
    plain = tiny.call(pipe, batch=2)
    with guided_by_hand(pipe.transformer, CONDITIONAL[name], 4.0):
        expected = tiny.call(pipe, batch=2)
    with accelerate(pipe, [method]), outputs_of(pipe.transformer) as seen:
        found = tiny.call(pipe, batch=2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - plain).abs().max() > 0.01
    for prediction in seen:
        first, second = prediction.chunk(2)
        assert torch.equal(first[:, 3:], second[:, 3:]) and not torch.equal(first[:, :3], second[:, :3])


@torch.no_grad()
@pytest.mark.parametrize("labels", [[3, 7], [1000, 1000], [1000, 3], [3, 7, 1000, 7]], ids=str)
def test_classes_without_guidance_are_left_alone(labels):
    transformer = BY_NAME["dit"].make().transformer
    inputs = {
        "hidden_states": torch.randn(len(labels), 4, 16, 16, generator=torch.Generator().manual_seed(0)),
        "timestep": torch.full((len(labels),), 500),
        "class_labels": torch.tensor(labels),
    }
    expected = transformer(**inputs).sample
    with accelerate(transformer, [METHODS["flexdit"]]):
        assert torch.equal(transformer(**inputs).sample, expected)
        inputs["class_labels"] = torch.tensor([3] * (len(labels) // 2) + [1000] * (len(labels) // 2))
        first, second = transformer(**inputs).sample.chunk(2)
        assert torch.equal(first[:, 3:], second[:, 3:])


def test_a_family_without_both_halves_in_one_batch_is_refused():
    for name in ("wan", "hunyuan_video", "flux"):
        with pytest.raises(ValueError, match="both halves of the guidance in one batch"):
            accelerate(BY_NAME[name].make(), [DyDiT(route="tokens", capacity=0.5, guidance_channels=3)])
    offering = {name for name, family in load_families().items() if "batched_guidance" in family.offers}
    assert offering == {"dit", "pixart"}


def test_which_forward_is_guided_is_only_found_out_where_a_method_asks(monkeypatch):
    tiny = BY_NAME["dit"]
    pipe = tiny.make()
    asked = []
    object.__setattr__(family := family_of(pipe.transformer), "guided", monkey := family.guided)
    monkeypatch.setitem(vars(family), "guided", lambda *given: asked.append(given) or monkey(*given))
    with accelerate(pipe, [FlexDiT(pooling=1, modules=0)]):
        tiny.call(pipe)
    assert not asked
    with accelerate(pipe, [METHODS["flexdit"]]):
        tiny.call(pipe)
    assert len(asked) == 3 and all(given[0] is pipe.transformer for given in asked)
