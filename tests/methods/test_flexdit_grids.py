"""FlexDiT's token grid: chosen by the timestep, one for a forward, and the intervals in which it is the same."""

from itertools import pairwise

import diffusers
import pytest
import torch
from flexdit_parts import dit_inputs, make_dit, planned, runtime_alone
from helpers import assert_close

from fastdit import FlexDiT, accelerate
from fastdit.core.layout import TokenLayout
from fastdit.methods.runtime import Forward
from fastdit.models.base import load_families


def test_the_grid_follows_the_timestep_whatever_the_number_of_steps():
    runtime, found = runtime_alone(FlexDiT()), {}
    for steps in (25, 250):
        scheduler = diffusers.DDIMScheduler()
        scheduler.set_timesteps(steps)
        found[steps] = {int(t): planned(runtime, int(t), int(t)) for t in scheduler.timesteps}
    common = set(found[25]) & set(found[250])
    assert len(common) == 25 and all(found[25][t] == found[250][t] for t in common)
    sides = [found[250][t][0] for t in sorted(found[250])]
    assert sides == sorted(sides, reverse=True) and sides[0] == 10 and sides[-1] == 6
    assert all(height == width for height, width in found[250].values())


@pytest.mark.parametrize(("grid", "ends"), [((16, 24), ((10, 15), (6, 9))), ((9, 5), ((6, 3), (3, 2)))])
def test_grids_of_rectangles(grid, ends):
    runtime = runtime_alone(FlexDiT())
    assert (planned(runtime, 0, grid=grid), planned(runtime, 999, grid=grid)) == ends


def test_fixed_grids():
    assert planned(runtime_alone(FlexDiT(grid=8)), 0, 999) == (8, 8)
    assert planned(runtime_alone(FlexDiT(grid=8)), 0, 999, grid=(32, 32)) == (8, 8)
    assert planned(runtime_alone(FlexDiT(grid=8)), 0, grid=(8, 32)) == (4, 16)  # as many tokens, the picture's aspect
    assert planned(runtime_alone(FlexDiT(rate=0.75)), 0, 999, grid=(12, 20)) == (6, 10)
    with pytest.raises(ValueError, match=r"grid=17 is finer than the 16 x 16 tokens .* at most 16"):
        planned(runtime_alone(FlexDiT(grid=17)), 0)


@torch.no_grad()
def test_samples_of_one_batch_share_one_grid():
    model = make_dit()
    with accelerate(model, [FlexDiT(pooling=1, modules=1, sparse=1, dense=1)]):
        for timesteps in ((100, 240), (980, 999)):
            both = model(**dit_inputs(timesteps)).sample
            for sample in range(2):
                own = {name: value[sample : sample + 1] for name, value in dit_inputs(timesteps).items()}
                assert_close(model(**own).sample, both[sample : sample + 1])
        with pytest.raises(ValueError, match=r"5 x 5 at t/T 0\.100, 3 x 3 at t/T 0\.990\): .*rate=0\.61") as error:
            model(**dit_inputs((100, 990)))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("grid", [(16, 16), (32, 32), (12, 20), (1, 3)])
def test_intervals_are_those_of_equal_grids(grid):
    runtime = runtime_alone(FlexDiT())
    intervals = runtime.intervals(TokenLayout(1, *grid))
    assert intervals[0][0] == 0 and intervals[-1][1] == 1
    assert all(one[1] == other[0] for one, other in pairwise(intervals))
    seen = []
    for low, high in intervals:
        # as a trainer draws: within an interval in float32, and whole timesteps
        time = (low + (high - low) * torch.rand(200, dtype=torch.float64)).float().clamp(max=high - 1e-6)
        continuous, whole = time * 1000, (time * 1000 + 1e-3).floor().long()
        found = {planned(runtime, *timesteps.tolist(), grid=grid) for timesteps in (continuous, whole)}
        assert len(found) == 1
        seen += found
    assert len(set(seen)) == len(seen)
    if grid == (32, 32):
        assert [side for side, _ in seen] == list(range(20, 11, -1))


def test_one_interval_where_nothing_changes():
    for method in (FlexDiT(grid=8), FlexDiT(rate=0.75), FlexDiT(modules=0)):
        assert runtime_alone(method).intervals(TokenLayout(1, 16, 16)) == [(0.0, 1.0)]


def test_a_forward_without_timestep_takes_that_of_its_noise():
    runtime, family = runtime_alone(FlexDiT()), load_families()["dit"]
    for timestep in (0, 300, 500, 700, 999):
        level = family.noise({"timestep": torch.tensor(timestep)})
        forward = Forward(TokenLayout(1, 16, 16), 1, level)
        assert runtime.plan(forward).small == planned(runtime, timestep)
