"""Batch, resolution and repetition: a batch of 2 is two of 1, and no shape leaves a trace in the next run."""

import pytest
import torch
from helpers import (
    BY_NAME,
    ONE_OF_EACH_FAMILY,
    assert_close,
    pairs,
    rotary_kind,
    settings,
    settings_in_forwards,
    universal_settings,
)
from methods_table import TABLE

from fastdit import TokenMerging, accelerate


@pytest.mark.parametrize(("tiny", "setting"), settings("active", rows=rotary_kind))
def test_a_batch_of_two_is_two_of_one(tiny, setting):
    pipe, steps = tiny.make(), TABLE[setting.method.name].steps
    with accelerate(pipe, [setting.method]):
        both = tiny.call(pipe, batch=2, steps=steps)
        for sample in range(2):
            own = tiny.call(pipe, batch=2, steps=steps, sample=sample)
            assert_close(own, both[sample : sample + 1], rtol=2e-5)
    assert not torch.equal(both[0], both[1])


@pytest.mark.parametrize(
    ("tiny", "setting"),
    pairs(
        [*universal_settings()[-1:], *settings_in_forwards()[:1]],
        [name for name in ONE_OF_EACH_FAMILY if name != "dit"],
    ),
)
def test_two_resolutions_in_a_row_are_two_fresh_pipelines(tiny, setting):
    pipe = tiny.make()
    with accelerate(pipe, [setting.method]):
        in_a_row = [tiny.call(pipe, size=size, steps=2) for size in (16, 24, 16)]
    for size, out in zip((16, 24), in_a_row, strict=False):
        fresh = tiny.make()
        with accelerate(fresh, [setting.method]):
            assert torch.equal(out, tiny.call(fresh, size=size, steps=2))
    assert torch.equal(in_a_row[0], in_a_row[2])
    assert in_a_row[1].numel() > in_a_row[0].numel()


@pytest.mark.parametrize("reducer", ["bipartite", "pool", "prune"])
def test_odd_token_grids(reducer):
    """Grids that no window divides: 9 x 9 tokens."""
    tiny = BY_NAME["wan"]
    pipe = tiny.make()
    for density in (0.3, 0.9):
        with accelerate(pipe, [TokenMerging(density=density, reducer=reducer)]) as handle:
            out = tiny.call(pipe, size=18, steps=2)
            assert out.isfinite().all() and 0 < handle.report.methods["token_merging"].density < 1
