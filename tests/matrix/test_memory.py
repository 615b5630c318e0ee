"""Layerwise casting, CPU offload and group offload: accelerated output with the feature equals that without it."""

import pytest
import torch
from diffusers.hooks import apply_group_offloading
from helpers import assert_close, home, pairs, settings_in_forwards

from fastdit import accelerate

SETTINGS = pytest.mark.parametrize("setting", settings_in_forwards(), ids=str)
MODELS = ["pixart_alpha", "wan22_a14b", "hunyuan_video", "flux"]
ON_MODELS = pytest.mark.parametrize(("tiny", "setting"), pairs(settings_in_forwards(), MODELS))


def ran(handle) -> bool:
    return all(m.calls and m.density < 1 for m in handle.report.methods.values())


@ON_MODELS
@pytest.mark.parametrize("storage", [torch.float8_e4m3fn, torch.bfloat16], ids=["float8", "bfloat16"])
def test_layerwise_casting(tiny, setting, storage):
    if storage is torch.bfloat16 and tiny.name != "pixart_alpha":
        pytest.skip("the same path as float8, which is tried on all")

    def cast(pipe):
        for transformer in filter(None, (pipe.transformer, getattr(pipe, "transformer_2", None))):
            transformer.enable_layerwise_casting(storage_dtype=storage, compute_dtype=torch.float32)
        return pipe

    outputs = []
    for cast_first in (True, False):
        pipe = tiny.make()
        if cast_first:
            cast(pipe)
        with accelerate(pipe, [setting.method]) as handle:
            if not cast_first:
                cast(pipe)
            outputs.append(tiny.call(pipe, steps=2))
            assert ran(handle)
    # the expected output: the same rounded weights, without any hook
    pipe = tiny.make()
    rounded = cast(tiny.make())
    for part in ("transformer", "transformer_2"):
        if getattr(pipe, part, None) is not None:
            state = {k: v.float() for k, v in getattr(rounded, part).state_dict().items()}
            getattr(pipe, part).load_state_dict(state)
    with accelerate(pipe, [setting.method]) as handle:
        expected = tiny.call(pipe, steps=2)
        assert ran(handle)
    assert_close(outputs[0], expected)
    assert torch.equal(outputs[0], outputs[1])


@ON_MODELS
@pytest.mark.parametrize("attach_first", [True, False], ids=["attached-before", "attached-after"])
def test_model_cpu_offload(tiny, setting, attach_first):
    pipe = tiny.make()
    with accelerate(pipe, [setting.method]):
        expected = tiny.call(pipe, steps=2)
    dense = tiny.call(pipe, steps=2)
    if not attach_first:
        pipe.enable_model_cpu_offload(device="cpu")
    with accelerate(pipe, [setting.method]) as handle:
        if attach_first:
            pipe.enable_model_cpu_offload(device="cpu")
        assert torch.equal(tiny.call(pipe, steps=2), expected) and ran(handle)
        assert torch.equal(tiny.call(pipe, steps=2), expected)
    assert torch.equal(tiny.call(pipe, steps=2), dense), "offload broke when the method went"
    pipe.remove_all_hooks()
    assert torch.equal(tiny.call(pipe, steps=2), dense)


def group_offload(module):
    onload = offload = torch.device("cpu")
    apply_group_offloading(module, onload, offload, offload_type="block_level", num_blocks_per_group=1)


@ON_MODELS
def test_group_offload_before_attaching(tiny, setting):
    pipe = tiny.make()
    with accelerate(pipe, [setting.method]):
        expected = tiny.call(pipe, steps=2)
    dense = tiny.call(pipe, steps=2)
    for transformer in filter(None, (pipe.transformer, getattr(pipe, "transformer_2", None))):
        group_offload(transformer)
    with accelerate(pipe, [setting.method]) as handle:
        assert torch.equal(tiny.call(pipe, steps=2), expected) and ran(handle)
    assert torch.equal(tiny.call(pipe, steps=2), dense)


@SETTINGS
def test_group_offload_after_attaching_works_or_says_what_to_do(setting):
    """diffusers' hooks replace the blocks' forward, over ours: set_methods puts them in order again."""
    tiny = home(setting, "wan", "pixart_alpha")
    pipe = tiny.make()
    handle = accelerate(pipe, [setting.method])
    expected = tiny.call(pipe, steps=2)
    group_offload(pipe.transformer)
    try:
        assert torch.equal(tiny.call(pipe, steps=2), expected)
    except RuntimeError as error:
        assert "call set_methods(...) again" in str(error)
        with pytest.warns(UserWarning, match="it stays"):
            pipe.set_methods([setting.method])
        assert_close(tiny.call(pipe, steps=2), expected)
        assert ran(handle)
        with pipe.dense():
            assert torch.equal(tiny.call(pipe, steps=2), tiny.call(tiny.make(), steps=2))
