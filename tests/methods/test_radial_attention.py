"""RadialAttention in real pipelines: which steps and layers are sparse, what they compute, and what is refused."""

from dataclasses import replace

import pytest
import torch
from helpers import BY_NAME, NothingAccelerated, assert_close, counted, dense_output
from torch.nn import functional as F

from fastdit import RadialAttention, TokenMerging, accelerate
from fastdit.attention.backends import sdpa
from fastdit.attention.backends.base import BACKENDS
from fastdit.attention.kernel import SparseKernel
from fastdit.core.layout import TokenLayout
from fastdit.methods.radial_attention.mask import geometry_of
from fastdit.methods.radial_attention.method import RadialRuntime
from fastdit.methods.radial_attention.recall import by_layer, probe
from fastdit.methods.runtime import Host
from fastdit.models.base import family_of
from fastdit.ops.radial_mask import radial_block_mask
from fastdit.ops.tile_order import tile_block_mask, tile_order
from fastdit.pipelines.recipes import Recipe, shipped

ALWAYS = RadialAttention(decay=0.2, dense_share=0, dense_layers=0)


def densities(report, name="radial_attention"):
    return [row.density[name] for row in report.rows]


@pytest.fixture(autouse=True)
def tiles(monkeypatch):
    """Tiny sequences take the way of long ones."""
    monkeypatch.setattr(sdpa, "SHORT_SEQUENCE", 0)


