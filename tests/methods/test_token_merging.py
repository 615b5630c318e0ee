"""TokenMerging's decisions: how many rows at which noise, in which layers, and when a matching is found or reused."""

import math
from contextlib import contextmanager

import pytest
import torch
from helpers import BY_NAME, assert_close, counted

from fastdit import TokenMerging, accelerate
from fastdit.attention.tokens import Match, TokenStep
from fastdit.core.errors import NothingAccelerated
from fastdit.core.layout import TokenLayout
from fastdit.methods.token_merging.method import Finder
from fastdit.ops.reducers import REDUCERS
from fastdit.ops.reduction import Reduction


@contextmanager
def spy_on_find(monkeypatch):
    """The matchings found on real tensors (those for counting MACs are on the meta device)."""
    with counted(monkeypatch, Finder, "match") as calls:
        yield lambda: [(finder, visual) for (finder, visual), _ in calls if not visual.is_meta]


def run(name, steps=3, **options):
    tiny = BY_NAME[name]
    pipe = tiny.make()
    with accelerate(pipe, [TokenMerging(**options)]) as handle:
        out = tiny.call(pipe, steps=steps)
    return out, handle.report


def densities(report):
    return [row.density["token_merging"] for row in report.rows]


def test_the_schedule_over_noise_drives_the_rows(monkeypatch):
    schedule = "linear:0.25:1"
    with spy_on_find(monkeypatch) as found:
        _, report = run("wan", steps=6, density=schedule, reuse_steps=1)
    expected = [round(16 * (1 - 0.75 * row.noise) + 1e-9) / 16 for row in report.rows]
    assert densities(report) == expected
    assert expected == sorted(expected) and len(set(expected)) > 2 and expected[0] == 0.25
    rows = [finder.rows for finder, _ in found()]
    assert rows == [round(192 * share) for share in expected for _ in ("cond", "uncond") if share < 1]


def test_density_is_the_same_at_the_same_noise_with_10_and_50_steps():
    seen = {}
    for steps in (10, 50):
        _, report = run("pixart_alpha", steps=steps, density="cosine:0.25:0.75")
        seen[steps] = {round(row.noise, 6): row.density["token_merging"] for row in report.rows}
    common = set(seen[10]) & set(seen[50])
    assert len(common) >= 2
    assert all(seen[10][noise] == seen[50][noise] for noise in common)
    curve = [seen[50][noise] for noise in sorted(seen[50], reverse=True)]
    assert curve == sorted(curve) and len(set(curve)) > 4


def test_the_noise_range_leaves_other_steps_dense():
    _, report = run("wan", steps=8, noise=(0.3, 0.9))
    inside = [0.3 <= row.noise <= 0.9 for row in report.rows]
    assert any(inside) and not all(inside)
    assert densities(report) == [0.5 if i else 1.0 for i in inside]
    for row, i in zip(report.rows, inside, strict=True):
        assert (row.macs_executed < row.macs_dense) == i
        assert i or row.macs_executed == row.macs_dense


def test_a_noise_range_that_no_step_meets_is_an_error_before_the_first_forward(monkeypatch):
    tiny = BY_NAME["wan"]
    pipe = tiny.make()
    forwards = []
    pipe.transformer.blocks[0].register_forward_pre_hook(lambda *_: forwards.append(1))
    with accelerate(pipe, [TokenMerging(noise=(0.0, 0.001))]) as handle:
        with pytest.raises(NothingAccelerated, match=r"token_merging: .*noise 0:0\.001.*widen the noise range"):
            tiny.call(pipe)
        assert not forwards and handle.report.steps == 0
        pipe.set_methods([TokenMerging()])
        assert tiny.call(pipe).isfinite().all() and forwards


@pytest.mark.parametrize(
    ("layers", "expected"),
    [((0.5, 1.0), [1]), ((0.0, 0.5), [0]), ((0.0, 1.0), [0, 1]), ((0.99, 1), [1]), ((0, 0.01), [0])],
)  # the last two are narrower than a layer, and get one
@pytest.mark.parametrize("scope", ["attention", "block"])
def test_the_layer_range(layers, expected, scope):
    tiny = BY_NAME["wan"]
    pipe, lengths = tiny.make(), []
    with accelerate(pipe, [TokenMerging(layers=layers, scope=scope)]) as handle:
        for index, block in enumerate(pipe.transformer.blocks):
            block.attn1.to_q.register_forward_hook(
                lambda m, args, out, index=index: lengths.append((index, out.shape[1]))
            )
        tiny.call(pipe, steps=1)
    assert {index for index, length in lengths if length == 96} == set(expected)
    assert {index for index, length in lengths if length == 192} == {0, 1} - set(expected)
    assert handle.report.methods["token_merging"].layers == len(expected)


