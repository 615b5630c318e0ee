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
from fastdit.methods.block_streaming.checkpoint import Entry
from fastdit.methods.block_streaming.component import Component
from fastdit.methods.block_streaming.config import BlockStreaming
from fastdit.methods.block_streaming.loader import Loader
from fastdit.methods.block_streaming.reading import STAGE, Files
from fastdit.methods.block_streaming.residency import smallest_budget
from fastdit.methods.block_streaming.rows import RowEmbedding, large_embeddings
from fastdit.methods.block_streaming.units import Unit, placeholder

Sources = dict[str, tuple[nn.Module, Path, dict[str, Entry]]]  # component -> model, folder, tensors on disk


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
        self.report = StreamingReport()
        self.ledger = PatchLedger()
        self.files = Files(method.drop_cache)
        self.loader = Loader(self.files)
        self.rows: list[tuple[nn.Embedding, Entry]] = []
        self.components: list[Component] = []
        entries = {label: _by_parameter(module, found) for label, (module, _, found) in sources.items()}
        self.total = sum(_nbytes(parameter) for found in entries.values() for parameter in found)
        self.budget = method.budget(self.total)
        self.row_bytes = 0  # of the rows looked up last
        for label, (module, _, _) in sources.items():
            own = entries[label]
            large = large_embeddings(module, self.budget)
            by_rows = [(embedding, own[weight]) for embedding, weight in large if weight in own]
            for weight in {embedding.weight for embedding, _ in by_rows}:  # tied ones share it
                del own[weight]
            self.rows += by_rows
            self.components.append(Component(label, module, own, self.loader))
        self._check_budget()
        self._install()

    @property
    def fixed(self) -> int:
        """Bytes that are in memory whatever runs: what belongs to no unit, and the stage of dtype conversions."""
        casts = [
            e.nbytes for c in self.components for u in (*c.units, c.core) for p, e in u.tensors if e.dtype != p.dtype
        ]
        return sum(component.core.nbytes for component in self.components) + min(STAGE, max(casts, default=0))

    @property
    def held(self) -> int:
        """Bytes of weights and buffers in memory now."""
        return self.fixed + self.row_bytes + sum(component.held for component in self.components)

    def _check_budget(self) -> None:
        units = [(unit.nbytes, f"{c.label}.{unit.name}") for c in self.components for unit in c.units]
        largest, name = max(units, default=(0, "none"))
        least = self.fixed + smallest_budget([size for size, _ in units])
        if least > self.budget:
            raise ValueError(
                f"memory_budget {self.method.memory_budget} is {_mib(self.budget)}, and the largest block ({name}, "
                f"{_mib(largest)}) does not fit: memory_budget={-(-least // 1024)}KiB is the smallest that works, "
                f"{-(-(least + largest) // 1024)}KiB the smallest that reads while it computes"
            )

    def _install(self) -> None:
        for component in self.components:
            device = component.device
            core = torch.empty(component.core.nbytes, dtype=torch.uint8)
            self.files.read(
                [(e, v) for (_, e), v in zip(component.core.tensors, component.core.views(core), strict=True)]
            )
            component.core.fill(core.to(device))
            for unit in component.units:
                before = functools.partial(self._before, component, unit)
                after = functools.partial(self._after, component, unit)
                for handle in (
                    unit.module.register_forward_pre_hook(
                        torch.compiler.disable(before), with_kwargs=True, prepend=True
                    ),
                    unit.module.register_forward_hook(torch.compiler.disable(after), always_call=True),
                ):
                    self.ledger.add_hook(handle, f"streaming of {component.label}.{unit.name}")
            self.ledger.set_attribute(component.module, "_apply", functools.partial(self._moved, component))
            self.ledger.set_attribute(component.module, "save_pretrained", self.refuse_saving)
            if hasattr(component.module, "fuse_lora"):
                self.ledger.set_attribute(component.module, "fuse_lora", self.refuse_fusing)
            self._place(component, device)
        for embedding, entry in self.rows:
            reader = RowEmbedding(embedding, entry, self.files, self._note_rows)
            self.ledger.set_attribute(embedding, "forward", reader)
        self.files.close()

    def _place(self, component: Component, device: torch.device) -> None:
        """Have the placeholders of a component on a device."""
        weights: list[Tensor] = [parameter for unit in component.units for parameter, _ in unit.tensors]
        inside = set(component.module.modules())
        weights += [embedding.weight for embedding, _ in self.rows if embedding in inside]
        for weight in weights:
            weight.data = placeholder(weight.shape, weight.dtype, device)

    def _before(self, component: Component, unit: Unit, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if torch.is_grad_enabled() and any(torch.is_tensor(x) and x.requires_grad for x in (*args, *kwargs.values())):
            raise RuntimeError(
                "block streaming is for inference: its weights are gone before a backward pass. Restore first"
            )
        if component.residency is None:
            self._make_room(component)
        component.acquire(unit)
        self.report.calls += 1
        self.report.peak_weights = max(self.report.peak_weights, self.held)

    def _after(self, component: Component, unit: Unit, *_: Any) -> None:
        component.release(unit)
        self._note()

    def _make_room(self, component: Component) -> None:
        """Reserve memory for a component; the others give theirs up unless all fits."""
        others = [other for other in self.components if other is not component]
        free = self.budget - self.fixed - sum(other.reserved for other in others)
        if component.total > free:
            for other in others:
                other.evict()
            free = self.budget - self.fixed
        component.reserve(free)

    def _note_rows(self, nbytes: int) -> None:
        self.row_bytes = nbytes
        self.report.peak_weights = max(self.report.peak_weights, self.held)
        self.row_bytes = 0

    def _moved(self, component: Component, change: Any, recurse: bool = True) -> nn.Module:
        """What `.to()`, `.cuda()` and the like call: another device is noted, another dtype refused."""
        dtypes = {parameter.dtype for parameter in component.module.parameters() if parameter.is_floating_point()}
        for dtype in dtypes:
            if change(torch.zeros(1, dtype=dtype, device=component.device)).dtype != dtype:
                raise ValueError("the dtype of streamed weights cannot be changed: give dtype=... to from_pretrained")
        device = change(torch.zeros(1, device=component.device)).device
        if device.type not in ("cpu", "cuda"):
            raise ValueError(f"block streaming computes on cpu or cuda, not on {device.type}")
        if device != component.device:
            self.stop()
            component.evict()
            self._place(component, device)
        streamed: set[Tensor] = {parameter for unit in component.units for parameter, _ in unit.tensors}
        streamed |= {embedding.weight for embedding, _ in self.rows}
        for module in component.module.modules():
            for parameter in module._parameters.values():
                if parameter is not None and parameter not in streamed:  # adapters, and what belongs to no unit
                    parameter.data = change(parameter.data)
            for name, buffer in module._buffers.items():
                module._buffers[name] = buffer if buffer is None else change(buffer)
        return component.module

    def refuse_saving(self, *args: Any, **kwargs: Any) -> None:
        folders = ", ".join(str(folder) for _, folder, _ in self.sources.values())
        raise RuntimeError(f"streamed weights are not in memory and cannot be saved: they are on disk in {folders}")

    def refuse_fusing(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError(
            "a LoRA cannot be fused into weights that are on disk: leave it beside them, it acts the same"
        )

    @property
    def models(self) -> dict[str, nn.Module]:
        """The streamed models by component name."""
        return {label: module for label, (module, _, _) in self.sources.items()}

    def start(self) -> None:
        """A run begins: a new report, and a look at what may have been done to the models meanwhile."""
        self.ledger.verify()
        for component in self.components:
            check_placement(component.label, component.module)
            component.waited, component.reads = 0.0, 0
        self.files.bytes_read, self.loader.seconds = 0, 0.0
        self.report = StreamingReport(layers=sum(len(component.units) for component in self.components))

    def stop(self) -> None:
        """A run is over, however it ended: no thread and no open file stays, kept weights do."""
        self.loader.close()
        for component in self.components:
            component.stop()
        self._note()
        peak = peak_memory([])
        if peak is not None and all(component.device.type == "cpu" for component in self.components):
            rest = peak - self.report.peak_weights
            self.report.note += f"; activations and interpreter at most {_mib(rest)} more"

    def _note(self) -> None:
        """Bring the report up to date."""
        report = self.report
        report.bytes_read, report.seconds_reading = self.files.bytes_read, self.loader.seconds
        report.seconds_waited = sum(component.waited for component in self.components)
        report.note = (
            f"weights at most {_mib(report.peak_weights)} of {_mib(self.budget)}; read {_mib(report.bytes_read)} in "
            f"{report.seconds_reading:.1f} s, waited {report.seconds_waited:.1f} s"
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
        """Load everything into memory, as if it had never been streamed; MemoryError where that cannot fit."""
        import psutil

        available = psutil.virtual_memory().available
        if self.total > available:
            raise MemoryError(
                f"without streaming this model needs {_mib(self.total)} of memory, and {_mib(available)} are free: "
                "keep BlockStreaming among the methods"
            )
        self._uninstall()
        for module, _, found in self.sources.values():
            for parameter, entry in _by_parameter(module, found).items():
                whole = torch.empty(parameter.shape, dtype=parameter.dtype)
                self.files.read([(entry, whole)])
                parameter.data = whole.to(parameter.device)
        self.files.close()


def check_placement(label: str, module: nn.Module) -> None:
    """RuntimeError where another kind of offloading moves the weights of a streamed model as well."""
    registries = [getattr(child, "_diffusers_hook", None) for child in module.modules()]
    grouped = any(registry is not None and registry.get_hook("group_offloading") for registry in registries)
    if getattr(module, "_hf_hook", None) is not None or grouped:
        raise RuntimeError(f"{label} is streamed from disk already: remove the other offloading, it moves weights too")


def _by_parameter(module: nn.Module, found: dict[str, Entry]) -> dict[nn.Parameter, Entry]:
    parameters = dict(module.named_parameters(remove_duplicate=False))
    return {parameters[name]: entry for name, entry in found.items() if name in parameters}


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _mib(size: int) -> str:
    """1_610_612_736 -> '1.5 GiB'."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
