"""Objectives against diffusers' schedulers and slow formulas."""

import pytest
import tiny
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from fastdit.models.base import family_of, load_families
from fastdit.ops.variational import variational_bound
from fastdit.training.objectives import OBJECTIVES, objective_of

TIME = torch.tensor([0.0, 0.25, 0.5, 0.999])


def parts(channels=4):
    return tiny.noise(4, channels, 3, 3, seed=1), tiny.noise(4, channels, 3, 3, seed=2)


def of(pipe):
    return objective_of(pipe, pipe.transformer, family_of(pipe.transformer))


# --- which one ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (tiny.make_dit, "epsilon with learned sigma"),
        (tiny.make_pixart, "epsilon with learned sigma"),
        (tiny.make_flux, "flow"),
        (tiny.make_wan, "flow"),
        (tiny.make_hunyuan, "flow"),
        (tiny.make_mochi, "flow"),
    ],
)
def test_chosen_by_scheduler_and_family(make, name):
    assert of(make()).name == name


def test_the_schedulers_config_goes_before_the_family():
    pipe = tiny.make_pixart()  # a family that predicts noise
    pipe.scheduler = DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    flow = of(pipe)
    latents, noise = parts()
    assert flow.name == "flow"
    assert flow.noisy(latents, noise, TIME)[1].tolist() == pytest.approx(
        (TIME * 1000).tolist()
    )  # timestep = 1000 sigma
    doubled = torch.cat([noise - latents, torch.full_like(noise, 100.0)], 1)  # the pipeline drops the second half
    assert flow.loss(doubled, latents, noise, TIME).abs().max() == 0


def test_noise_alone_where_no_channels_are_left_for_variances():
    pipe = tiny.make_dit()
    pipe.transformer.register_to_config(out_channels=4)
    assert of(pipe).name == "epsilon"


def test_refused_with_the_known_ones():
    pipe = tiny.make_dit()
    pipe.scheduler = DDIMScheduler(prediction_type="v_prediction")
    with pytest.raises(ValueError, match=r"DDIMScheduler has prediction_type='v_prediction'.*known objectives: eps"):
        of(pipe)
    with pytest.raises(ValueError, match="unknown weighting 'snr'; known: min-snr, none"):
        of(tiny.make_flux()).loss(*parts(), parts()[0], TIME, "snr")


# --- flow -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wan", "flux", "mochi", "hunyuan_video"])
def test_flow_goes_along_the_scheduler(name):
    """From x_t, a step of the scheduler to sigma 0 along a prediction without loss arrives at x."""
    family = load_families()[name]
    flow = OBJECTIVES["flow"](None, family, 5.0)
    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=family.timestep_rises, shift=2.0)
    scheduler.set_timesteps(sigmas=[0.6])
    latents, noise = parts()
    sigma = 1 - scheduler.sigmas[0] if family.timestep_rises else scheduler.sigmas[0]
    time = sigma.expand(4)
    noisy, timestep = flow.noisy(latents, noise, time)
    torch.testing.assert_close(timestep / family.timestep_scale * 1000, scheduler.timesteps.expand(4))
    torch.testing.assert_close(family.time(timestep), time)
    prediction = (noise - latents) * (-1 if family.timestep_rises else 1)
    assert flow.loss(prediction, latents, noise, time).tolist() == [0.0] * 4
    torch.testing.assert_close(scheduler.step(prediction, scheduler.timesteps[0], noisy).prev_sample, latents)
    torch.testing.assert_close(family.clean(noisy, prediction, float(sigma)), latents)
    off = flow.loss(prediction + torch.arange(4.0).reshape(4, 1, 1, 1), latents, noise, time)
    torch.testing.assert_close(off, torch.tensor([0.0, 1.0, 4.0, 9.0]))


# --- noise ----------------------------------------------------------------------------------------------------------


def epsilon(scheduler=None, name="epsilon", gamma=5.0):
    return OBJECTIVES[name](scheduler or DDPMScheduler(), load_families()["dit"], gamma)


def test_epsilon_is_the_schedulers_noise():
    scheduler, objective = DDPMScheduler(), epsilon()
    latents, noise = parts()
    noisy, timestep = objective.noisy(latents, noise, TIME)
    assert objective.steps == 1000 and timestep.tolist() == [0, 250, 500, 999] and timestep.dtype == torch.long
    torch.testing.assert_close(noisy, scheduler.add_noise(latents, noise, timestep))
    assert objective.loss(noise, latents, noise, TIME).abs().max() == 0
    off = objective.loss(noise + torch.arange(4.0).reshape(4, 1, 1, 1), latents, noise, TIME)
    torch.testing.assert_close(off, torch.tensor([0.0, 1.0, 4.0, 9.0]))


def test_every_step_survives_the_way_through_float32():
    objective = epsilon()
    time = torch.arange(1000) / 1000
    assert objective.noisy(time[:, None], time[:, None], time)[1].tolist() == list(range(1000))
    assert objective.noisy(torch.zeros(2, 1), torch.zeros(2, 1), torch.tensor([1.0, 0.0019]))[1].tolist() == [999, 1]