@pytest.mark.parametrize(
    ("reuse_steps", "reuse_blocks", "per_pass"),
    [(1, 1, 6 * 2), (1, 2, 6), (2, 1, 3 * 2), (2, 4, 3), (3, 0, 2), (10, 0, 1)],
)
@pytest.mark.parametrize("scope", ["attention", "block"])
def test_matchings_are_reused(reuse_steps, reuse_blocks, per_pass, scope, monkeypatch):
    """6 steps, 2 blocks: how often a matching is found, for each of the two guidance passes."""
    with spy_on_find(monkeypatch) as found:
        run("wan", steps=6, reuse_steps=reuse_steps, reuse_blocks=reuse_blocks, scope=scope)
    assert len(found()) == 2 * per_pass


def test_a_dense_step_in_between_ends_the_reuse(monkeypatch):
    """What was matched before a dense step is stale after it, even within reuse_steps."""
    points = "points:1=0.5:0.95=0.5:0.94=1:0.6=1:0.59=0.5:0=0.5"
    with spy_on_find(monkeypatch) as found:
        _, report = run("wan", steps=6, density=points, reuse_steps=100, reuse_blocks=0)
    shares = densities(report)
    starts = sum(share < 1 and (i == 0 or shares[i - 1] != share) for i, share in enumerate(shares))
    assert starts >= 2 and 1.0 in shares
    assert len(found()) == 2 * starts


def test_the_two_passes_of_guidance_have_matchings_of_their_own(monkeypatch):
    """The prompt reaches the tokens from block 1 on: conditional and unconditional pass then match differently."""
    with spy_on_find(monkeypatch) as found:
        run("wan", steps=1, reuse_blocks=1, layers=(0.5, 1))
    (_, cond), (_, uncond) = found()
    assert not torch.equal(cond, uncond)


class Fixed:
    """A matcher that always gives one reduction."""

    def __init__(self, reduction):
        self.reduction = reduction

    def match(self, visual):
        return Match(self.reduction)


@pytest.mark.parametrize("side", ["both", "kv"])
def test_proportional_attention_is_attention_over_duplicated_keys(side):
    """Merging identical tokens loses nothing if each merged key counts as often as it stood there before."""
    pipe = BY_NAME["pixart_alpha"].make()
    attention = pipe.transformer.transformer_blocks[0].attn1
    groups = torch.cat(
        [torch.arange(8), torch.randint(0, 8, (56,)) % 5]
    )  # 64 tokens of 8 colours, in groups of 1 to 18
    hidden = torch.randn(2, 8, 32)[:, groups]
    dense, outputs = attention(hidden), {}
    for proportional in (True, False):
        with accelerate(pipe, [TokenMerging(proportional=proportional, tokens=side)]):
            matcher = Fixed(Reduction(groups[None], 8))
            attention.processor.tokens = TokenStep(TokenLayout(1, 8, 8), matcher, side, proportional)
            outputs[proportional] = attention(hidden)
    assert_close(outputs[True], dense, 2e-6)
    assert (outputs[False] - dense).abs().max() > 1e-3


def test_every_reducer_of_the_registry_runs():
    """Another reducer is one more file: it is offered by name at once."""
    assert {"bipartite", "pool", "prune"} <= set(REDUCERS)
    for name in REDUCERS:
        out, report = run("wan", steps=2, reducer=name)
        assert out.isfinite().all()
        assert math.isclose(report.methods["token_merging"].density, 0.5, abs_tol=0.1)


def test_pool_and_one_token_a_frame():
    out, report = run("wan", steps=1, reducer="pool", density=0.01)  # quantised to 1/16: 4 of 64 tokens a frame
    assert out.isfinite().all() and report.methods["token_merging"].density == 1 / 16