@pytest.mark.parametrize("order", ["raster", "tile"])
@pytest.mark.parametrize("name", ["wan", "wan22_ti2v", "hunyuan_video", "hunyuan_i2v_concat"])
def test_equals_the_host_with_a_mask_of_tokens(name, order, monkeypatch):
    """The whole pipeline against one whose attention is dense under the mask written out token by token."""
    tiny = BY_NAME[name]
    pipe = tiny.make()
    blocks = radial_block_mask(3, 64, block_size=16, unit=16, decay=0.2)
    place = torch.arange(3 * 64)
    if order == "tile":
        blocks = tile_block_mask(3, 8, 8, block_size=16, kept=int(blocks.sum()))
        place[tile_order(3, 8, 8, 16)] = torch.arange(3 * 64)

    def written_out(self, query, key, value, attn_mask=None, **_):
        if query.is_meta:
            return torch.empty_like(query)
        mask = torch.ones(query.shape[2], query.shape[2], dtype=torch.bool)  # all text
        mask[: 3 * 64, : 3 * 64] = blocks[place[:, None] // 16, place // 16]
        mask = mask if attn_mask is None else mask & attn_mask
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    with accelerate(pipe, [replace(ALWAYS, token_order=order)]):
        out = tiny.call(pipe, batch=2)
        with monkeypatch.context() as patch:
            patch.setattr(SparseKernel, "__call__", written_out)
            expected = tiny.call(pipe, batch=2)
    assert_close(out, expected)


@pytest.mark.parametrize(
    ("method", "steps", "sparse"),
    [
        (RadialAttention(), 50, range(12, 50)),  # the published warm-up: 12 of 50
        (RadialAttention(), 8, range(2, 8)),
        (RadialAttention(), 4, range(1, 4)),
        (RadialAttention(), 2, range(1, 2)),  # one at least
        (RadialAttention(dense_share=0.275), 40, range(11, 40)),
        (RadialAttention(dense_steps=0), 6, range(6)),
        (RadialAttention(dense_steps=2, dense_end=1), 6, range(2, 5)),
        (RadialAttention(dense_share=1), 6, range(0)),
    ],
)
def test_dense_steps(method, steps, sparse):
    runtime = bound(method)
    assert [i for i in range(steps) if runtime.sparse_at(i, steps, 0.5)] == list(sparse)


def bound(method, name="wan"):
    transformer = BY_NAME[name].make().transformer
    return RadialRuntime(method, Host("transformer", transformer, family_of(transformer)))


def test_steps_and_layers_of_a_run(monkeypatch):
    tiny = BY_NAME["wan"]
    pipe = tiny.make()
    method = RadialAttention(decay=0.2, dense_share=0.4)
    with counted(monkeypatch, SparseKernel, "__call__") as calls, accelerate(pipe, [method]) as handle:
        tiny.call(pipe, steps=5)
    real = [args for args, _ in calls if args and not args[0].mask.is_meta]
    found = densities(handle.report)
    assert found[:2] == [1, 1] and max(found[2:]) < 1
    method = handle.report.methods["radial_attention"]
    assert method.layers == 1 and method.calls == handle.report.evaluations == 10
    assert len(real) >= 6  # one of two layers, two passes in three steps, and what was counted on the meta device
    assert method.backend == "sdpa (sparse)"
    assert "blocks of 16, unit 16 for frames of 64 tokens" in method.note and method.note in str(handle.report)


def test_two_experts_share_one_count_of_steps():
    """Wan 2.2 changes transformers after the first step; the second does not begin dense again."""
    tiny = BY_NAME["wan22_a14b"]
    pipe = tiny.make()
    with accelerate(pipe, [RadialAttention(decay=0.2, dense_share=0.4, dense_layers=0)]) as handle:
        tiny.call(pipe, steps=5)
    found = densities(handle.report)
    assert found[:2] == [1, 1] and max(found[2:]) < 1
    assert {"radial_attention", "radial_attention (transformer_2)"} == set(handle.report.methods)


def test_outside_a_run_the_share_becomes_noise():
    runtime = bound(RadialAttention(dense_share=0.24))
    shift = runtime.host.family.flow_shift
    edge = shift * 0.76 / (1 + (shift - 1) * 0.76)
    assert not runtime.sparse_at(-1, 0, edge + 1e-6) and runtime.sparse_at(-1, 0, edge - 1e-6)
    for method in (RadialAttention(dense_steps=3), RadialAttention(dense_end=1)):
        with pytest.raises(ValueError, match=r"dense_steps and dense_end.*outside.*dense_share"):
            bound(method).sparse_at(-1, 0, 0.5)


def test_padded_text_changes_nothing():
    tiny = BY_NAME["hunyuan_video"]
    pipe = tiny.make()
    arguments = tiny.arguments(pipe, 2, 16)
    with accelerate(pipe, [ALWAYS]):
        before = tiny.call(pipe, batch=2, sample=1)
        arguments["prompt_embeds"][1, 4:] = 1e3  # where the mask is False
        assert not arguments["prompt_attention_mask"][1, 4:].any()
        changed = replace(tiny, arguments=lambda *_: arguments)
        assert torch.equal(changed.call(pipe, batch=2, sample=1), before)


def test_merging_at_high_noise_and_sparse_attention_after_it():
    tiny = BY_NAME["wan"]
    pipe = tiny.make()
    merging = TokenMerging(noise=(0.8, 1))
    with accelerate(pipe, [ALWAYS, merging]) as handle:
        both = tiny.call(pipe, steps=6)
    report = handle.report
    merged, sparse = densities(report, "token_merging"), densities(report)
    assert all((m < 1) != (s < 1) for m, s in zip(merged, sparse, strict=True)), (merged, sparse)
    assert min(merged) < 1 and min(sparse) < 1
    for alone in (ALWAYS, merging):
        with accelerate(pipe, [alone]) as other:
            assert not torch.equal(tiny.call(pipe, steps=6), both)
        assert other.report.macs_executed > report.macs_executed


def test_merging_some_layers_leaves_the_others_sparse():
    tiny = BY_NAME["wan"]
    pipe = tiny.make()
    for scope in ("attention", "block"):
        with accelerate(pipe, [ALWAYS, TokenMerging(layers=(0.5, 1), scope=scope)]) as handle:
            tiny.call(pipe, steps=2)
        alone = bound(ALWAYS)
        density = alone.kernel(geometry_of(ALWAYS, TokenLayout(3, 8, 8))).density
        assert densities(handle.report) == [pytest.approx((1 + density) / 2)] * 2


@pytest.mark.parametrize("frames", [1, 2])
def test_short_videos_are_dense_and_say_so(frames):
    tiny = BY_NAME["wan"]
    pipe = tiny.make()
    latents = tiny.arguments(pipe, 1, 16)["latents"][:, :, :frames]
    short = replace(tiny, arguments=lambda *a: {**tiny.arguments(*a), "latents": latents})
    dense = short.call(pipe)
    with accelerate(pipe, [ALWAYS]), pytest.raises(NothingAccelerated, match=f"keeps all pairs of {frames} frames"):
        short.call(pipe)
    with accelerate(pipe, [ALWAYS, TokenMerging(noise=(0, 0.5))]) as handle:  # one of them acts: a note, no error
        assert not torch.equal(short.call(pipe, steps=6), dense)
    assert any("keeps all pairs" in text for text in handle.report.warnings)


def test_what_is_refused_before_any_work():
    tiny = BY_NAME["wan"]
    pipe = tiny.make()
    with pytest.raises(ValueError, match="dense_layers=2 leaves no layer"):
        accelerate(pipe, [RadialAttention(dense_layers=2)])
    with pytest.raises(ValueError, match="backend='flashinfer' needs flashinfer"):
        accelerate(pipe, [RadialAttention(backend="flashinfer")])
    refusals = {
        "block_size=500 is larger than the sequence": RadialAttention(block_size=500, dense_layers=0),
        "cuts frames of 64 tokens off": RadialAttention(block_size=128, dense_layers=0),
    }
    latents = torch.randn(1, 4, 9, 16, 16)
    longer = replace(tiny, arguments=lambda *a: {**tiny.arguments(*a), "latents": latents})
    for message, method in refusals.items():
        with accelerate(pipe, [method]) as handle:
            with pytest.raises(ValueError, match=message):
                (longer if "cuts" in message else tiny).call(pipe)
            assert handle.report.evaluations == 0
    with accelerate(pipe, [RadialAttention(dense_steps=3)]) as handle, pytest.raises(NothingAccelerated, match="all 3"):
        tiny.call(pipe)
    assert torch.equal(tiny.call(pipe), dense_output("wan"))


def test_a_backend_of_another_device_is_refused_in_the_first_dense_step(monkeypatch):
    tiny = BY_NAME["wan"]
    pipe = tiny.make()
    there = replace(BACKENDS["flashinfer"], missing=lambda: None)
    monkeypatch.setitem(BACKENDS._items, "flashinfer", there)
    with accelerate(pipe, [RadialAttention(backend="flashinfer", dense_share=0.5)]) as handle:
        with pytest.raises(ValueError, match=r"flashinfer.*runs on CUDA and the tensors are on cpu"):
            tiny.call(pipe, steps=4)
        assert handle.report.evaluations == 0


def test_dense_calls_by_another_backend():
    """xFormers loads on CUDA only: its place is taken by a portable one here."""
    tiny = BY_NAME["hunyuan_video"]
    pipe, dense = tiny.make(), dense_output("hunyuan_video", batch=2)
    with pytest.raises(ValueError, match="dense_backend='xformers' needs xformers"):
        accelerate(pipe, [RadialAttention(dense_backend="xformers", dense_layers=0)])
    with accelerate(pipe, [RadialAttention(dense_share=1, dense_layers=0, dense_backend="sdpa")]):
        assert_close(tiny.call(pipe, batch=2), dense)
    with accelerate(pipe, [replace(ALWAYS, dense_steps=2, dense_backend="sdpa")]) as handle:
        out = tiny.call(pipe, batch=2, steps=3)
    assert "dense calls by sdpa" in handle.report.methods["radial_attention"].note
    with accelerate(pipe, [replace(ALWAYS, dense_steps=2)]):
        assert_close(out, tiny.call(pipe, batch=2, steps=3))
    assert not torch.equal(out, dense)


def test_runs_that_gain_little_say_so():
    tiny = BY_NAME["wan"]
    pipe = tiny.make()
    with accelerate(pipe, [RadialAttention(decay=0.2, dense_share=0.7)]) as handle:
        tiny.call(pipe, steps=4)
    assert [text.split(":")[0] for text in handle.report.warnings] == ["radial_attention"] * 2
    assert "only 1 of 4 steps" in handle.report.warnings[1] and "192 tokens are few" in handle.report.warnings[0]


def test_published_recipes_load_by_name_and_say_what_they_are():
    assert {"radial-wan2.1-14b-720p", "radial-wan2.2-a14b", "radial-hunyuan-video"} < set(shipped())
    for name in (name for name in shipped() if name.startswith("radial-")):
        recipe = Recipe.load(name)
        assert "not re-measured" in recipe.note and len(recipe.methods) == 1
    steps = {"radial-wan2.1-14b-720p": 12, "radial-wan2.2-a14b": 11, "radial-hunyuan-video": 12}
    for name, dense in steps.items():
        recipe = Recipe.load(name)
        assert round(recipe.methods[0].dense_share * recipe.call["num_inference_steps"]) == dense
    with pytest.raises(ValueError, match=r"recipe radial-wan3 does not exist.*radial-hunyuan-video"):
        Recipe.load("radial-wan3")


@pytest.mark.parametrize("name", ["wan", "hunyuan_video"])
def test_recall_is_measured_in_a_dense_run(name):
    tiny = BY_NAME[name]
    pipe = tiny.make()
    watching = probe(RadialAttention(decay=0.2, sink=False), looks=2)
    with accelerate(pipe, [watching]) as handle:
        out = tiny.call(pipe, steps=3)
    assert torch.equal(out, dense_output(name)), "measuring changed the picture"
    assert handle.report.macs_executed == handle.report.macs_dense
    found = by_layer(watching.found)
    assert set(found) == {"raster", "tile"} and len(watching.found) == 2 * 2 * 2  # masks, layers, first and last step
    for shares in found.values():
        assert shares.shape == (2, 2) and shares.min() > 0 and shares.max() < 1
    densities = {item.mask: item.density for item in watching.found}
    assert densities["tile"] == pytest.approx(densities["raster"], abs=0.02)


def test_the_recall_of_a_known_attention():
    """Keys that all are alike: what is kept is the share of pairs that the mask keeps."""
    tiny = BY_NAME["wan"]
    pipe = tiny.make()
    for block in pipe.transformer.blocks:
        block.attn1.to_k.weight.zero_()
        block.attn1.to_k.bias.zero_()
    watching = probe(ALWAYS)
    with accelerate(pipe, [watching]):
        tiny.call(pipe, steps=1)
    item = watching.found[0]
    assert item.mask == "raster" and item.heads == pytest.approx([item.density] * 2, rel=1e-5)


def test_merging_that_leaves_no_sparse_call_is_said_at_once():
    tiny = BY_NAME["wan"]
    pipe = tiny.make()
    both = [RadialAttention(dense_share=0.5, dense_layers=0), TokenMerging(noise=(0, 0.95))]
    with accelerate(pipe, both) as handle:
        tiny.call(pipe, steps=6)
    message = "tokens are merged in every call that would be sparse: narrow the noise"
    assert any(message in text for text in handle.report.warnings)
    assert message in handle.report.methods["radial_attention"].reason


def test_the_unit_in_the_report_is_the_mask_s(monkeypatch):
    runtime = bound(RadialAttention(decay=0.8, block_size=64))
    runtime.note(geometry_of(runtime.method, TokenLayout(6, 16, 32)))
    assert "blocks of 64" in runtime.report.note and "unit" not in runtime.report.note


@pytest.mark.parametrize("name", ["wan", "hunyuan_video"])
def test_under_autocast(name):
    tiny = BY_NAME[name]
    pipe = tiny.make()
    with torch.autocast("cpu", torch.bfloat16):
        dense = tiny.call(pipe)
        with accelerate(pipe, [ALWAYS]):
            out = tiny.call(pipe)
    assert out.isfinite().all() and not torch.equal(out, dense)
    assert_close(out, dense_output(name), rtol=0.1)


def test_inference_mode_before_training():
    tiny = BY_NAME["wan"]
    pipe = tiny.make()
    seen = []
    pipe.transformer.register_forward_pre_hook(lambda m, a, k: seen.append(k), with_kwargs=True)
    with accelerate(pipe, [replace(ALWAYS, token_order="tile")]):
        with torch.inference_mode():
            tiny.call(pipe)
        arguments = {k: v.clone() if torch.is_tensor(v) else v for k, v in seen[0].items()}
        pipe.transformer.requires_grad_(True)
        pipe.transformer(**arguments)[0].sum().backward()
    assert pipe.transformer.blocks[0].attn1.to_q.weight.grad.isfinite().all()


def test_a_prediction_needs_no_kernel_of_the_machine():
    from fastdit.pipelines.profiling import Geometry, profile, read_model

    report = profile(read_model("Wan2.1-T2V-1.3B"), [RadialAttention(backend="flashinfer")], Geometry(21, 60, 104, 4))
    assert report.macs_executed < report.macs_dense


def test_patches_that_lose_the_next_frame_are_refused():
    method = RadialAttention(token_order="tile", block_size=64, decay=0.2, sink=False)
    with pytest.raises(ValueError, match="cuts frames of 88 tokens off"):
        bound(method).kernel(geometry_of(method, TokenLayout(17, 22, 4)))


def test_recall_of_two_transformers_is_kept_apart():
    tiny = BY_NAME["wan22_a14b"]
    pipe = tiny.make()
    watching = probe(RadialAttention(decay=0.2))
    with accelerate(pipe, [watching]):
        tiny.call(pipe, steps=3)
    assert {item.transformer for item in watching.found} == {"transformer", "transformer_2"}
    assert not torch.equal(by_layer(watching.found)["tile"], by_layer(watching.found, "transformer_2")["tile"])