def test_learned_sigma_adds_the_bound_and_only_for_the_variances():
    scheduler = DDPMScheduler()
    objective, plain = epsilon(name="epsilon with learned sigma"), epsilon()
    latents, noise = parts()
    prediction = tiny.noise(4, 8, 3, 3, seed=3).requires_grad_()
    loss = objective.loss(prediction, latents, noise, TIME)
    noisy, timestep = objective.noisy(latents, noise, TIME)
    bound = variational_bound(prediction[:, :4], prediction[:, 4:], latents, noisy, timestep, scheduler.betas)
    torch.testing.assert_close(loss, plain.loss(prediction, latents, noise, TIME) + bound)
    loss.sum().backward()
    alone = prediction.detach()[:, :4].requires_grad_()
    plain.loss(alone, latents, noise, TIME).sum().backward()
    torch.testing.assert_close(prediction.grad[:, :4], alone.grad)
    assert (prediction.grad[:, 4:] != 0).any(dim=(1, 2, 3)).all()


def test_the_bound_weighs_as_many_thousandths_as_there_are_steps():
    half = DDPMScheduler(num_train_timesteps=500)
    objective, plain = epsilon(half, "epsilon with learned sigma"), epsilon(half)
    latents, noise = parts()
    prediction = tiny.noise(4, 8, 3, 3, seed=3)
    noisy, timestep = objective.noisy(latents, noise, TIME)
    bound = variational_bound(prediction[:, :4], prediction[:, 4:], latents, noisy, timestep, half.betas)
    found = objective.loss(prediction, latents, noise, TIME) - plain.loss(prediction, latents, noise, TIME)
    torch.testing.assert_close(found, bound / 2)


# --- weighting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [5.0, 1.0])
def test_min_snr_weighs_the_clean_sample_by_min_of_snr_and_gamma(gamma):
    """Hang et al. 2023, section 3.4: weight min(SNR, gamma) on the squared error of the clean sample."""
    latents, noise = parts()
    time = torch.tensor([0.02, 0.25, 0.5, 0.9])
    off = tiny.noise(4, 4, 3, 3, seed=5)

    flow = OBJECTIVES["flow"](None, load_families()["wan"], gamma)
    noisy, _ = flow.noisy(latents, noise, time)
    sigma = time.reshape(4, 1, 1, 1)
    error = ((noisy - sigma * (noise - latents + off) - latents) ** 2).flatten(1).mean(1)
    snr = ((1 - time) / time) ** 2
    weighted = flow.loss(noise - latents + off, latents, noise, time, "min-snr")
    torch.testing.assert_close(weighted, snr.clamp(max=gamma) * error, rtol=1e-3, atol=1e-6)

    objective = epsilon(gamma=gamma)
    noisy, timestep = objective.noisy(latents, noise, time)
    kept = DDPMScheduler().alphas_cumprod[timestep].reshape(4, 1, 1, 1)
    clean = (noisy - (1 - kept).sqrt() * (noise + off)) / kept.sqrt()
    snr = (kept / (1 - kept)).flatten()
    assert (snr > gamma).any() and (snr < gamma).any()
    weighted = objective.loss(noise + off, latents, noise, time, "min-snr")
    torch.testing.assert_close(
        weighted, snr.clamp(max=gamma) * ((clean - latents) ** 2).flatten(1).mean(1), rtol=1e-3, atol=1e-6
    )


def test_min_snr_leaves_the_bound_alone():
    objective = epsilon(name="epsilon with learned sigma")
    latents, noise = parts()
    exact = torch.cat([noise, tiny.noise(4, 4, 3, 3, seed=3)], 1)  # no error to weigh
    bare, weighted = (objective.loss(exact, latents, noise, TIME, kind) for kind in ("none", "min-snr"))
    assert (bare[:2] > 0).all() and torch.equal(bare, weighted)


def test_packed_latents_and_videos_give_one_loss_a_sample():
    flow = of(tiny.make_flux())
    for shape in ((2, 9, 16), (2, 4, 3, 5, 5)):
        latents, noise = tiny.noise(*shape, seed=1), tiny.noise(*shape, seed=2)
        noisy, timestep = flow.noisy(latents, noise, torch.tensor([0.3, 0.8]))
        assert noisy.shape == shape and timestep.tolist() == pytest.approx([0.3, 0.8])
        assert flow.loss(noise - latents + 2, latents, noise, TIME[:2]).tolist() == pytest.approx([4.0, 4.0])


def test_losses_are_float32_whatever_the_prediction_is():
    objective = epsilon(name="epsilon with learned sigma")
    latents, noise = parts()
    for kind in ("none", "min-snr"):
        assert objective.loss(torch.zeros(4, 8, 3, 3).bfloat16(), latents, noise, TIME, kind).dtype == torch.float32
