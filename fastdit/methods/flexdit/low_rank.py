"""An adapter's low-rank changes at inference: added to the outputs of the host's layers, each sample by its timestep.

Not folded into the weights, since at rank 16 the addition costs 3 % of a layer, samples may have timesteps of their
own, and weights that are offloaded, cast or quantised on their way are left alone.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastdit.core.ledger import PatchLedger
from fastdit.methods.lora import MIXER, LowRank
from fastdit.methods.runtime import Forward, Host
from fastdit.ops.low_rank import low_rank_change, up_shares


@dataclass
class LowRankLayers:
    """The changed layers of a host, and the shares (B, K) of their up matrices in the forward to come."""

    changes: LowRank
    host: Host
    shares: Tensor | None = None

    def install(self, ledger: PatchLedger) -> None:
        """Stand in for the layers' forwards."""
        for path in sorted(self.changes.paths):
            layer = self.host.module.get_submodule(path)
            ledger.set_attribute(layer, "forward", _Changed(layer, path, self), f"{path}.forward")

    def begin(self, forward: Forward, on_meta: bool) -> None:
        """A forward is about to begin; ValueError under training, which would not reach the factors."""
        if forward.training:
            raise ValueError("flexdit: the low-rank changes of a checkpoint are for inference, not trained further")
        device = torch.device("meta") if on_meta else forward.device
        if device is not None:
            self.changes.to(device)
        if not self.changes.by_time:
            return
        weight, bias = (self.changes.state[name] for name in MIXER)
        if on_meta or forward.timestep is None or forward.timestep.is_meta:  # a prediction from the config alone
            self.shares = torch.empty(forward.batch, len(weight), device="meta")
            return
        embedding = self.host.family.time_embedding(self.host.module, forward.timestep, forward.dtype)  # (B, C)
        self.shares = up_shares(embedding.to(weight.device), weight, bias)


class _Changed:
    """Stands for a layer's forward: its output, and the change."""

    def __init__(self, layer: nn.Module, path: str, layers: LowRankLayers) -> None:
        functools.update_wrapper(self, layer.forward)
        self.original, self.path, self.layers = layer.forward, path, layers

    def __call__(self, hidden_states: Tensor) -> Tensor:
        state = self.layers.changes.state
        change = low_rank_change(
            hidden_states, state[f"{self.path}.down"], state[f"{self.path}.up"], self.layers.shares
        )
        return self.original(hidden_states) + change
