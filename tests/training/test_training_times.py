"""Times of a batch: quarters, intervals, distributions, and the schedulers' own shifts."""

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from fastdit.training.times import TIMES, draw_times, flow_shift_of, shifted


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_sample_i_lies_in_quarter_i_mod_4():
    times = draw_times(32, generator())
    assert times.dtype == torch.float32
    assert (times * 4).floor().tolist() == [i % 4 for i in range(32)]


@pytest.mark.parametrize("batch", [1, 2, 6])
def test_batches_that_are_no_multiple_of_4_see_all_quarters_alike(batch):
    source = generator()
    times = torch.stack([draw_times(batch, source) for _ in range(3000)])
    assert times.mean().item() == pytest.approx(0.5, abs=0.02)
    shares = torch.bincount((times * 4).long().flatten(), minlength=4) / times.numel()
    torch.testing.assert_close(shares, torch.full((4,), 0.25), atol=0.03, rtol=0)
    parts = (times * 4).floor()
    assert all(len(set(row.tolist())) == min(batch, 4) for row in parts)  # spread over the parts all the same


@pytest.mark.parametrize("kind", list(TIMES))
@pytest.mark.parametrize("steps", [None, 1000])
@pytest.mark.parametrize("flow_shift", [1.0, 3.0])
@pytest.mark.parametrize("interval", [(0, 1), (0, 0.4375), (0.4375, 0.6), (0.9, 1)])
def test_intervals(interval, flow_shift, steps, kind):
    times = draw_times(400, generator(), interval=interval, flow_shift=flow_shift, steps=steps, kind=kind)
    assert times.isfinite().all()
    assert (times >= interval[0]).all() and (times < interval[1]).all()
    for part in range(1, 4):  # strata are of the interval, not of [0, 1]
        assert times[part::4].min() >= times[part - 1 :: 4].max()
    if steps:
        assert torch.equal(times, (times * steps).round() / steps)
        assert times.unique().numel() > 10
    else:
        assert times.unique().numel() > 390


def test_strata_split_the_distribution_itself():
    times = draw_times(4000, generator(), kind="logit-normal", flow_shift=3.0, strata=4).reshape(-1, 4)
    assert all(times[:, i].max() <= times[:, i + 1].min() for i in range(3))


def test_logit_normal_and_its_shift():
    times = draw_times(20000, generator(), kind="logit-normal").double()
    logits = torch.logit(times)
    assert logits.mean().item() == pytest.approx(0, abs=0.02) and logits.std().item() == pytest.approx(1.2, abs=0.02)
    moved = draw_times(20000, generator(), kind="logit-normal", flow_shift=3.0).double()
    torch.testing.assert_close(moved, 3 * times / (1 + 2 * times), atol=1e-5, rtol=0)


def test_an_interval_keeps_the_distribution_inside():
    """Restricted draws are the unrestricted ones that fall inside."""
    free = draw_times(40000, generator(), kind="logit-normal", flow_shift=2.0, strata=1)
    inside = free[(free >= 0.3) & (free < 0.5)]
    drawn = draw_times(10000, generator(1), kind="logit-normal", flow_shift=2.0, strata=1, interval=(0.3, 0.5))
    for q in (0.1, 0.5, 0.9):
        assert drawn.quantile(q).item() == pytest.approx(inside.quantile(q).item(), abs=0.005)


def test_deterministic_and_the_global_generator_is_untouched():
    before = torch.get_rng_state()
    first, second = draw_times(7, generator(5)), draw_times(7, generator(5))
    assert torch.equal(first, second) and not torch.equal(first, draw_times(7, generator(6)))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"interval": (0.5, 0.5)}, "interval must satisfy 0 <= low < high <= 1, got 0.5:0.5"),
        ({"interval": (0.1234, 0.1235), "steps": 1000}, "holds none of the 1000 timesteps"),
        ({"strata": 0}, "strata must be at least 1"),
        ({"flow_shift": 0.0}, "flow_shift must be above 0"),
        ({"kind": "uniform"}, "unknown kind of times 'uniform'; known: logit-normal, stratified"),
    ],
)
def test_bad_input(more, message):
    with pytest.raises(ValueError, match=message):
        draw_times(4, generator(), **more)


def test_shift_is_that_of_the_schedulers_own_sigmas():
    free = torch.linspace(1, 1 / 1000, 11)[:-1]
    unipc = UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    unipc.set_timesteps(10)
    torch.testing.assert_close(shifted(free, flow_shift_of(unipc, 64)), unipc.sigmas[:-1])

    euler = FlowMatchEulerDiscreteScheduler(shift=7.0)
    euler.set_timesteps(sigmas=free.tolist())
    torch.testing.assert_close(shifted(free, flow_shift_of(euler, 64)), euler.sigmas[:-1])

    for kind in ("exponential", "linear"):
        dynamic = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind)
        dynamic.set_timesteps(sigmas=free.tolist(), mu=calculate_shift(1000, 256, 4096, 0.5, 1.15))
        torch.testing.assert_close(shifted(free, flow_shift_of(dynamic, 1000)), dynamic.sigmas[:-1])

    assert flow_shift_of(DDIMScheduler(), 64) == 1.0
