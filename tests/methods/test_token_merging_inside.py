"""TokenMerging inside the models: text stays, rotary rows follow their tokens, and so does per-token modulation."""

import inspect
from dataclasses import replace

import pytest
import torch
from helpers import BY_NAME, assert_close
from tiny import make_hunyuan, noise, wan_transformer
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fastdit import TokenMerging, accelerate
from fastdit.methods.token_merging.block import MergedBlock


class SpyOnAttention(TorchFunctionMode):
    """(queries, keys) of every attention call, beneath whatever fastdit puts there; counting on meta stays apart."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            bound = dict(zip(("query", "key"), args, strict=False)) | (kwargs or {})
            self.seen.add((bound["query"].shape[-2], bound["key"].shape[-2]))
        return func(*args, **(kwargs or {}))


def attention_calls(name, *methods):
    tiny = BY_NAME[name]
    pipe = tiny.make()
    with accelerate(pipe, list(methods)), SpyOnAttention() as spy:
        tiny.call(pipe, steps=2)
    return spy.seen


@pytest.mark.parametrize(
    ("name", "tokens", "texts"),
    [("hunyuan_video", 192, {6}), ("flux", 64, {5}), ("mochi", 192, {5, 7}), ("pixart_alpha", 64, {0})],
)
def test_text_is_never_reduced(name, tokens, texts):
    """Key length = kept tokens + text. (Mochi leaves padded text out; its unconditional pass has all of it.)"""

    def self_attention(calls):
        return {pair for pair in calls if pair[0] > 40 and pair[1] > 40}

    assert self_attention(attention_calls(name)) == {(tokens + text, tokens + text) for text in texts}
    kept = round(0.75 * tokens)
    merged = self_attention(attention_calls(name, TokenMerging(density=0.75)))
    assert merged == {(kept + text, kept + text) for text in texts}


@pytest.mark.parametrize(("side", "expected"), [("q", (37, 69)), ("kv", (69, 37)), ("both", (37, 37))])
def test_one_side_only(side, expected):
    assert attention_calls("flux", TokenMerging(tokens=side)) == {expected}


def wan_angles(t, y, x, dim=16, theta=10000.0):
    """Wan's rotary angles at a (fractional) position, from the formula: width and height get 2 (d // 6) each."""
    height = width = 2 * (dim // 6)
    parts = []
    for position, size in ((t, dim - height - width), (y, height), (x, width)):
        frequency = theta ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
        parts.append((position * frequency).repeat_interleave(2))
    return torch.cat(parts)


@pytest.mark.parametrize("scope", ["attention", "block"])
def test_merged_tokens_get_the_rotary_values_of_their_mean_position(scope):
    """Pooled in 2 x 2 windows, a merged token sits at (t, 2 i + 1/2, 2 j + 1/2)."""
    tiny = BY_NAME["wan"]
    pipe, seen = tiny.make(), []
    with accelerate(pipe, [TokenMerging(density=0.25, reducer="pool", scope=scope)]):
        processor = pipe.transformer.blocks[1].attn1.processor
        inner = processor.original if scope == "attention" else processor
        cls = type(inner)
        with pytest.MonkeyPatch.context() as patch:
            original = cls.__call__

            def spy(self, attn, hidden_states, *args, **kwargs):
                rotary = kwargs.get("rotary_emb", args[2] if len(args) > 2 else None)
                if rotary is not None and not hidden_states.is_meta:
                    seen.append((hidden_states.shape[1], rotary))
                return original(self, attn, hidden_states, *args, **kwargs)

            spy.__signature__ = inspect.signature(original)
            patch.setattr(cls, "__call__", spy)
            tiny.call(pipe, steps=1)
    expected = torch.stack(
        [wan_angles(t, 2 * i + 0.5, 2 * j + 0.5) for t in range(3) for i in range(4) for j in range(4)]
    )
    assert seen
    for rows, (cos, sin) in seen:
        assert rows == 48 and cos.shape == (1, 48, 1, 16)
        assert torch.allclose(cos[0, :, 0].double(), expected.cos(), atol=1e-6)
        assert torch.allclose(sin[0, :, 0].double(), expected.sin(), atol=1e-6)


def merged_block_io(pipe, tiny, method):
    """(hidden in, hidden out, match) of the merged blocks of a run."""
    seen, restore = [], MergedBlock.restore

    def spy(self, result, hidden, reduced, match):
        out = restore(self, result, hidden, reduced, match)
        if not hidden.is_meta:
            whole = out if torch.is_tensor(out) else out[self.group.output]
            seen.append((hidden, whole, reduced, match.reduction))
        return out

    with pytest.MonkeyPatch.context() as patch, accelerate(pipe, [method]):
        patch.setattr(MergedBlock, "restore", spy)
        tiny.call(pipe, steps=2)
    return seen


@pytest.mark.parametrize("name", ["pixart_alpha", "wan", "hunyuan_video", "flux"])
def test_a_pruned_row_passes_a_block_unchanged(name):
    tiny = BY_NAME[name]
    for hidden, out, _, reduction in merged_block_io(tiny.make(), tiny, TokenMerging(scope="block", reducer="prune")):
        dropped = reduction.dropped.expand(len(hidden), -1)
        assert dropped.float().mean() == 0.5
        assert torch.equal(out[dropped], hidden[dropped])
        assert not (out[~dropped] == hidden[~dropped]).all(-1).any()


def test_a_merged_row_keeps_what_sets_it_apart():
    """The residual stream keeps every token: rows of one group differ by as much after a block as before it."""
    tiny = BY_NAME["wan"]
    for hidden, out, _, reduction in merged_block_io(tiny.make(), tiny, TokenMerging(scope="block")):
        change = out - hidden
        first = reduction.restore(reduction.reduce(change))
        assert torch.allclose(change, first, atol=1e-5)
        assert (hidden - reduction.restore(reduction.reduce(hidden))).abs().max() > 1e-3


@pytest.mark.parametrize("scope", ["attention", "block"])
def test_per_token_modulation_follows_its_tokens(scope):
    """TI2V with equal timesteps for all tokens is plain Wan; with unequal ones every kept row keeps its own."""
    plain, per_token = BY_NAME["wan"], BY_NAME["wan22_ti2v"]
    method = TokenMerging(scope=scope, reducer="prune")
    outputs = []
    for tiny in (plain, per_token):
        pipe = tiny.make()
        with accelerate(pipe, [method]):
            outputs.append(tiny.call(pipe, batch=2))
    assert_close(outputs[0], outputs[1])

    transformer, seen = wan_transformer(), []
    timestep = torch.arange(48.0)[None].repeat(1, 1) * 20  # (1, N): every token its own
    with accelerate(transformer, [method]):
        block = transformer.blocks[0]
        block.norm1.register_forward_hook(lambda m, args, out: seen.append(args[0]))
        for step in (timestep, timestep.flip(1)):
            transformer(noise(1, 4, 3, 8, 8), step, noise(1, 6, 24, seed=1), return_dict=False)
    assert [x.shape[1] for x in seen] == [24 if scope == "block" else 48] * 2


def test_a_replaced_first_frame_is_never_merged_with_others():
    """HunyuanVideo I2V by token_replace: its first frame has a modulation of its own."""
    pipe = make_hunyuan("token_replace")
    transformer = pipe.transformer
    inputs = {
        "hidden_states": noise(2, 4, 3, 16, 16),
        "timestep": torch.tensor([500.0, 500.0]),
        "encoder_hidden_states": noise(2, 6, 24, seed=1),
        "encoder_attention_mask": torch.ones(2, 6, dtype=torch.bool),
        "pooled_projections": noise(2, 12, seed=2),
        "return_dict": False,
    }
    (dense,) = transformer(**inputs)
    with accelerate(transformer, [TokenMerging(density=1, scope="block")]):
        assert torch.equal(transformer(**inputs)[0], dense)
    for reducer in ("bipartite", "pool", "prune"):
        lengths, restore = [], MergedBlock.restore

        def spy(self, result, hidden, reduced, match, lengths=lengths, restore=restore):
            if not hidden.is_meta:
                assert torch.equal(reduced[:, :64], hidden[:, :64])
                lengths.append((reduced.shape[1], match.reduction.rows, match.reduction.length))
            return restore(self, result, hidden, reduced, match)

        with (
            pytest.MonkeyPatch.context() as patch,
            accelerate(transformer, [TokenMerging(scope="block", reducer=reducer)]),
        ):
            patch.setattr(MergedBlock, "restore", spy)
            (out,) = transformer(**inputs)
            single = transformer(**{k: v[:1] if torch.is_tensor(v) else v for k, v in inputs.items()})[0]
        assert out.isfinite().all() and not torch.equal(out, dense)
        assert set(lengths) == {(64 + 64, 128, 64)}  # one whole frame, and half of the other two
        assert_close(single, out[:1], 2e-5)
    assert torch.equal(transformer(**inputs)[0], dense)


@pytest.mark.parametrize("method", [TokenMerging(), TokenMerging(scope="block"), TokenMerging(tokens="kv")], ids=str)
def test_wan_image_to_video(method):
    """Wan 2.1 I2V: image embeddings beside the text, and a conditioned latent with more channels."""
    transformer = wan_transformer(in_channels=12, image_dim=20, added_kv_proj_dim=32)
    inputs = {
        "hidden_states": noise(2, 12, 3, 16, 16),
        "timestep": torch.tensor([700.0, 700.0]),
        "encoder_hidden_states": noise(2, 512, 24, seed=1),  # Wan's processor takes what is before 512 for the image
        "encoder_hidden_states_image": noise(2, 9, 20, seed=2),
        "return_dict": False,
    }
    (dense,) = transformer(**inputs)
    with accelerate(transformer, [replace(method, density=1)]):
        assert torch.equal(transformer(**inputs)[0], dense)
    with accelerate(transformer, [method]) as handle:
        (out,) = transformer(**inputs)
        (other,) = transformer(**{**inputs, "encoder_hidden_states_image": noise(2, 9, 20, seed=3)})
    assert out.shape == dense.shape and out.isfinite().all() and not torch.equal(out, dense)
    assert not torch.equal(out, other), "the image does not reach the output"
    assert handle.report.macs_executed < handle.report.macs_dense
    assert torch.equal(transformer(**inputs)[0], dense)


@pytest.mark.parametrize("scope", ["attention", "block"])
def test_hunyuan_image_to_video_by_latent_concatenation(scope):
    pipe = make_hunyuan("latent_concat")
    inputs = {
        "hidden_states": noise(1, 9, 3, 16, 16),  # latents, those of the image, and the mask of its frame
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": noise(1, 6, 24, seed=1),
        "encoder_attention_mask": torch.ones(1, 6, dtype=torch.bool),
        "pooled_projections": noise(1, 12, seed=2),
        "return_dict": False,
    }
    (dense,) = pipe.transformer(**inputs)
    with accelerate(pipe, [TokenMerging(scope=scope)]) as handle:
        (out,) = pipe.transformer(**inputs)
        assert handle.report.macs_executed < handle.report.macs_dense
    assert out.isfinite().all() and not torch.equal(out, dense)
