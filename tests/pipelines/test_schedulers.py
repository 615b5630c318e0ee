"""Schedulers that users exchange, that repeat timesteps, or that a pipeline copies."""

import copy

import diffusers
import pytest
import torch
from helpers import BY_NAME

from fastdit import TokenMerging, accelerate


def test_a_scheduler_exchanged_between_runs_is_found():
    tiny = BY_NAME["wan"]
    pipe = tiny.make()
    old = pipe.scheduler
    with accelerate(pipe, [TokenMerging(density="linear:0.25:1")]) as handle:
        first = tiny.call(pipe, steps=4)
        pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
        second = tiny.call(pipe, steps=4)
        assert handle.report.steps == 4 and len(handle.report.rows) == 4
        assert [row.noise for row in handle.report.rows] == pytest.approx(pipe.scheduler.sigmas[:4].tolist())
        pipe.scheduler = old
        assert torch.equal(tiny.call(pipe, steps=4), first) and not torch.equal(first, second)
    for scheduler in (old, pipe.scheduler):
        assert not {"step", "set_timesteps"} & set(vars(scheduler))


def test_mochis_noise_falls_while_its_timesteps_rise():
    tiny = BY_NAME["mochi"]
    pipe = tiny.make()
    with accelerate(pipe, [TokenMerging(density="linear:0.25:1")]) as handle:
        assert tiny.call(pipe, steps=6).isfinite().all()
    rows = handle.report.rows
    noises, timesteps = [row.noise for row in rows], pipe.scheduler.timesteps.tolist()
    assert noises == sorted(noises, reverse=True) and timesteps == sorted(timesteps)
    assert noises[0] > 0.95 and noises == pytest.approx([1 - t / 1000 for t in timesteps], abs=1e-5)
    densities = [row.density["token_merging"] for row in rows]
    assert densities == sorted(densities) and densities[0] == pytest.approx(0.25, abs=0.05)


@pytest.mark.parametrize("name", ["pixart_alpha", "latte"])
@pytest.mark.parametrize("scheduler", ["EulerDiscreteScheduler", "DDIMScheduler", "EulerAncestralDiscreteScheduler"])
def test_schedulers_of_variance_preserving_models(name, scheduler):
    tiny = BY_NAME[name]
    pipe = tiny.make()
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    with accelerate(pipe, [TokenMerging(density="linear:0.25:1")]) as handle:
        assert tiny.call(pipe, steps=4).isfinite().all()
    noises = [row.noise for row in handle.report.rows]
    assert len(noises) == 4 and noises == sorted(noises, reverse=True) and noises[0] > 0.9


def test_heun_counts_every_step_and_repeats_the_noise():
    tiny = BY_NAME["wan"]
    pipe = tiny.make()
    pipe.scheduler = diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0)
    dense = tiny.call(pipe, steps=4)
    with accelerate(pipe, [TokenMerging(density="linear:0.25:1")]) as handle:
        out = tiny.call(pipe, steps=4)
        report = handle.report
    assert report.steps == 7 and report.evaluations == 14  # 2 x 4 - 1 steps of two passes
    noises = [row.noise for row in report.rows]
    assert noises[1] == noises[2] and noises[3] == noises[4] and noises[5] == noises[6]
    assert noises == sorted(noises, reverse=True) and out.isfinite().all()
    assert torch.equal(tiny.call(pipe, steps=4), dense)


def test_a_scheduler_copied_in_mid_run_is_one_clear_error():
    tiny = BY_NAME["wan"]
    pipe = tiny.make()

    def copy_it(pipe, index, timestep, kwargs):
        copy.deepcopy(pipe.scheduler)

    with accelerate(pipe, [TokenMerging()]):
        fast = tiny.call(pipe)
        with pytest.raises(RuntimeError, match=r"deep-copies its scheduler.*restore\(\)"):
            tiny.call(pipe, callback_on_step_end=copy_it)
        assert torch.equal(tiny.call(pipe), fast)
        copy.deepcopy(pipe.scheduler)  # between runs nothing of ours is on it


def test_two_transformers_and_what_each_did():
    """Wan 2.2 A14B: high noise on one transformer, low noise on the other; each reports for itself."""
    tiny = BY_NAME["wan22_a14b"]
    pipe = tiny.make()
    with accelerate(pipe, [TokenMerging(noise=(0.0, 0.7))]) as handle:
        tiny.call(pipe, steps=6)
    first, second = (handle.report.methods[n] for n in ("token_merging", "token_merging (transformer_2)"))
    assert first.calls and second.calls and first.calls + second.calls == 6 * 2 * 2
    assert first.density == 1 and second.density < 1  # the first has only noise above 0.9
    assert handle.report.steps == 6
