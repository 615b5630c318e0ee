"""ModelFamily: everything fastdit must know about a diffusers transformer class, as data."""

import inspect
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from operator import attrgetter
from typing import Any, Literal

import torch
from torch import nn

from fastdit.core.clock import vp_noise
from fastdit.core.layout import TokenLayout
from fastdit.core.registry import Registry, discover

Arguments = Mapping[str, Any]

OFFERS = {  # what a family may offer to methods
    "tokens": "image or video tokens whose self-attention may run on fewer of them",
    "one_sdpa": "a processor that makes exactly one attention call, for what works inside that call",
    "flow": "a prediction of the velocity (flow matching), on which a sample moves in straight lines",
    "video": "attention over frames, rows and columns at once",
    "cross_attention": "an attention to the text apart from self-attention, whose queries may be fewer",
    "dynamic_width": "self-attention and feed-forward layers whose heads and channels may be left out",
    "dynamic_tokens": "a feed-forward layer, or a whole parallel branch, that tokens may pass by",
    "batched_guidance": "both halves of the guidance in one batch, told apart by their inputs",
    "token_grid": "blocks without rotary rows that may run on another grid of tokens, with keys of a second one",
}


@dataclass(frozen=True)
class BlockGroup:
    """One ModuleList of like transformer blocks.

    `attention` is the path of the self-attention inside a block, `cross_attention` that of the attention to the text
    where it is one of its own; `hidden_states` the block's argument of that name, `output` the index of the hidden
    states in a tuple that it returns. `rotary`, `per_token` and `mask` name the block's arguments that hold rotary
    rows, a (B, N, ...) modulation and a mask over all tokens, where the block has them.

    `attention_norm` is the path of the norm before self-attention. `feed_forward` is that of diffusers' FeedForward,
    `feed_forward_norm` that of the norm whose input is the stream that the feed-forward's result is added to. In a
    `parallel` block attention and MLP run side by side: `proj_mlp`, `act_mlp`, and `proj_out` over both results.
    """

    path: str
    attention: str
    output: int = 0
    hidden_states: str = "hidden_states"
    rotary: str | None = None
    per_token: str | None = None
    mask: str | None = None
    cross_attention: str | None = None
    attention_norm: str = "norm1"
    feed_forward: str | None = None
    feed_forward_norm: str | None = None
    parallel: bool = False


@dataclass(frozen=True)
class Rotary:
    """How the self-attention takes rotary rows: argument name, and the axis of the rows (1: behind a batch axis)."""

    argument: str
    axis: int = 0


