"""Low-rank changes of the host's linear layers: trained beside them, and folded into their weights at inference.

The format, of an adapter's "lora.safetensors": `<layer>.down` (r, in) and `<layer>.up` (K, out, r) for each layer, and
where there are K > 1 up matrices, `mixer.weight` (K, C) and `mixer.bias` (K), which give their shares from the embedded
timestep E_t (C): dW(t) = sum_k a_k(t) B_k A with a(t) = softmax(W E_t + b). K = 1 is a plain LoRA.

TD-LoRA of DyDiT++ (arXiv 2504.06803) is described there without equations: this is a design in its spirit.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastdit.core.ledger import PatchLedger
from fastdit.core.weights import plain_name
from fastdit.ops.low_rank import folded_change, low_rank_change, up_shares

MIXER = ("mixer.weight", "mixer.bias")


class LowRank:
    """The changes of an adapter, to be folded. `by_time`: they hang on the timestep; `paths` names the layers."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state = dict(state)
        self.paths = frozenset(name.rpartition(".")[0] for name in state if name not in MIXER)
        counts = set()
        for path in sorted(self.paths):
            down, up = self.state.get(f"{path}.down"), self.state.get(f"{path}.up")
            if down is None or up is None or down.ndim != 2 or up.ndim != 3 or up.shape[2] != len(down):
                raise ValueError(f"the low-rank change of {path} must be down (r, in) and up (K, out, r)")
            counts.add(len(up))
        if len(counts) != 1:
            raise ValueError(f"low-rank changes need one number of up matrices, found {sorted(counts) or 'no changes'}")
        self.by_time = counts.pop() > 1
        if self.by_time != all(name in self.state for name in MIXER):
            raise ValueError(f"{' and '.join(MIXER)} belong to changes with more than one up matrix, and to no others")

    def delta(self, path: str, embedding: Tensor | None = None) -> Tensor:
        """The change (out, in) of a layer's weight in float32, at the timestep embedded as (1, C) if it hangs on it."""
        shares = None
        if self.by_time:
            if embedding is None or len(embedding) != 1:
                raise ValueError(
                    "low-rank changes that follow the timestep are folded for one embedded timestep (1, C)"
                )
            weight, bias = (self.state[name] for name in MIXER)
            shares = up_shares(embedding.to(weight.device), weight, bias)[0]  # (K,)
        return folded_change(self.state[f"{path}.down"], self.state[f"{path}.up"], shares)

    def to(self, device: torch.device | str) -> "LowRank":
        """Hold the factors on a device, where the changes are then computed."""
        self.state = {name: value.to(device) for name, value in self.state.items()}
        return self


class TimeLoRA(nn.Module):
    """Low-rank changes under training: at first none, as the up matrices (`ups` for each layer) are zero.

    `width` is that of the embedded timestep, which whoever drives a forward gives to `set_embedding` before it.
    """

    def __init__(self, host: nn.Module, paths: Sequence[str], rank: int, ups: int, width: int) -> None:
        super().__init__()
        self.paths = tuple(paths)
        layers = [_linear(host, path) for path in self.paths]
        self.down = nn.ParameterList(torch.empty(rank, layer.in_features) for layer in layers)
        self.up = nn.ParameterList(torch.zeros(ups, layer.out_features, rank) for layer in layers)
        for down in self.down:
            nn.init.kaiming_uniform_(down, a=math.sqrt(5))
        # not zero: with equal shares all up matrices would get equal gradients, and stay equal for good
        self.mixer = nn.Linear(width, ups) if ups > 1 else None
        self.embedding: Tensor | None = None

    def set_embedding(self, embedding: Tensor) -> None:
        """The embedded timestep of each sample (B, C), or of all (1, C), of the forward to come and its backward."""
        self.embedding = embedding

    def install(self, host: nn.Module, ledger: PatchLedger) -> None:
        """Have the layers of the host give their changed outputs."""
        for index, path in enumerate(self.paths):
            layer = _linear(host, path)
            ledger.set_attribute(layer, "forward", _Changed(layer, self, index), f"{path}.forward")

    def change(self, index: int, hidden_states: Tensor) -> Tensor:
        """The change (B, ..., out) of a layer's output, from its input (B, ..., in)."""
        shares = None
        if self.mixer is not None:
            if self.embedding is None:
                raise RuntimeError("TimeLoRA needs the embedded timestep: call set_embedding(...) before the forward")
            if len(self.embedding) not in (1, len(hidden_states)):
                raise RuntimeError(
                    f"TimeLoRA: {self.paths[index]} sees a batch of {len(hidden_states)}, and set_embedding(...) was "
                    f"given {len(self.embedding)} timesteps"
                )
            # anew for each layer, as gradient checkpointing runs layers twice and frees what they share
            shares = up_shares(self.embedding, self.mixer.weight, self.mixer.bias)  # (B, K)
        return low_rank_change(hidden_states, self.down[index], self.up[index], shares)

    def lora_state(self) -> dict[str, Tensor]:
        """The parameters in the format of an adapter."""
        state = {f"{path}.down": value.detach() for path, value in zip(self.paths, self.down, strict=True)}
        state |= {f"{path}.up": value.detach() for path, value in zip(self.paths, self.up, strict=True)}
        if self.mixer is not None:
            state |= dict(zip(MIXER, (self.mixer.weight.detach(), self.mixer.bias.detach()), strict=True))
        return state


class _Changed:
    """Stands for a layer's forward: its output, and the change."""

    def __init__(self, layer: nn.Linear, changes: TimeLoRA, index: int) -> None:
        functools.update_wrapper(self, layer.forward)
        self.original, self.changes, self.index = layer.forward, changes, index

    def __call__(self, hidden_states: Tensor) -> Tensor:
        output = self.original(hidden_states)
        return output + self.changes.change(self.index, hidden_states).to(output.dtype)


def lora_state_of_peft(model: nn.Module, adapter_name: str = "default") -> dict[str, Tensor]:
    """The LoRA that peft put into a model, in the format of an adapter (K = 1); its scaling is folded into up."""
    state: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        layer: Any = module
        if adapter_name not in getattr(module, "lora_A", {}):
            continue
        down, up = layer.lora_A[adapter_name].weight, layer.lora_B[adapter_name].weight
        own_ways = layer.use_dora.get(adapter_name) or layer.lora_bias.get(adapter_name)
        if own_ways or down.ndim != 2:
            raise ValueError(
                f"{path}: only a plain LoRA of linear layers can be kept, without DoRA, biases, convolutions"
            )
        state[f"{plain_name(path)}.down"] = down.detach()
        state[f"{plain_name(path)}.up"] = (layer.scaling[adapter_name] * up.detach())[None]  # (1, out, r)
    if not state:
        raise ValueError(f"no LoRA called {adapter_name!r} is in this {type(model).__name__}")
    return state


def _linear(host: nn.Module, path: str) -> nn.Linear:
    """A linear layer by its path; ValueError for anything else."""
    try:
        layer = host.get_submodule(path)
    except AttributeError:
        raise ValueError(f"{path} is no layer of {type(host).__name__}") from None
    if type(layer) is not nn.Linear or not layer.weight.is_floating_point():
        raise ValueError(f"{path} is a {type(layer).__name__}: a low-rank change needs a plain linear layer")
    return layer
