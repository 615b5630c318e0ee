"""BlockStreaming at work: hooks around every unit, one budget for all components, and the way back."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastdit.core.ledger import PatchLedger
from fastdit.core.memory import peak_memory
from fastdit.core.report import MethodReport
from fastdit.methods.block_streaming.component import Component
from fastdit.methods.block_streaming.config import BlockStreaming
from fastdit.methods.block_streaming.division import Weights, divide, size_text
from fastdit.methods.block_streaming.loader import Loader
from fastdit.methods.block_streaming.reading import stamp
from fastdit.methods.block_streaming.rows import RowEmbedding
from fastdit.methods.block_streaming.state import check_adapters, check_placement, memory_needed, whole
from fastdit.methods.block_streaming.units import Unit, placeholder

Sources = dict[str, tuple[nn.Module, Path, Weights]]  # component -> model, folder, where its weights are


@dataclass
class StreamingReport(MethodReport):
    """What streaming did in a run: bytes and seconds of reading, seconds that computing waited, peak of weights."""

    bytes_read: int = 0
    seconds_reading: float = 0.0
    seconds_waited: float = 0.0
    peak_weights: int = 0


class StreamedWeights:
    """The weights of a pipeline's models, on disk but for what the budget holds."""

    def __init__(self, method: BlockStreaming, sources: Sources) -> None:
        self.method, self.sources = method, sources
        self.report, self.ledger = StreamingReport(), PatchLedger()
        self.division = divide(method, {label: (module, found) for label, (module, _, found) in sources.items()})
        files = {entry.file for _, _, found in sources.values() for entry in found.values()}
        self.loader = Loader(method.drop_cache, {file: stamp(file) for file in files})
        self.components = [
            Component(label, sources[label][0], units, core, self.loader)
            for label, (units, core) in self.division.parts.items()
        ]
        self._install()

    @property
    def models(self) -> dict[str, nn.Module]:
        """The streamed models by component name."""
        return {label: module for label, (module, _, _) in self.sources.items()}

    @property
    def fixed(self) -> int:
        """Bytes that are in memory whatever runs: what belongs to no unit, and what reads and converts."""
        units = 0 if not self.division.everything_fits else sum(component.total for component in self.components)
        return self.division.fixed - units

    @property
    def held(self) -> int:
        """Bytes of weights and buffers in memory now."""
        return self.fixed + sum(component.held for component in self.components)

    def _install(self) -> None:
        """Take the weights out of memory and hook every unit; a failure puts everything back."""
        cores = [whole(component.core.tensors, self.loader.files) for component in self.components]
        try:
            for component, core in zip(self.components, cores, strict=True):
                device = component.device
                for (parameter, _), value in zip(component.core.tensors, core, strict=True):
                    parameter.data = value.to(device)
                for unit in component.units:
                    self._hook(component, unit)
                self.ledger.set_attribute(component.module, "_apply", functools.partial(self._moved, component))
                self.ledger.set_attribute(component.module, "save_pretrained", self.refuse_saving)
                if hasattr(component.module, "fuse_lora"):
                    self.ledger.set_attribute(component.module, "fuse_lora", refuse_fusing)
                self._place(component, device)
            for embedding, entry in self.division.tables:
                reader = RowEmbedding(embedding, entry, lambda: self.loader.files)
                self.ledger.set_attribute(embedding, "forward", reader)
        except BaseException:
            self._load_all()
            raise
        finally:
            self.loader.close()

    def _hook(self, component: Component, unit: Unit) -> None:
        before = torch.compiler.disable(functools.partial(self._before, component, unit))
        after = torch.compiler.disable(functools.partial(self._after, component, unit))
        name = f"streaming of {component.label}.{unit.name}"
        self.ledger.add_hook(unit.module.register_forward_pre_hook(before, with_kwargs=True, prepend=True), name)
        self.ledger.add_hook(unit.module.register_forward_hook(after, always_call=True), name)
        if unit.module is not component.module:
            self.ledger.set_attribute(unit.module, "_apply", refuse_moving)

    def _place(self, component: Component, device: torch.device) -> None:
        """Have the placeholders of a component on a device."""
        for weight in self._absent(component):
            weight.data = placeholder(weight.shape, weight.dtype, device)

    def _absent(self, component: Component) -> set[Tensor]:
        """The weights of a component that are not in memory all the time."""
        inside = set(component.module.modules())
        tables: set[Tensor] = {embedding.weight for embedding, _ in self.division.tables if embedding in inside}
        return tables | {parameter for unit in component.units for parameter, _ in unit.tensors}

    def _before(self, component: Component, unit: Unit, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if torch.is_grad_enabled() and any(torch.is_tensor(x) and x.requires_grad for x in (*args, *kwargs.values())):
            raise RuntimeError(
                "block streaming is for inference, as its weights are gone before a backward pass: restore first"
            )
        if component.residency is None:
            self.make_room(component)
        component.acquire(unit)
        self.report.calls += 1
        self.report.peak_weights = max(self.report.peak_weights, self.held)

    def _after(self, component: Component, unit: Unit, *_: Any) -> None:
        component.release(unit)
        self._note()

    def make_room(self, component: Component) -> None:
        """Reserve memory for a component; the others give theirs up unless all fits."""
        others = [other for other in self.components if other is not component]
        free = self.division.budget - self.fixed - sum(other.reserved for other in others)
        if component.total > free:
            for other in others:
                other.evict()
            free = self.division.budget - self.fixed
        component.reserve(free)

    def _moved(self, component: Component, change: Any, recurse: bool = True) -> nn.Module:
        """What `.to()`, `.cuda()` and the like call: another device is noted, another dtype refused."""
        for dtype in {p.dtype for p in component.module.parameters() if p.is_floating_point()}:
            if change(torch.zeros(1, dtype=dtype, device=component.device)).dtype != dtype:
                raise ValueError("the dtype of streamed weights cannot be changed: give dtype=... to from_pretrained")
        device = change(torch.zeros(1, device=component.device)).device
        if device.type not in ("cpu", "cuda"):
            raise ValueError(f"block streaming computes on cpu or cuda, not on {device.type}")
        if device != component.device:
            self.stop()
            component.evict()
            self._place(component, device)
        absent = self._absent(component)
        for module in component.module.modules():
            for parameter in module._parameters.values():
                if parameter is not None and parameter not in absent:  # adapters, and what belongs to no unit
                    parameter.data = change(parameter.data)
            for name, buffer in module._buffers.items():
                module._buffers[name] = buffer if buffer is None else change(buffer)
        return component.module

    def refuse_saving(self, *args: Any, **kwargs: Any) -> None:
        folders = ", ".join(str(folder) for _, folder, _ in self.sources.values())
        raise RuntimeError(f"streamed weights are not in memory and cannot be saved: they are on disk in {folders}")

    def start(self) -> None:
        """A run begins: a new report, and a look at what may have been done to the models meanwhile."""
        self.stop()  # whatever an interrupted run has left
        self.ledger.verify()
        for component in self.components:
            check_placement(component.label, component.module)
            check_adapters(component.label, component.module, self._absent(component))
            component.waited, component.reads = 0.0, 0
        self.loader.restart()
        self.report = StreamingReport(layers=sum(len(component.units) for component in self.components))

    def stop(self) -> None:
        """A run is over, however it ended: no thread and no open file stays, kept weights do."""
        self.loader.cancel()
        for component in self.components:
            component.stop()
        self.loader.close()
        self._note()
        peak = peak_memory([])
        if peak is not None and all(component.device.type == "cpu" for component in self.components):
            rest = size_text(peak - self.report.peak_weights)
            self.report.note += f"; activations and interpreter at most {rest} more"

    def _note(self) -> None:
        """Bring the report up to date."""
        report = self.report
        report.bytes_read, report.seconds_reading = self.loader.bytes_read, self.loader.seconds
        report.seconds_waited = sum(component.waited for component in self.components)
        report.note = (
            f"weights at most {size_text(report.peak_weights)} of {size_text(self.division.budget)}; read "
            f"{size_text(report.bytes_read)} in {report.seconds_reading:.1f} s, waited {report.seconds_waited:.1f} s"
        )

    def refit(self, method: Any) -> "StreamedWeights":
        """The same weights under other settings; if they are refused, these stay."""
        if method == self.method:
            return self
        self._uninstall()
        try:
            return StreamedWeights(method, self.sources)
        except BaseException:
            self._install()
            raise

    def _uninstall(self) -> None:
        self.stop()
        for component in self.components:
            component.evict()
        self.ledger.undo()

    def give_back(self) -> None:
        """Load everything into memory, as if it had never been streamed; after a failure it is streamed as before.

        MemoryError where it cannot fit, before anything is done.
        """
        needed = memory_needed(self.models, {component.device for component in self.components})
        if needed:
            raise MemoryError(f"{needed}: keep BlockStreaming among the methods")
        self._uninstall()
        try:
            self._load_all()
        except BaseException:
            self._install()
            raise

    def _load_all(self) -> None:
        self.ledger.undo()
        for module, _, found in self.sources.values():
            device = next(module.parameters()).device
            for pair in found.items():
                (value,) = whole([pair], self.loader.files)
                pair[0].data = value.to(device)
        self.loader.close()


def refuse_fusing(*args: Any, **kwargs: Any) -> None:
    raise RuntimeError("a LoRA cannot be fused into weights that are on disk: leave it beside them, it acts the same")


def refuse_moving(*args: Any, **kwargs: Any) -> None:
    raise RuntimeError("a part of a streamed model cannot be moved, cast or offloaded by itself: move the whole model")
