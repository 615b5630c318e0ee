"""What DyDiT decides before a forward: a plan, and the gates of heads and channels by the timestep."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastdit.methods.dydit.blocks import RoutedBlock
from fastdit.methods.dydit.routers import Routers
from fastdit.methods.dydit.width import Gates
from fastdit.methods.runtime import Host
from fastdit.ops.gates import open_gates, with_first_open

Form = Literal["open", "train", "mask", "slice"]
BlockGates = tuple[tuple[Gates, ...], tuple[Gates, ...]]  # of heads and of channels, for each block


@dataclass(frozen=True)
class DyDiTPlan:
    """Gates of heads and channels of each block; `keep` tokens of each sample in each block, (): the router says.

    `timestep` is given where weights follow it besides the gates.
    """

    form: Form
    heads: tuple[Gates, ...] = ()
    channels: tuple[Gates, ...] = ()
    keep: tuple[int, ...] = ()
    tied: bool = False
    timestep: float | None = None


class GateTables:
    """Gates of each block by timestep, decided once for each of a run's timesteps, without class or text."""

    def __init__(self, host: Host, blocks: Sequence[RoutedBlock], routers: Routers) -> None:
        self.host, self.blocks, self.routers = host, blocks, routers
        self.known: dict[float, BlockGates] = {}
        self.version = 0

    @torch.no_grad()
    def at(self, timestep: float) -> BlockGates:
        """The gates at a timestep, as the transformer takes it."""
        version = sum(parameter._version for parameter in self.routers.parameters())
        if version != self.version:  # they were trained on meanwhile
            self.known, self.version = {}, version
        if timestep not in self.known:
            self.known[timestep] = self.of(self.embedding(timestep))
        return self.known[timestep]

    def embedding(self, timestep: float) -> Tensor:
        """The embedded timestep (1, C) in float32: always of one sample, so that no gate flips with the batch size."""
        family, module = self.host.family, self.host.module
        when = torch.tensor([timestep], dtype=torch.float32)
        assert family.time_embedder is not None
        project, embedder = family.time_embedder(module)
        if any("_diffusers_hook" in vars(part) for part in embedder.modules()):  # weights that hooks cast on their way
            dtype = next((p.dtype for p in module.parameters() if p.dtype.itemsize > 1), torch.float32)
            return family.time_embedding(module, when, dtype).detach().float().cpu()
        weights = {name: parameter.detach().float().cpu() for name, parameter in embedder.named_parameters()}
        projected = project(when * family.time_factor).float()
        embedded: Tensor = functional_call(embedder, weights, (projected,))
        return embedded.detach()

    @torch.no_grad()
    def of(self, embedding: Tensor) -> BlockGates:
        """The gates at an embedded timestep (1, C)."""

        def gates(router: nn.Module | None) -> Gates:
            if router is None:
                return (True,)
            weight = next(router.parameters())
            logits = router(embedding.to(weight.device, weight.dtype))
            return tuple(with_first_open(open_gates(logits))[0].tolist())

        each: Any = self.routers.blocks
        return tuple(gates(block.heads) for block in each), tuple(gates(block.channels) for block in each)

    def expected(self, shares: Tensor | None) -> BlockGates:
        """Without a timestep, for a prediction: as many gates as these shares (L, 3), else the routers' own at none."""
        if shares is None or self.routers.blocks[0].heads is None:
            return self.of(torch.zeros(1, self.blocks[0].embedding))
        heads = tuple(_first(float(share), b.heads) for share, b in zip(shares[:, 0], self.blocks, strict=True))
        channels = tuple(_first(float(share), b.groups) for share, b in zip(shares[:, 1], self.blocks, strict=True))
        return heads, channels


def _first(share: float, parts: int) -> Gates:
    opened = max(1, round(share * parts))
    return (True,) * opened + (False,) * (parts - opened)
