"""The variational bound of a diffusion model that also predicts its variances (Nichol & Dhariwal 2021), in bits.

Steps t = 0 ... T - 1 as in code: t = 0 removes the last noise. All tensors of one sample or a batch, `timestep` (B,).
"""

import math

import torch
from torch.nn import functional as F


def variational_bound(
    noise_prediction: torch.Tensor,
    variance_prediction: torch.Tensor,
    clean: torch.Tensor,
    noisy: torch.Tensor,
    timestep: torch.Tensor,
    betas: torch.Tensor,
) -> torch.Tensor:
    """Term L_t of the bound (B,), in bits a dimension: KL(q(x_t-1 | x_t, x_0) || p(x_t-1 | x_t)), at t = 0 -log p.

    All of shape (B, C, ...). `variance_prediction` v lies in [-1, 1] for a variance between the two bounds: the log
    variance is f log beta_t + (1 - f) log beta~_t with f = (v + 1) / 2 (equation 15). Beta~_0 is 0, so beta~_1 stands
    in for it. The mean is the posterior's for the clean sample that the noise prediction means.
    """
    betas = betas.double()  # (T,)
    kept = torch.cumprod(1 - betas, 0)  # alphas_cumprod
    before = F.pad(kept[:-1], (1, 0), value=1.0)  # of the step before
    posterior = betas * (1 - before) / (1 - kept)  # beta~
    posterior = torch.cat([posterior[1:2], posterior[1:]])
    of_clean = betas * before.sqrt() / (1 - kept)
    of_noisy = (1 - betas).sqrt() * (1 - before) / (1 - kept)

    def at(values: torch.Tensor) -> torch.Tensor:
        return values.to(timestep.device)[timestep].float().reshape(-1, *[1] * (clean.ndim - 1))

    predicted = at(kept.rsqrt()) * noisy - at((1 / kept - 1).sqrt()) * noise_prediction
    mean = at(of_clean) * predicted + at(of_noisy) * noisy
    true_mean = at(of_clean) * clean + at(of_noisy) * noisy
    share = (variance_prediction + 1) / 2
    log_variance = share * at(betas.log()) + (1 - share) * at(posterior.log())
    kl = gaussian_kl(true_mean, at(posterior.log()), mean, log_variance)
    likelihood = binned_log_likelihood(clean, mean, log_variance / 2)
    first = (timestep == 0).reshape(-1, *[1] * (clean.ndim - 1))
    return torch.where(first, -likelihood, kl).flatten(1).mean(1) / math.log(2)


def gaussian_kl(
    mean: torch.Tensor, log_variance: torch.Tensor, other_mean: torch.Tensor, other_log_variance: torch.Tensor
) -> torch.Tensor:
    """KL(N(mean, variance) || N(other mean, other variance)) of each element, in nats."""
    distance = (mean - other_mean) ** 2 * torch.exp(-other_log_variance)
    ratio = log_variance - other_log_variance
    return 0.5 * (torch.exp(ratio) - ratio - 1 + distance)


def binned_log_likelihood(
    clean: torch.Tensor, mean: torch.Tensor, log_deviation: torch.Tensor, levels: int = 256
) -> torch.Tensor:
    """log of N(mean, deviation)'s mass on each element's bin, one of `levels` on [-1, 1] (Ho et al. 2020, equation 13).

    The outer bins reach to infinity. DiT was trained with this on latents, as if they were pixels.
    """
    half = 1 / (levels - 1)
    scale = torch.exp(-log_deviation)
    upper, lower = scale * (clean - mean + half), scale * (clean - mean - half)
    above, below = torch.special.log_ndtr(upper), torch.special.log_ndtr(-lower)
    inside = torch.special.ndtr(upper) - torch.special.ndtr(lower)
    middle = inside.clamp(min=1e-12).log()
    return torch.where(clean < -0.999, above, torch.where(clean > 0.999, below, middle))
