"""FlexDiT: every role against explicit formulas, what it costs and reports, and what it refuses."""

import math

import diffusers
import pytest
import torch
from flexdit_parts import SIX, dit_inputs, make_dit, make_pixart, pixart_inputs, runtime_alone, runtime_of, shake
from helpers import BY_NAME, assert_close, dense_output
from tiny import noise
from torch.nn import functional as F

from fastdit import DyDiT, FlexDiT, TemporalTokenMerging, TokenMerging, accelerate
from fastdit.core.layout import TokenLayout
from fastdit.methods.flexdit.blocks import GridPlan, Recovery
from fastdit.methods.flexdit.structure import Structure
from fastdit.methods.runtime import Forward, Host
from fastdit.models.base import load_families
from fastdit.ops.token_grid import average_onto, nearest_grid, spread_over

TWO_MODULES = FlexDiT(pooling=0, modules=2, sparse=0, dense=1, rate=0.9)
FULL = (8, 8)


# --- what each block computes -----------------------------------------------------------------------------------------


def attend(attention, queries, keys):
    """Softmax attention head by head, from the module's own layers."""
    projected = (attention.to_q(queries), attention.to_k(keys), attention.to_v(keys))
    heads = []
    for q, k, v in zip(*(x.chunk(attention.heads, dim=2) for x in projected), strict=True):
        heads.append((q @ k.transpose(1, 2) / math.sqrt(q.shape[2])).softmax(2) @ v)
    return attention.to_out[0](torch.cat(heads, dim=2))


def pooled(attention, tokens):
    """Attention with equal weights 1 / N for all tokens."""
    count = tokens.shape[1]
    return attention.to_out[0](torch.full((count, count), 1 / count) @ attention.to_v(tokens))


def slow_block(block, arguments, x, others, attention):
    """One block of DiT or PixArt by its formulas; `attention(module, own, others)` is what the role does."""
    if block.norm_type == "ada_norm_zero":
        norm = block.norm1.norm
        embedding = block.norm1.emb(arguments["timestep"], arguments["class_labels"], hidden_dtype=x.dtype)
        parts = block.norm1.linear(F.silu(embedding))[:, None].chunk(6, dim=2)
        feed_norm = block.norm3
    else:
        norm, feed_norm = block.norm1, block.norm2
        parts = (block.scale_shift_table + arguments["timestep"].unflatten(1, (6, -1))).chunk(6, dim=1)
    shift, scale, gate, feed_shift, feed_scale, feed_gate = parts  # (B, 1, C) each
    own, beside = (norm(tokens) * (1 + scale) + shift for tokens in (x, others))
    x = x + gate * attention(block.attn1, own, beside)
    if block.attn2 is not None:
        text, mask = arguments["encoder_hidden_states"], arguments["encoder_attention_mask"]
        x = x + block.attn2(x, encoder_hidden_states=text, attention_mask=mask)
    return x + feed_gate * block.ff(feed_norm(x) * (1 + feed_scale) + feed_shift)


def slow_blocks(model, module, method, arguments, x, grid, small):
    """All blocks: `pooling`, then modules of generate, sparse, recover, dense, then the rest."""
    blocks = iter(model.transformer_blocks)

    def run(x, others=None, attention=attend):
        return slow_block(next(blocks), arguments, x, x if others is None else others, attention)

    for _ in range(method.pooling):
        x = run(x, attention=lambda attention, own, _: pooled(attention, own))
    for recovery in module.recover:
        full = x
        x = run(average_onto(full, grid, small), full)
        for _ in range(method.sparse):
            x = run(x)
        whole = F.linear(spread_over(x, small, grid), recovery.sparse.weight, recovery.sparse.bias)
        x = run(whole + F.linear(full, recovery.full.weight, recovery.full.bias), x)
        for _ in range(method.dense):
            x = run(x)
    while True:
        try:
            x = run(x)
        except StopIteration:
            return x


