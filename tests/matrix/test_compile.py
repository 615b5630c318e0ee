"""Compiled blocks give the eager result, and the number of graphs does not grow with the number of steps."""

import pytest
import torch
from helpers import BY_NAME, assert_close, home, pairs, settings_in_forwards, universal_settings
from methods_table import ATTENTION, Setting
from torch._dynamo.testing import CompileCounter

from fastdit import TokenMerging, accelerate
from fastdit.models.base import family_of

GRAPHS_PER_BLOCK = 4  # dense / finding / following a matching, each cut where the attention call is taken over


def compiled(pipe):
    torch._dynamo.reset()
    graphs = CompileCounter()  # runs eagerly what dynamo has captured, and counts
    for _, block, _ in family_of(pipe.transformer).blocks(pipe.transformer):
        block.compile(backend=graphs)
    return graphs


@pytest.fixture(autouse=True)
def fresh_dynamo():
    yield
    torch._dynamo.reset()


INSIDE = [Setting(TokenMerging(proportional=True), ATTENTION), Setting(TokenMerging(tokens="kv"), ATTENTION)]


@pytest.mark.parametrize(("tiny", "setting"), pairs([*settings_in_forwards(), *INSIDE], ["pixart_alpha", "wan"]))
def test_compiled_blocks_equal_eager(tiny, setting):
    pipe = tiny.make()
    with accelerate(pipe, [setting.method]):
        eager = tiny.call(pipe, steps=12)
    graphs = compiled(pipe)
    seen = {}
    with accelerate(pipe, [setting.method]) as handle:
        for steps in (4, 12):
            out = tiny.call(pipe, steps=steps)
            seen[steps] = graphs.frame_count
        assert handle.report.methods[setting.method.name].density < 1
    assert_close(out, eager)
    assert 0 < seen[12] <= 2 * GRAPHS_PER_BLOCK, seen
    assert seen[12] == seen[4], "12 steps compiled more than 4 steps: something in the block changes with time"


def test_a_schedule_compiles_once_per_density():
    """Densities are quantised to 1/16, so a run has few shapes."""
    tiny = BY_NAME["pixart_alpha"]
    pipe = tiny.make()
    method = TokenMerging(density="points:1=0.5:0.6=0.5:0.59=0.75:0=0.75", reducer="pool")
    with accelerate(pipe, [method]):
        eager = tiny.call(pipe, steps=12)
    graphs = compiled(pipe)
    with accelerate(pipe, [method]) as handle:
        out = tiny.call(pipe, steps=12)
        densities = {row.density["token_merging"] for row in handle.report.rows}
        assert {0.5, 0.75} <= densities and len(densities) <= 3
        first = graphs.frame_count
        assert torch.equal(out, tiny.call(pipe, steps=12)) and graphs.frame_count == first
    assert_close(out, eager)
    assert first <= 2 * len(densities) * GRAPHS_PER_BLOCK


@pytest.mark.parametrize("setting", settings_in_forwards(), ids=str)
def test_a_transformer_compiled_as_a_whole(setting):
    """`torch.compile(transformer)` before attaching: hooks go on the module inside."""
    tiny = home(setting, "pixart_alpha", "wan")
    passes = 2 if tiny.name == "wan" else 1
    pipe = tiny.make()
    with accelerate(pipe, [setting.method]):
        eager = tiny.call(pipe, steps=4)
    dense = tiny.call(pipe, steps=4)
    torch._dynamo.reset()
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    with accelerate(pipe, [setting.method]) as handle:
        assert_close(tiny.call(pipe, steps=4), eager)
        assert handle.report.methods[setting.method.name].calls == 8 * passes
    assert_close(tiny.call(pipe, steps=4), dense)


@pytest.mark.parametrize(
    ("setting", "order"),
    [(universal_settings()[0], order) for order in ("in place before", "in place after", "wrapped after")]
    + [(setting, "in place after") for setting in settings_in_forwards()],
    ids=str,
)
def test_compiling_the_whole_at_other_times(setting, order):
    """The hook that plans stays outside the graph, so graphs do not grow with the steps (their index, their noise)."""
    tiny = home(setting, "pixart_alpha", "wan")
    passes = 2 if tiny.name == "wan" else 1
    pipe = tiny.make()
    with accelerate(pipe, [setting.method]):
        eager = tiny.call(pipe, steps=6)
    torch._dynamo.reset()
    graphs, seen = CompileCounter(), []
    if order == "in place before":
        pipe.transformer.compile(backend=graphs)
    with accelerate(pipe, [setting.method]) as handle:
        if order == "in place after":
            pipe.transformer.compile(backend=graphs)
        elif order == "wrapped after":
            pipe.transformer = torch.compile(pipe.transformer, backend=graphs)
        for steps in (4, 6, 12):
            out = tiny.call(pipe, steps=steps)
            seen.append(graphs.frame_count)
            if steps == 6:
                assert_close(out, eager)
            assert handle.report.methods[setting.method.name].calls == 2 * steps * passes
            assert handle.report.macs_executed < handle.report.macs_dense
    assert 0 < seen[0] == seen[1] == seen[2], f"graphs after 4, 6, 12 steps: {seen}"
