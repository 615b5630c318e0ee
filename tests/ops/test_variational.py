"""The variational bound against torch's distributions, one element at a time, in float64."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from fastdit.ops.variational import binned_log_likelihood, gaussian_kl, variational_bound

STEPS = 1000
BETAS = torch.linspace(1e-4, 0.02, STEPS)


def slow(eps: float, v: float, x: float, x_t: float, t: int) -> float:
    """The term L_t of one element, straight from Ho et al. 2020 and Nichol & Dhariwal 2021."""
    beta = BETAS.double()
    bar = math.prod(1 - b for b in beta[: t + 1].tolist())
    bar_before = math.prod(1 - b for b in beta[:t].tolist())
    alpha, b = 1 - beta[t].item(), beta[t].item()
    tilde = (1 - bar_before) / (1 - bar) * b
    if t == 0:  # clipped: that of the second step
        tilde = (1 - bar) / (1 - bar * (1 - beta[1].item())) * beta[1].item()
    mean = (x_t - b / math.sqrt(1 - bar) * eps) / math.sqrt(alpha)
    true_mean = (math.sqrt(bar_before) * b * x + math.sqrt(alpha) * (1 - bar_before) * x_t) / (1 - bar)
    share = (v + 1) / 2
    deviation = math.sqrt(math.exp(share * math.log(b) + (1 - share) * math.log(tilde)))
    ours = Normal(torch.tensor(mean, dtype=torch.float64), deviation)
    if t > 0:
        true = Normal(torch.tensor(true_mean, dtype=torch.float64), math.sqrt(tilde))
        return kl_divergence(true, ours).item() / math.log(2)
    below = torch.tensor(-math.inf if x < -0.999 else x - 1 / 255).double()
    above = torch.tensor(math.inf if x > 0.999 else x + 1 / 255).double()
    low = 0.0 if x < -0.999 else ours.cdf(below).item()
    high = 1.0 if x > 0.999 else ours.cdf(above).item()
    return -math.log(high - low) / math.log(2)


@pytest.mark.parametrize("t", [0, 1, 2, 500, 999])
def test_bound_against_the_slow_form(t):
    generator = torch.Generator().manual_seed(t)
    x = torch.randn(3, 2, 2, 2, generator=generator)
    x[0, 0, 0] = torch.tensor([-1.5, 1.5])  # outer bins
    noise = torch.randn(x.shape, generator=generator)
    bar = torch.cumprod(1 - BETAS.double(), 0)[t].float()
    noisy = bar.sqrt() * x + (1 - bar).sqrt() * noise
    eps = noise + 0.3 * torch.randn(x.shape, generator=generator)
    v = torch.rand(x.shape, generator=generator) * 2 - 1
    bound = variational_bound(eps, v, x, noisy, torch.full((3,), t), BETAS)
    terms = [
        sum(slow(*(float(a) for a in element), t) for element in zip(*(y[i].flatten() for y in (eps, v, x, noisy)))) / 8
        for i in range(3)
    ]
    torch.testing.assert_close(bound, torch.tensor(terms), rtol=2e-4, atol=1e-5)


def test_samples_of_a_batch_have_their_own_step():
    x, eps, v = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2), torch.zeros(3, 4, 2, 2)
    timestep = torch.tensor([0, 7, 900])
    together = variational_bound(eps, v, x, x, timestep, BETAS)
    for i in range(3):
        alone = variational_bound(*(a[i : i + 1] for a in (eps, v, x, x, timestep)), BETAS)
        torch.testing.assert_close(together[i : i + 1], alone)


def test_exact_prediction_with_the_posterior_variance_costs_nothing():
    x, noise = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    bar = torch.cumprod(1 - BETAS, 0)[300]
    noisy = bar.sqrt() * x + (1 - bar).sqrt() * noise
    bound = variational_bound(noise, -torch.ones_like(x), x, noisy, torch.tensor([300, 300]), BETAS)
    assert bound.abs().max() < 1e-5


def test_gaussian_kl_and_bins():
    a, b = torch.randn(20), torch.randn(20)
    log_a, log_b = torch.randn(20), torch.randn(20)
    expected = kl_divergence(Normal(a, (log_a / 2).exp()), Normal(b, (log_b / 2).exp()))
    torch.testing.assert_close(gaussian_kl(a, log_a, b, log_b), expected)
    pixels = torch.linspace(-1, 1, 256, dtype=torch.float64)
    masses = binned_log_likelihood(pixels, torch.tensor(0.3).double(), torch.tensor(-1.0).double()).exp()
    assert masses.sum().item() == pytest.approx(1, abs=1e-9)


def test_gradients_stay_finite_far_from_the_bin():
    mean = torch.tensor([50.0, -50.0, 0.0], requires_grad=True)
    scale = torch.full((3,), -6.0, requires_grad=True)
    binned_log_likelihood(torch.tensor([-1.0, 1.0, 0.5]), mean, scale).sum().backward()
    assert mean.grad.isfinite().all() and scale.grad.isfinite().all()
