"""Conditions: what a family's pipeline does between a picture with its caption and the transformer's arguments."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from fastdit.core.ledger import PatchLedger
from fastdit.core.registry import Registry, discover
from fastdit.models.base import ModelFamily
from fastdit.pipelines.hosts import transformers_of
from fastdit.pipelines.loading import recipe_beside

Rows = dict[str, torch.Tensor]  # name -> (n, ...): a row for each caption or class
MODELS = "the pipeline was loaded without it: load it whole, as training makes latents and text embeddings itself"


@dataclass(frozen=True)
class Geometry:
    """Height and width of a run's samples: in pixels, and in latent pixels as the VAE gives them."""

    pixels: tuple[int, int]
    latent: tuple[int, int]


@dataclass(frozen=True)
class Conditions:
    """A family's part in training. Everything follows the family's own pipeline, so that a trained model fits into it.

    `latents(vae, pixels)` encodes pixels (B, 3, [F,] H, W) in [-1, 1] to what the pipeline's decoding undoes, and
    `packed` brings that into the transformer's form, whose `channel_axis` holds its channels. `encode(pipe, told)`
    makes the rows of captions or classes with the pipeline's `models`; `nothing(pipe)` is the one that stands for none.
    `arguments(transformer, rows, geometry, guidance)` are the transformer's keyword arguments for rows of one batch.
    `ready(transformer, ledger)` takes from a transformer what it would do under train() and the data do already.
    """

    family: str
    told: Literal["captions", "labels"]
    encode: Callable[[Any, Sequence[Any]], Rows]
    arguments: Callable[[nn.Module, Rows, Geometry, float], dict[str, Any]]
    latents: Callable[[Any, torch.Tensor], torch.Tensor]
    packed: Callable[[torch.Tensor], torch.Tensor] = lambda latents: latents
    channel_axis: int = 1
    models: tuple[str, ...] = ("text_encoder",)
    nothing: Callable[[Any], Any] = lambda pipe: ""
    ready: Callable[[nn.Module, PatchLedger], None] = lambda transformer, ledger: None
    video: bool = False
    square: bool = False


CONDITIONS: Registry[Conditions] = Registry("conditions")


def register_conditions(conditions: Conditions) -> Conditions:
    """Make a family trainable; also the way for a user's own one."""
    return CONDITIONS.register(conditions.family, conditions)


def conditions_of(family: ModelFamily) -> Conditions:
    """The conditions of a family; ValueError lists the trainable ones."""
    import fastdit.training.conditions

    discover(fastdit.training.conditions)
    if family.name not in CONDITIONS:
        raise ValueError(f"{family.title} cannot be trained here; families that can: {', '.join(CONDITIONS)}")
    return CONDITIONS[family.name]


def transformer_of(pipe: Any) -> Any:
    """The first denoising transformer of a pipeline, under any compilation."""
    transformer = next(iter(transformers_of(pipe).values()))
    return getattr(transformer, "_orig_mod", transformer)


def part(pipe: Any, name: str) -> Any:
    """A component of a pipeline; ValueError where it is missing."""
    found = getattr(pipe, name, None)
    if found is None:
        raise ValueError(f"{type(pipe).__name__} has no {name}: {MODELS}")
    return found


def call_argument(pipe: Any, name: str) -> Any:
    """What a call of the pipeline uses where the user gives nothing: the recipe's default, else the pipeline's own."""
    given = getattr(pipe, "call_defaults", None)
    if given is None:  # loaded by diffusers: what is beside the model holds nevertheless
        beside = recipe_beside(pipe.name_or_path) if getattr(pipe, "name_or_path", None) else None
        given = beside.call if beside else {}
    parameter = inspect.signature(type(pipe).__call__).parameters.get(name)
    return given.get(name, None if parameter is None else parameter.default)


def call_arguments(pipe: Any, *names: str) -> dict[str, Any]:
    """`call_argument` of several names."""
    return {name: call_argument(pipe, name) for name in names}


def vae_scale(pipe: Any) -> int:
    """Pixels on a latent pixel's side."""
    if found := getattr(pipe, "vae_scale_factor_spatial", None) or getattr(pipe, "vae_scale_factor", None):
        return int(found)
    return int(2 ** (len(part(pipe, "vae").config.block_out_channels) - 1))


def mean(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """The mean of the VAE's posterior: no draw, so that a cache says the same whoever makes it."""
    return vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode().float()


def scaled(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """What decoding z / scaling_factor undoes."""
    return mean(vae, pixels) * vae.config.scaling_factor
