"""The processor wrapper shows the original's signature, keeps nothing of its own, and counts attention calls."""

import inspect

import pytest
import torch
from helpers import BY_NAME, ON_EACH
from torch import nn

from fastdit import DyDiT, TokenMerging, accelerate
from fastdit.attention.processor import wrap
from fastdit.models.base import family_of


@ON_EACH
def test_hosts_see_the_originals_signature(tiny):
    pipe = tiny.make()
    attentions = family_of(pipe.transformer).attentions(pipe.transformer)
    originals = [module.processor for _, module in attentions]
    with accelerate(pipe, [TokenMerging()]):
        for (_, module), original in zip(attentions, originals, strict=True):
            assert module.processor is not original and module.processor.original is original
            assert inspect.signature(module.processor.__call__) == inspect.signature(original.__call__)
    assert [module.processor for _, module in attentions] == originals


@pytest.mark.parametrize("name", ["_attention_backend", "_parallel_config"])
def test_backend_and_parallel_config_live_on_the_original(name):
    original = BY_NAME["wan"].make().transformer.blocks[0].attn1.processor
    wrapper = wrap(original, None)
    assert getattr(wrapper, name) is getattr(original, name)
    mark = object()
    setattr(wrapper, name, mark)
    assert getattr(original, name) is mark and name not in vars(wrapper)


@pytest.mark.parametrize(
    "method, reason",
    [(TokenMerging(), "so tokens cannot be matched"), (DyDiT(route="tokens", capacity=0.5), "and routers and token")],
)
def test_token_methods_are_refused_under_context_parallelism(method, reason):
    tiny = BY_NAME["wan"]
    pipe = tiny.make()
    with accelerate(pipe, [method]):
        pipe.transformer.blocks[0].attn1.processor._parallel_config = object()
        with pytest.raises(
            RuntimeError, match=f"{method.name} cannot run under context parallelism: .*sequence, {reason}"
        ):
            tiny.call(pipe)
        pipe.transformer.blocks[0].attn1.processor._parallel_config = None
        assert tiny.call(pipe).isfinite().all()


@pytest.mark.parametrize("calls", [0, 2])
def test_another_number_of_attention_calls_is_one_error_naming_the_backend(calls):
    class Odd:
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
            x = hidden_states[:, None]
            for _ in range(calls):
                x = nn.functional.scaled_dot_product_attention(x, x, x)
            return x[:, 0]

    tiny = BY_NAME["pixart_alpha"]
    pipe = tiny.make()
    pipe.transformer.transformer_blocks[0].attn1.processor = Odd()
    with (
        accelerate(pipe, [TokenMerging(tokens="kv")]),
        pytest.raises(RuntimeError, match=rf"Odd with attention backend native made {calls} .* where one is expected"),
    ):
        tiny.call(pipe)


def test_processors_with_weights_are_refused():
    class Adapter(nn.Module):
        def forward(self, attn, hidden_states):
            return hidden_states

    with pytest.raises(ValueError, match=r"Adapter holds weights .*unload the adapter"):
        wrap(Adapter(), None)


def test_a_mask_over_the_picture_itself_is_refused():
    pipe = BY_NAME["pixart_alpha"].make()
    block = pipe.transformer.transformer_blocks[0]
    block.register_forward_pre_hook(
        lambda m, args, kwargs: (args, {**kwargs, "attention_mask": torch.zeros(2, 1, 64)}), with_kwargs=True
    )
    with accelerate(pipe, [TokenMerging()]), pytest.raises(ValueError, match=r"attention_mask .* leave it out"):
        BY_NAME["pixart_alpha"].call(pipe)