@dataclass(frozen=True)
class ModelFamily:
    """A diffusers transformer class, described.

    `layout(transformer, arguments)` reads the real geometry from a forward's arguments; `inputs(config, batch, frames,
    height, width)` makes inputs of the right shapes for a picture or video of that many latent frames, rows and
    columns (`fastdit profile` runs them on the meta device). `offers` is what methods may ask for. `patch(config)` is
    the side of a patch in latent pixels; `defaults(pipe)` gives call arguments that the pipeline needs for this model.
    `ready_skeleton` changes what cannot run on the meta device in the private copy that MACs are counted on. `quirks`
    are told to the user by `fastdit models`.

    `time_embedder(transformer)` is (projection, embedder): what embeds the timestep alone, without class, text or
    guidance; `time_factor` is what the transformer multiplies its timestep by before. `guided(transformer, arguments)`
    tells whether the batch of a forward is two halves of one guidance, of which `conditional_half` (0 or 1) has the
    condition; who offers "batched_guidance" gives both. `norm_over_heads`: the norms of queries and keys run over all
    heads at once. `text_routing`: what tokens may pass by hangs on the text as well.
    """

    name: str
    title: str
    transformer_class: type[nn.Module]
    groups: tuple[BlockGroup, ...]
    layout: Callable[[nn.Module, Arguments], TokenLayout]
    inputs: Callable[..., dict[str, Any]]
    offers: frozenset[str]
    rotary: Rotary | None = None
    guidance: Literal["batched", "two passes", "embedded"] = "batched"
    prediction: Literal["flow", "epsilon"] = "flow"
    timestep_scale: float = 1000.0
    timestep_rises: bool = False  # the timestep grows from 0 to 1 while the noise falls (Mochi)
    flow_shift: float = 1.0
    causal_frames: bool = False  # latent frame 0 stands for one picture, all others for several (a causal VAE)
    patch: Callable[[Any], int] = lambda config: config.patch_size
    defaults: Callable[[Any], dict[str, Any]] = lambda pipe: {}
    ready_skeleton: Callable[[nn.Module], None] = lambda skeleton: None
    time_embedder: Callable[[nn.Module], tuple[nn.Module, nn.Module]] | None = None
    time_factor: float = 1.0
    guided: Callable[[nn.Module, Arguments], bool] = lambda transformer, arguments: False
    conditional_half: int = 0
    norm_over_heads: bool = False
    text_routing: bool = False
    called_alone: tuple[str, ...] = ()  # modules inside of blocks that the transformer calls besides the blocks
    quirks: tuple[str, ...] = field(default=())

    def blocks(self, transformer: nn.Module) -> list[tuple[str, nn.Module, BlockGroup]]:
        """(name, block, group) of every transformer block, in order of execution."""
        return [
            (f"{group.path}.{index}", block, group)
            for group in self.groups
            for index, block in enumerate(attrgetter(group.path)(transformer))
        ]

    def attentions(self, transformer: nn.Module) -> list[tuple[str, nn.Module]]:
        """(name, self-attention module) of every block, in order."""
        return [
            (f"{name}.{group.attention}", attrgetter(group.attention)(block))
            for name, block, group in self.blocks(transformer)
        ]

    def cross_attentions(self, transformer: nn.Module) -> list[tuple[str, nn.Module]]:
        """(name, cross-attention module) of every block that has one, in order."""
        return [
            (f"{name}.{group.cross_attention}", attrgetter(group.cross_attention)(block))
            for name, block, group in self.blocks(transformer)
            if group.cross_attention
        ]

    @cached_property
    def _parameters(self) -> list[str]:
        return list(inspect.signature(self.transformer_class.forward).parameters)[1:]

    def arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of a transformer forward by name."""
        return {**dict(zip(self._parameters, args, strict=False)), **kwargs}

    def timestep(self, arguments: Arguments) -> torch.Tensor:
        """The timestep of each sample (B,) as the transformer takes it; of tokens that differ, the noisiest counts."""
        batch = arguments["hidden_states"].shape[0]
        timestep = torch.as_tensor(arguments["timestep"]).detach()
        if timestep.ndim == 2:  # one for each token (Wan 2.2 TI2V)
            timestep = timestep.amax(1)
        return timestep.reshape(-1).expand(batch)

    def time_embedding(
        self, transformer: nn.Module, timestep: torch.Tensor, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """The embedding of timesteps (B,) alone, (B, C), where its weights are; `dtype` is the model's in computing."""
        assert self.time_embedder is not None
        project, embedder = self.time_embedder(transformer)
        weight = next(embedder.parameters())
        # hooks that cast weights on their way bring them to the model's dtype
        hooked = any("_diffusers_hook" in vars(module) for module in embedder.modules())
        projected = project(timestep.to(weight.device) * self.time_factor)
        embedded: torch.Tensor = embedder(projected.to(dtype if hooked and dtype is not None else weight.dtype))
        return embedded

    def time(self, timestep: torch.Tensor) -> torch.Tensor:
        """Timesteps as shares t / T in [0, 1], where 1 is pure noise."""
        scale = self.timestep_scale if self.prediction == "flow" else 1000.0
        share = (timestep.float() / scale).clamp(0, 1)
        return 1 - share if self.timestep_rises else share

    def time_of(self, noise: float) -> float:
        """The share t / T at a noise level in [0, 1], where the timestep itself is not known."""
        if self.prediction == "flow":
            return noise
        return min(bisect_left(_noise_of_timesteps(), noise), 999) / 1000

    def noise(self, arguments: Arguments) -> float:
        """Noise in [0, 1] by the timestep of a forward outside any run, in this family's own convention."""
        timestep = torch.as_tensor(arguments["timestep"]).float().max().cpu()
        if self.prediction == "flow":
            share = min(1.0, float(timestep) / self.timestep_scale)
            return 1 - share if self.timestep_rises else share
        betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)  # DiT's and PixArt's training schedule
        return vp_noise(torch.cumprod(1 - betas, 0), timestep[None])[0]

    def clean(self, latents: torch.Tensor, prediction: torch.Tensor, noise: float) -> torch.Tensor:
        """The clean sample that a flow model's prediction means, in float32: latents - noise * velocity.

        The velocity points from data to noise, and the other way where the timestep rises.
        """
        sign = -1 if self.timestep_rises else 1
        return latents.float() - sign * noise * prediction.float()


@cache
def _noise_of_timesteps() -> list[float]:
    """Noise of each of the 1000 timesteps of DiT's and PixArt's training schedule, rising."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    return vp_noise(torch.cumprod(1 - betas, 0), torch.arange(1000))


FAMILIES: Registry[ModelFamily] = Registry("model family")


def register_family(family: ModelFamily) -> ModelFamily:
    """Make a family known; also the way for a user's own transformer class."""
    FAMILIES.register(family.name, family)
    return family


def load_families() -> Registry[ModelFamily]:
    """All families, the package's own ones imported (this imports diffusers)."""
    import fastdit.models

    discover(fastdit.models)
    return FAMILIES


def family_of(transformer: nn.Module) -> ModelFamily:
    """The family of a transformer, found by class object along its MRO; ValueError lists the known ones."""
    transformer = getattr(transformer, "_orig_mod", transformer)
    by_class = {family.transformer_class: family for _, family in load_families().items()}
    for cls in type(transformer).__mro__:
        if cls in by_class:
            return by_class[cls]
    known = ", ".join(sorted(cls.__name__ for cls in by_class))
    raise ValueError(
        f"no model family describes {type(transformer).__name__}; known: {known}. Describe a new one with "
        "fastdit.models.ModelFamily(...) and fastdit.models.register_family(...), as examples/own_family.py does"
    )
