"""MACs of a forward, dense and as planned, counted once per shape and plan on a skeleton of the model."""

from collections.abc import Hashable, Sequence
from typing import Any

from fastdit.attention.processor import ProcessorWrapper, wrap
from fastdit.core.ledger import PatchLedger
from fastdit.core.macs import forward_macs, signature_of, skeleton_of
from fastdit.core.report import RunReport
from fastdit.methods.base import Method
from fastdit.methods.runtime import Forward, Host, Runtime, carry_out
from fastdit.models.base import Rotary


def bind(methods: Sequence[Method], host: Host, ledger: PatchLedger) -> list[Runtime]:
    """Bind methods to a host and install what they need there."""
    runtimes = [method.bind(host) for method in methods]
    family = host.family

    def wrapped(attentions: Sequence[tuple[str, Any]], rotary: Rotary | None) -> list[ProcessorWrapper]:
        wrappers = [wrap(attention.processor, rotary) for _, attention in attentions]
        for (name, attention), wrapper in zip(attentions, wrappers, strict=True):
            ledger.set_attribute(attention, "processor", wrapper, f"{host.label}.{name}.processor")
        return wrappers

    if any(runtime.uses_attention for runtime in runtimes):
        host.wrappers += wrapped(family.attentions(host.module), family.rotary)
    crossing = any("cross_attention" in method.needs for method in methods)
    host.cross_wrappers[:] = wrapped(family.cross_attentions(host.module), None) if crossing else []
    for runtime in runtimes:
        runtime.install(ledger)
    return runtimes


class MacCounter:
    """Counts on a meta-device twin of a host that carries the same methods and is given the same plans."""

    def __init__(self, host: Host, methods: Sequence[Method]) -> None:
        skeleton = skeleton_of(host.module)
        host.family.ready_skeleton(skeleton)
        for module in skeleton.modules():  # other backends have no meta kernels, and the global one may be any
            processor: Any = getattr(module, "processor", None)
            if hasattr(processor, "_attention_backend"):
                processor._attention_backend = "native"
        self.twin = Host(host.label, skeleton, host.family)
        self.runtimes = bind(methods, self.twin, PatchLedger())
        self._known: dict[tuple, int] = {}

    def count(
        self, args: tuple, kwargs: dict[str, Any], plans: Sequence[Hashable], forward: Forward
    ) -> tuple[int, int]:
        """(dense, executed) MACs of one forward with these arguments under these plans (None: dense)."""
        shapes = signature_of(args, {k: v for k, v in kwargs.items() if k != "return_dict"})
        dense = self._counted((shapes, forward.layout), args, kwargs, [None] * len(self.runtimes), forward)
        if not any(plan is not None for plan in plans):
            return dense, dense
        return dense, self._counted((shapes, forward.layout, tuple(plans)), args, kwargs, plans, forward)

    def count_or_tell(
        self, args: tuple, kwargs: dict[str, Any], plans: Sequence[Any], forward: Forward, report: RunReport
    ) -> tuple[int, int]:
        """The same; bookkeeping must never stop a run, so a model that cannot be counted is a warning in the report."""
        try:
            return self.count(args, kwargs, plans, forward)
        except Exception as error:
            note = f"MACs are not counted: the forward fails on the meta device ({type(error).__name__}: {error})"
            if note not in report.warnings:
                report.warnings.append(note)
            return 0, 0

    def _counted(
        self, key: tuple, args: tuple, kwargs: dict[str, Any], plans: Sequence[Hashable], forward: Forward
    ) -> int:
        if key not in self._known:
            for runtime in self.runtimes:
                runtime.start()
            carry_out(self.runtimes, plans, forward, self.twin)
            self._known[key] = forward_macs(self.twin.module, args, kwargs)
        return self._known[key]
