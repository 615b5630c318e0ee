"""Guidance of the first latent channels only, as DiT's authors sample."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fastdit.core.ledger import PatchLedger
from fastdit.methods.runtime import Host
from fastdit.ops.guidance import unguided_beyond


@dataclass
class GuidedChannels:
    """Changes a transformer's output so that the pipeline's own guidance leaves channels from `channels` on alone."""

    channels: int | None
    guided: bool = False  # the forward under way holds the two halves of one guidance
    conditional: int = 0  # which half has the condition

    def start(self) -> None:
        self.guided = False

    def install(self, host: Host, ledger: PatchLedger) -> None:
        self.conditional = host.family.conditional_half
        if self.channels is not None:
            hook = torch.compiler.disable(self._after)
            ledger.add_hook(host.module.register_forward_hook(hook), f"{host.label}'s hook of guided channels")

    def _after(self, module: nn.Module, args: Any, output: Any) -> Any:
        if not self.guided:
            return None
        assert self.channels is not None
        if isinstance(output, tuple):
            return (unguided_beyond(output[0], self.channels, self.conditional), *output[1:])
        output.sample = unguided_beyond(output.sample, self.channels, self.conditional)
        return output
