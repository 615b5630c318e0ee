"""The clock: noise by hand formulas, steps counted by `scheduler.step`, and a scheduler that comes back untouched."""

import copy
import inspect
import math

import diffusers
import pytest
import torch

from fastdit.core.clock import StepClock, noise_levels, vp_noise
from fastdit.core.ledger import PatchLedger
from fastdit.models.base import load_families


def attached(scheduler):
    clock, ledger = StepClock(), PatchLedger()
    clock.install(scheduler, ledger)
    return clock, ledger


def run(scheduler, steps):
    """A denoising loop as pipelines write it; the noise of each step and the number of calls of `step`."""
    clock, ledger = attached(scheduler)
    scheduler.set_timesteps(steps)
    sample, noises = torch.randn(1, 4, 2, 2), []
    for t in scheduler.timesteps:
        clock.next_pass()
        noises.append(clock.noise)
        sample = scheduler.step(torch.zeros_like(sample), t, sample).prev_sample
    counted = clock.step_index
    ledger.undo()
    return noises, counted


def test_flow_noise_is_sigma():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    noises, counted = run(scheduler, 8)
    low = 3 * (1 / 1000) / (1 + 2 * (1 / 1000))  # diffusers shifts the lower end first, and then all of them
    times = [1 - i * (1 - low) / 7 for i in range(8)]
    expected = [3 * t / (1 + 2 * t) for t in times]
    assert noises == pytest.approx(expected, abs=1e-6)
    assert counted == 8


def test_inverted_flow_noise_falls_too():
    """Mochi's scheduler counts sigmas and timesteps upwards from 0: the noise is what is missing to 1."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    noises, counted = run(scheduler, 8)
    assert scheduler.timesteps.tolist() == sorted(scheduler.timesteps.tolist())
    expected = [1 - i * (1 - 1 / 1000) / 7 for i in range(8)]
    assert noises == pytest.approx(expected, abs=1e-6) and counted == 8


def test_a_forward_outside_a_run_has_the_noise_of_its_timestep():
    families = load_families()
    for timestep, noise in ((0.0, 1.0), (250.0, 0.75), (1000.0, 0.0)):
        assert families["mochi"].noise({"timestep": torch.tensor([timestep])}) == pytest.approx(noise)
        assert families["wan"].noise({"timestep": torch.tensor([timestep])}) == pytest.approx(1 - noise)


@pytest.mark.parametrize("name", ["DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"])
def test_vp_noise_is_s_over_1_plus_s(name):
    scheduler = getattr(diffusers, name)(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    noises, counted = run(scheduler, 5)
    expected = []
    for t in scheduler.timesteps.round().long().tolist():
        abar = math.prod(1 - (1e-4 + (0.02 - 1e-4) * i / 999) for i in range(t + 1))
        s = math.sqrt((1 - abar) / abar)
        expected.append(s / (1 + s))
    assert noises == pytest.approx(expected, abs=1e-4)
    assert counted == 5 and 0.95 < noises[0] <= 1


def test_vp_noise_clamps_to_the_training_grid():
    abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    low, high, beyond = vp_noise(abar, torch.tensor([0.4, 998.6, 5000.0]))
    assert low == pytest.approx(0.01 / 1.01, rel=1e-3) and high == beyond > 0.99


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_a_vp_scheduler_with_flow_sigmas_counts_as_flow(name):
    scheduler = getattr(diffusers, name)(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    noises, _ = run(scheduler, 6)
    assert noises == pytest.approx(scheduler.sigmas[:6].tolist())
    assert noises == pytest.approx((scheduler.timesteps / 1000).tolist(), abs=2e-3)


@pytest.mark.parametrize(
    ("name", "kwargs"), [("FlowMatchHeunDiscreteScheduler", {}), ("HeunDiscreteScheduler", {"beta_schedule": "linear"})]
)
def test_heun_repeats_its_timesteps_and_every_step_counts(name, kwargs):
    scheduler = getattr(diffusers, name)(**kwargs)
    noises, counted = run(scheduler, 5)
    assert counted == len(scheduler.timesteps) == 9
    assert noises == sorted(noises, reverse=True)
    assert noises[1] == noises[2] and noises[3] == noises[4]  # predictor and corrector meet at one noise level


def test_noise_does_not_depend_on_the_number_of_steps():
    """Steps of 10 are a subset of those of 50, with the same noise at the same timestep."""
    levels = {}
    for steps in (10, 50):
        scheduler = diffusers.DDIMScheduler()
        scheduler.set_timesteps(steps)
        levels[steps] = dict(zip(scheduler.timesteps.tolist(), noise_levels(scheduler), strict=True))
    common = set(levels[10]) & set(levels[50])
    assert len(common) >= 5
    assert all(levels[10][t] == levels[50][t] for t in common)


def test_a_run_that_begins_late_has_less_noise():
    """Image to image sets `begin_index`: the first step is then not the first of the schedule."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    clock, _ = attached(scheduler)
    scheduler.set_timesteps(10)
    assert clock.noise == 1.0 and clock.num_steps == 10
    scheduler.set_begin_index(6)
    assert clock.noise == float(scheduler.sigmas[6]) and clock.num_steps == 4
    sample = torch.zeros(1, 4, 2, 2)
    scheduler.step(sample, scheduler.timesteps[6], sample)
    assert clock.noise == float(scheduler.sigmas[7])


def test_passes_and_steps():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    clock, ledger = attached(scheduler)
    assert clock.noise is None  # no run is open yet
    scheduler.set_timesteps(2)
    passes = []
    for t in scheduler.timesteps:
        for _ in ("cond", "uncond"):
            clock.next_pass()
            passes.append((clock.step_index, clock.pass_index))
        scheduler.step(torch.zeros(1), t, torch.zeros(1))
    assert passes == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert clock.noise is not None  # after the last step: the last level, no error
    scheduler.set_timesteps(3)  # an aborted or finished run is cleaned by the next
    assert (clock.step_index, clock.pass_index, clock.num_steps) == (0, -1, 3)
    clock.reset()
    assert clock.noise is None
    ledger.undo()


def test_the_scheduler_keeps_its_signatures_and_comes_back():
    scheduler = diffusers.DDIMScheduler()
    before = {name: inspect.signature(getattr(scheduler, name)) for name in ("step", "set_timesteps")}
    names = set(vars(scheduler))
    _, ledger = attached(scheduler)
    assert {name: inspect.signature(getattr(scheduler, name)) for name in before} == before
    ledger.undo()
    assert set(vars(scheduler)) == names
    copy.deepcopy(scheduler)


def test_a_deep_copy_of_a_scheduler_under_the_clock_is_refused():
    scheduler = diffusers.DDIMScheduler()
    _, ledger = attached(scheduler)
    with pytest.raises(RuntimeError, match=r"deep-copies its scheduler.*pipe\.dense\(\)"):
        copy.deepcopy(scheduler)
    ledger.undo()


def test_a_step_that_fails_is_not_counted():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    clock, _ = attached(scheduler)
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError):
        scheduler.step(torch.zeros(1), 3, torch.zeros(1))  # an integer index is refused
    assert clock.step_index == 0
