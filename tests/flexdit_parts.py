"""For tests of FlexDiT: models of six blocks, inputs for them, and a runtime that only decides."""

import diffusers
import torch
from tiny import noise, weights

from fastdit import FlexDiT
from fastdit.core.layout import TokenLayout
from fastdit.methods.flexdit.method import FlexDiTRuntime
from fastdit.methods.runtime import Forward, Host
from fastdit.models.base import load_families

SIX = FlexDiT(pooling=1, modules=1, sparse=1, dense=1, rate=0.6)  # of six blocks the last is dense too


def make_dit(layers=6):
    return weights(
        diffusers.DiTTransformer2DModel, num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8,
        num_layers=layers, sample_size=16, patch_size=2, num_embeds_ada_norm=1000,
    )  # fmt: skip


def make_pixart(layers=6):
    return weights(
        diffusers.PixArtTransformer2DModel, num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8,
        num_layers=layers, cross_attention_dim=32, caption_channels=24, sample_size=16, patch_size=2,
        use_additional_conditions=False,
    )  # fmt: skip


def dit_inputs(timesteps=(500, 500), size=(16, 16)):
    batch = len(timesteps)
    return {
        "hidden_states": noise(batch, 4, *size),
        "timestep": torch.tensor(timesteps),
        "class_labels": torch.arange(1, batch + 1),
    }


def pixart_inputs(timesteps=(500, 500), size=(16, 16)):
    batch = len(timesteps)
    mask = torch.ones(batch, 5)
    mask[-1, 3:] = 0
    return {
        "hidden_states": noise(batch, 4, *size),
        "encoder_hidden_states": noise(batch, 5, 24, seed=1),
        "encoder_attention_mask": mask,
        "timestep": torch.tensor(timesteps),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def runtime_of(transformer) -> FlexDiTRuntime:
    return transformer._fastdit_engine.attached[0].runtimes[0]


def shake(runtime):
    """Parameters as if trained."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in runtime.module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def runtime_alone(method, layers=28, family="dit"):
    """A runtime that only decides, on the meta device."""
    with torch.device("meta"):
        model = diffusers.DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=4, num_layers=layers, sample_size=16, patch_size=2
        )
    return FlexDiTRuntime(method, Host("transformer", model, load_families()[family]))


def planned(runtime, *timesteps, grid=(16, 16), training=False):
    forward = Forward(TokenLayout(1, *grid), len(timesteps), 0.5, timestep=torch.tensor(timesteps), training=training)
    return runtime.plan(forward).small
