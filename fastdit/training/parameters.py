"""What is trained: the whole model, the method's own parameters alone, or low-rank changes beside them."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fastdit.core.ledger import PatchLedger
from fastdit.methods.lora import TimeLoRA, lora_state_of_peft
from fastdit.models.base import ModelFamily
from fastdit.training.options import TrainOptions


class Parameters(Protocol):
    """One way to train; `adapter` is the kind of adapter that it makes."""

    @property
    def adapter(self) -> str: ...

    def prepare(
        self, transformer: nn.Module, family: ModelFamily, options: TrainOptions, ledger: PatchLedger
    ) -> TimeLoRA | None:
        """Freeze what is not trained, before a method is attached; returns low-rank parameters that are no children."""

    def low_rank(self, transformer: nn.Module, changes: TimeLoRA | None) -> dict[str, Tensor]:
        """The low-rank parameters under training, as an adapter keeps them; none where there are none."""

    def start_from(self, state: dict[str, Tensor], transformer: nn.Module, changes: TimeLoRA | None) -> None:
        """Take over low-rank parameters of an adapter; ValueError where they do not fit."""


class Full:
    """Everything."""

    adapter = "full"
    frozen = False

    def prepare(self, transformer: nn.Module, family: Any, options: Any, ledger: Any) -> None:
        transformer.requires_grad_(not self.frozen)

    def low_rank(self, transformer: nn.Module, changes: TimeLoRA | None) -> dict[str, Tensor]:
        return {}

    def start_from(self, state: dict[str, Tensor], transformer: nn.Module, changes: TimeLoRA | None) -> None:
        if state:
            raise ValueError("it holds low-rank changes: go on with --parameters lora or td-lora, as it was trained")


class Routers(Full):
    """The method's own parameters."""

    adapter = "routers"
    frozen = True


class LoRA:
    """Low-rank changes through peft, as children of the transformer."""

    adapter = "lora"

    def prepare(
        self, transformer: nn.Module, family: ModelFamily, options: TrainOptions, ledger: PatchLedger
    ) -> TimeLoRA | None:
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise ValueError('--parameters lora needs peft: pip install "fastdit[train]"') from error
        transformer.requires_grad_(False)
        rank, names = options.lora_rank, targets(transformer, family, options)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=names), transformer)
        return None

    def low_rank(self, transformer: nn.Module, changes: TimeLoRA | None) -> dict[str, Tensor]:
        return lora_state_of_peft(transformer)

    def start_from(self, state: dict[str, Tensor], transformer: nn.Module, changes: TimeLoRA | None) -> None:
        _copy(state, self.low_rank(transformer, changes))


class TimeDependentLoRA:
    """Low-rank changes with several up matrices that the timestep mixes."""

    adapter = "lora"

    def prepare(
        self, transformer: nn.Module, family: ModelFamily, options: TrainOptions, ledger: PatchLedger
    ) -> TimeLoRA | None:
        transformer.requires_grad_(False)
        with torch.no_grad():
            width = family.time_embedding(transformer, torch.zeros(1)).shape[-1]
        changes = TimeLoRA(transformer, targets(transformer, family, options), options.lora_rank, options.td_ups, width)
        changes.install(transformer, ledger)
        return changes

    def low_rank(self, transformer: nn.Module, changes: TimeLoRA | None) -> dict[str, Tensor]:
        assert changes is not None
        return changes.lora_state()

    def start_from(self, state: dict[str, Tensor], transformer: nn.Module, changes: TimeLoRA | None) -> None:
        _copy(state, self.low_rank(transformer, changes))


PARAMETERS: dict[str, Parameters] = {
    "full": Full(), "routers": Routers(), "lora": LoRA(), "td-lora": TimeDependentLoRA(),
}  # fmt: skip


def targets(transformer: nn.Module, family: ModelFamily, options: TrainOptions) -> list[str]:
    """Full names of the linears of the blocks whose names end as --lora-targets says; ValueError if there are none."""
    linears = {
        f"{name}.{inner}": inner
        for name, block, _ in family.blocks(transformer)
        for inner, module in block.named_modules()
        if isinstance(module, nn.Linear)
    }
    for end in options.targets:
        if not any(name.endswith(f".{end}") for name in linears):
            known = ", ".join(sorted(set(linears.values())))
            raise ValueError(f"--lora-targets: no linear of a block ends in {end}; there are: {known}")
    return [name for name in linears if name.endswith(tuple(f".{end}" for end in options.targets))]


@torch.no_grad()
def _copy(state: dict[str, Tensor], into: dict[str, Tensor]) -> None:
    """Copy low-rank factors of the same shapes, in place."""
    shapes = [{name: tuple(value.shape) for name, value in tensors.items()} for tensors in (state, into)]
    if shapes[0] != shapes[1]:
        name = min(name for name in shapes[0] | shapes[1] if shapes[0].get(name) != shapes[1].get(name))
        raise ValueError(
            f"its low-rank change {name} is {shapes[0].get(name, 'absent')}, and {shapes[1].get(name, 'absent')} is "
            "asked for: give the --parameters, --lora-rank, --lora-targets and --td-ups that it was trained with"
        )
    for name, value in into.items():
        value.copy_(state[name])