@pytest.mark.parametrize("method", [SIX, TWO_MODULES], ids=["pooling", "two-modules"])
@pytest.mark.parametrize(
    ("make", "inputs", "size"),
    [
        (make_dit, dit_inputs, (16, 16)),
        (make_pixart, pixart_inputs, (16, 16)),
        (make_pixart, pixart_inputs, (12, 28)),
        (make_pixart, pixart_inputs, (14, 6)),
    ],
    ids=["dit", "pixart", "pixart-wide", "pixart-tall"],
)
@torch.no_grad()
def test_blocks_equal_the_formulas(make, inputs, size, method):
    model, inputs, seen = make(), inputs(timesteps=(700, 700), size=size), {}
    grid = (size[0] // 2, size[1] // 2)
    small = nearest_grid(grid, method.rate)
    assert any(side % cells for side, cells in zip(grid, small, strict=True)), "a grid that does not divide"
    first, last = model.transformer_blocks[0], model.transformer_blocks[-1]
    first.register_forward_pre_hook(lambda m, args, kwargs: seen.update(kwargs, x=args[0]), with_kwargs=True)
    last.register_forward_hook(lambda m, args, output: seen.update(output=output))
    with accelerate(model, [method]):
        shake(runtime_of(model))
        module = runtime_of(model).module
        out = model(**inputs).sample
    expected = slow_blocks(model, module, method, seen, seen["x"], grid, small)
    assert_close(seen["output"], expected)
    assert out.shape == (2, 8, *size) and out.isfinite().all()
    assert not torch.allclose(out, model(**inputs).sample, atol=1e-3)


@torch.no_grad()
def test_untrained_recovery_is_the_full_map_and_the_full_grid_is_a_dense_block():
    full, sparse = noise(2, 64, 32), noise(2, 25, 32, seed=1)
    assert torch.equal(Recovery(32)(sparse, full, GridPlan(FULL, (5, 5))), full)

    model, seen = make_dit(layers=2), []
    model.transformer_blocks[0].register_forward_hook(lambda m, args, output: seen.append(output))
    dense = model(**dit_inputs()).sample
    with accelerate(model, [FlexDiT(pooling=0, modules=1, sparse=0, dense=0, rate=0.0)]):
        out = model(**dit_inputs()).sample
    assert_close(seen[1], seen[0], rtol=1e-6)  # keys are the queries' own tokens
    assert not torch.allclose(out, dense, atol=1e-3)  # the second attends to the first one's output


def test_neutral_installs_nothing_and_is_dense():
    pipe, tiny = BY_NAME["dit"].make(), BY_NAME["dit"]
    before = {name: set(vars(module)) for name, module in pipe.transformer.named_modules() if name}
    with accelerate(pipe, [FlexDiT(pooling=0, modules=0)]) as handle:
        assert {name: set(vars(module)) for name, module in pipe.transformer.named_modules() if name} == before
        assert torch.equal(tiny.call(pipe), dense_output("dit"))
        assert not list(runtime_of(pipe.transformer).module.parameters())
        with pipe.dense():
            pass
    assert handle.report.macs_executed == handle.report.macs_dense
    assert handle.report.methods["flexdit"].reason == "neutral setting" and not handle.report.warnings


@torch.no_grad()
def test_the_host_may_run_in_another_type_than_the_own_parameters():
    model = make_pixart()
    with accelerate(model, [SIX]):
        shake(runtime_of(model))
        expected = model(**pixart_inputs()).sample
        model.to(torch.bfloat16)
        inputs = {
            k: v.bfloat16() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in pixart_inputs().items()
        }
        out = model(**inputs).sample
        assert out.dtype == torch.bfloat16
        assert {parameter.dtype for parameter in runtime_of(model).module.parameters()} == {torch.float32}
    assert (out - expected).abs().mean() < 0.05 * expected.abs().mean()


# --- costs and the report ---------------------------------------------------------------------------------------------


def xl_macs(method, timesteps, size=32):
    """(executed, dense) GMAC of DiT-XL/2 at each timestep, counted on the meta device."""
    from fastdit.pipelines.counter import MacCounter

    with torch.device("meta"):
        model = diffusers.DiTTransformer2DModel(sample_size=size).eval()  # the defaults are DiT-XL/2
    family = load_families()["dit"]
    inputs = {k: v.to("meta") for k, v in family.inputs(model.config, 1, 1, size, size).items()}
    counter, layout = MacCounter(Host("transformer", model, family), [method]), family.layout(model, inputs)
    for timestep in timesteps:
        forward = Forward(layout, 1, 0.5, timestep=torch.tensor([timestep]))
        dense, executed = counter.count((), inputs, [counter.runtimes[0].plan(forward)], forward)
        yield executed / 1e9, dense / 1e9


def test_dit_xl_2_with_8_x_8_tokens_is_66_6_gmac():
    executed, dense = next(xl_macs(FlexDiT(grid=8), [500]))
    assert executed == pytest.approx(66.6, rel=0.015) and dense == pytest.approx(118.67, rel=0.005)


@pytest.mark.parametrize(("size", "published"), [(32, 68.05), (64, 286)])
def test_the_mean_over_time_is_near_the_published_figures(size, published):
    """At 256 and 512 pixels, for the rates 0.61 to 0.86."""
    intervals = Structure().intervals((size // 2, size // 2))
    counts = xl_macs(FlexDiT(), [round(low * 1000) for low, _ in intervals], size)
    mean = sum((high - low) * executed for (low, high), (executed, _) in zip(intervals, counts, strict=True))
    assert mean == pytest.approx(published, rel=0.03)


def test_the_report_names_grids_density_and_that_it_is_untrained():
    pipe = BY_NAME["dit"].make()
    with accelerate(pipe, [FlexDiT(pooling=0, modules=1, sparse=0, dense=0)]) as handle:
        BY_NAME["dit"].call(pipe, steps=4)
    done, report = handle.report.methods["flexdit"], handle.report
    assert done.note == "1 module on 4 x 4, 5 x 5 of 8 x 8 tokens"
    cells = [16 if row.step < 2 else 25 for row in report.rows]
    assert [row.density["flexdit"] for row in report.rows] == [(cells + 64) / 128 for cells in cells]
    assert report.warnings == ["flexdit: this model was not trained for it: for measuring speed, the result is wrong"]


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "layers", "fits"),
    [
        (FlexDiT(), 12, "pooling=2, modules=2, sparse=2, dense=1"),
        (FlexDiT(), 6, "pooling=2, modules=1, sparse=1, dense=1"),
        (FlexDiT(), 2, "pooling=0, modules=1, sparse=0, dense=0"),
        (FlexDiT(pooling=3, modules=0), 2, "pooling=2, modules=0"),
        (FlexDiT(pooling=0, modules=100, sparse=100, dense=100), 1, "pooling=0, modules=0"),
    ],
)
def test_too_few_blocks_is_an_error_with_counts_that_fit(method, layers, fits):
    with pytest.raises(ValueError, match=f"this transformer has {layers}: take {fits}$") as error:
        runtime_alone(method, layers)
    assert "\n" not in str(error.value)
    counts = dict(part.split("=") for part in fits.split(", "))
    assert len(Structure(**{name: int(value) for name, value in counts.items()}).roles(layers)) == layers


def test_the_published_layout_of_dit_xl():
    roles = Structure().roles(28)
    module = ["generate", "sparse", "sparse", "sparse", "recover", "dense"]
    assert roles == ["pooling"] * 2 + module * 4 + ["dense"] * 2


@torch.no_grad()
def test_masks_over_image_tokens_are_refused():
    inputs = pixart_inputs() | {"attention_mask": torch.ones(2, 64)}
    for method in (FlexDiT(pooling=1, modules=0), FlexDiT(pooling=0, modules=1, sparse=0, dense=0)):
        model = make_pixart(layers=2)
        with accelerate(model, [method]), pytest.raises(ValueError, match=r"attention_mask .*leave it out"):
            model(**inputs)


@torch.no_grad()
def test_fused_projections_are_refused_before_and_after_attaching():
    model = make_pixart(layers=2)
    method = FlexDiT(pooling=1, modules=0)
    with accelerate(model, [method]):
        expected = model(**pixart_inputs()).sample
        model.fuse_qkv_projections()
        with pytest.raises(ValueError, match=r"transformer_blocks\.0\.attn1 are fused: call unfuse_qkv_projections"):
            model(**pixart_inputs())
        model.unfuse_qkv_projections()
        for _, attention in load_families()["pixart"].attentions(model):  # which diffusers forgets
            attention.fused_projections = False
        assert torch.equal(model(**pixart_inputs()).sample, expected)
    model.fuse_qkv_projections()
    with pytest.raises(ValueError, match="unfuse_qkv_projections"):
        accelerate(model, [method])


@torch.no_grad()
def test_a_skipped_block_is_an_error_and_not_a_wrong_result():
    model = make_dit()
    with accelerate(model, [SIX]):
        runtime_of(model).plan(Forward(TokenLayout(1, 8, 8), 2, 0.5))
        model(**dit_inputs())
        recover = model.transformer_blocks[3]
        with pytest.raises(RuntimeError, match="skipped its first block"):
            recover(noise(2, 25, 32), timestep=torch.tensor([5, 5]), class_labels=torch.tensor([1, 1]))


@pytest.mark.parametrize("other", [TokenMerging(), TokenMerging(scope="block"), TemporalTokenMerging(), DyDiT()])
def test_it_does_not_go_with_what_changes_tokens(other):
    reason = FlexDiT().clash(other)
    assert reason and "token grid" in reason


def test_conflicting_options():
    with pytest.raises(ValueError, match=r"grid is a fixed sparse grid and rate chooses one .*either"):
        FlexDiT(grid=8, rate=0.75)
    assert FlexDiT(rate=[0.61, 0.86]).rate == (0.61, 0.86)
