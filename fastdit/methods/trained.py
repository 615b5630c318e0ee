"""What methods share that have parameters of their own: a checkpoint, training, and weights for the host itself."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import Tensor, nn

from fastdit.core.layout import TokenLayout
from fastdit.core.ledger import PatchLedger
from fastdit.methods.base import Method, Stage, option
from fastdit.methods.runtime import Host, Runtime

if TYPE_CHECKING:
    from fastdit.methods.adapter import Adapter


@dataclass(frozen=True)
class TrainedMethod(Method):
    """Base of methods with parameters: `checkpoint` is the folder or Hub id of an adapter, None: untrained ones."""

    checkpoint: str | None
    when_training: ClassVar[frozenset[str]] = frozenset()  # options that shape what is trained
    sharding_reason: ClassVar[str] = "and routers and token grids need all of it"
    has_dense: ClassVar[bool] = True  # whether the host's weights mean something with the method set aside

    @property
    def stage(self) -> Stage:
        return "block tokens"

    @property
    def for_one_transformer(self) -> bool:
        return self.checkpoint is not None

    def adapter(self) -> Adapter | None:
        """The adapter that the checkpoint names, read from its folder or the Hub; ValueError if it is another's."""
        if self.checkpoint is None:
            return None
        from fastdit.methods.adapter import read_adapter

        adapter = read_adapter(self.checkpoint)
        if adapter.method != self.name:
            raise ValueError(
                f"adapter {self.checkpoint} holds {adapter.method}, not {self.name}: give it to {adapter.method}"
            )
        return adapter

    def bring_weights(self, host: Host, ledger: PatchLedger) -> None:
        adapter = self.adapter()
        if adapter is None:
            return
        from fastdit.methods.adapter import bring_full, bring_time_frequency, check_adapter

        check_adapter(adapter, self.name, host.module)
        bring_time_frequency(adapter, host, ledger)
        bring_full(adapter, host, ledger)  # last, so undone first: where the base cannot be put back, all stays

    @property
    def replaces_weights(self) -> bool:
        adapter = self.adapter()
        return adapter is not None and adapter.kind == "full"

    def dense_reason(self) -> str | None:
        if self.has_dense or self.checkpoint is None or self.neutral:
            return None
        adapter = self.adapter()
        assert adapter is not None
        in_place = adapter.kind == "full" or (adapter.folder / "model_index.json").is_file()  # merged or converted
        if not in_place:
            return None
        return (
            f"{self.name}: dense() is not available, as the weights of {self.checkpoint} were trained with this method "
            "in place and mean nothing without it: load the base model beside it to compare"
        )

    def clash(self, other: Method) -> str | None:
        if other.stage == "load":
            return "it works on weights that are in memory, and streamed ones are not"
        return super().clash(other)


def guidance_option() -> Any:
    """The option of guiding some latent channels only, by which the authors of DiT sample."""
    return option(
        None,
        "guide only the first latent channels (DiT's authors: 3 of 4); none: all, as diffusers does",
        range=(1, None),
    )


class TrainedRuntime(Runtime, Protocol):
    """A trained method at work: what a trainer needs besides."""

    @property
    def module(self) -> nn.Module:
        """The method's own parameters; never a child of the host."""

    def structure(self) -> dict[str, Any]:
        """What an adapter's file must say so that the module can be built again; JSON-ready."""

    def executed(self) -> Tensor | None:
        """Share (B,) of the work that is routed, done in the last forward under training, with gradients.

        None where nothing is to be steered.
        """

    def opened(self) -> AbstractContextManager[None]:
        """Within, forwards under training run with every gate open; ValueError where the method has no such form."""

    def intervals(self, layout: TokenLayout) -> Sequence[tuple[float, float]]:
        """Ranges of t / T that one batch of training may mix."""
