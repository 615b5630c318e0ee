"""Weights for the host itself: a full adapter's are copied into its parameters, and the base's come back at the end."""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from fastdit.core.ledger import PatchLedger
from fastdit.core.weights import tensors_hash
from fastdit.methods.adapter.folder import Adapter, first_line
from fastdit.methods.runtime import Host

Slots = dict[str, tuple[nn.Module, str]]  # where each tensor of a state dict lives: its module and its name there


def bring_full(adapter: Adapter, host: Host, ledger: PatchLedger) -> None:
    """Copy the weights of a "full" adapter into the host, in place and in the host's own dtype; nothing for others.

    Undone, the base's weights are read again from where they came from, where that holds them bit for bit, or else
    taken from a copy in memory. ValueError where weights cannot be exchanged, before any of them is.
    """
    if adapter.kind != "full":
        return
    check_in_memory(host.module, f"the weights of adapter {adapter.folder} cannot be brought into {host.label}")
    slots = _slots(host.module)
    state = adapter.host_state()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    if fault := mismatch(shapes, {name: tuple(_tensor(slots, name).shape) for name in slots}):
        raise ValueError(f"adapter {adapter.folder} does not fit {host.label}: {fault}")
    base = _Base(slots, _folder(host.module), host.label)
    ledger.record(f"the weights of {host.label}", base.put_back)  # first: it also mends a copy that fails half-way
    _copy(state.items(), slots)


def bring_time_frequency(adapter: Adapter, host: Host, ledger: PatchLedger) -> None:
    """Give every embedding of the timestep the frequencies that the adapter's weights count on, where it names them."""
    if adapter.time_frequency_shift is None:
        return
    found = [(name, part) for name, part in host.module.named_modules() if "downscale_freq_shift" in vars(part)]
    if not found:
        raise ValueError(f"adapter {adapter.folder}: {host.label} has no embedding of the timestep to set up")
    for name, part in found:
        what = f"{host.label}.{name}.downscale_freq_shift"
        ledger.set_attribute(part, "downscale_freq_shift", adapter.time_frequency_shift, what)


def check_in_memory(module: nn.Module, consequence: str) -> None:
    """ValueError where a model's weights are not plain tensors in memory, naming the first and the mend."""
    on_disk = _on_disk(module)
    for name, value in module.named_parameters():
        if "base_layer" in name or "lora_" in name:
            raise ValueError(f"{consequence}: a LoRA is loaded ({name}); call pipe.unload_lora_weights() first")
        if not value.is_floating_point() or type(value) not in (nn.Parameter, Tensor):
            kind = type(value).__name__ if value.is_floating_point() else str(value.dtype).removeprefix("torch.")
            raise ValueError(f"{consequence}: {name} is quantised or distributed ({kind}); load the model without that")
        if value.is_meta or on_disk:
            raise ValueError(f"{consequence}: {name} is not in memory, as offloading holds it elsewhere; do this first")


def mismatch(found: Mapping[str, tuple], expected: Mapping[str, tuple]) -> str | None:
    """The first difference between the shapes of two state dicts by name, or None."""
    for name, shape in expected.items():
        if name not in found:
            return f"{name} is missing"
        if found[name] != shape:
            return f"{name} has shape {found[name]}, expected {shape}"
    return next((f"{name} is unknown to the transformer" for name in found if name not in expected), None)


class _Base:
    """The base's own weights: which file holds each, and copies of those that no file holds bit for bit."""

    def __init__(self, slots: Slots, folder: Path | None, label: str) -> None:
        self.slots, self.label = slots, label
        self.files: dict[str, tuple[Path, str]] = {}  # and the hash of what is there
        for path in sorted(folder.glob("*.safetensors")) if folder else ():
            with contextlib.suppress(Exception):  # a file may be anything: then it is no source
                for name, value in _read(path, lambda name: name in slots and name not in self.files):
                    own = _tensor(slots, name).detach().cpu()
                    if torch.equal(value.to(own.dtype), own):
                        self.files[name] = path, tensors_hash([(name, value)])
        self.copies = {
            name: _tensor(slots, name).detach().to("cpu", copy=True) for name in slots if name not in self.files
        }

    def put_back(self) -> None:
        """Copy the base's weights back; RuntimeError, before any is copied, where their source is gone or changed."""
        for name, value in self._again():
            path, mark = self.files[name]
            if tensors_hash([(name, value)]) != mark:
                raise self._lost(path, "has been changed since")
        _copy(itertools.chain(self.copies.items(), self._again()), self.slots)

    def _again(self) -> Iterator[tuple[str, Tensor]]:
        for path in sorted({path for path, _ in self.files.values()}):
            try:
                yield from _read(path, lambda name, path=path: self.files.get(name, ("",))[0] == path)  # type: ignore[misc]
            except Exception as error:
                raise self._lost(path, f"cannot be read ({first_line(error)})") from error

    def _lost(self, path: Path, why: str) -> RuntimeError:
        return RuntimeError(f"{self.label}'s own weights cannot be put back: {path} {why}; load the pipeline again")


def _read(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of a safetensors file, one after the other."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        for name in filter(wanted, file.keys()):
            yield name, file.get_tensor(name)


def _slots(module: nn.Module) -> Slots:
    """By module and name, as moving a model exchanges buffers, and a LoRA that is loaded later renames parameters."""
    parts = ((name, *name.rpartition(".")[::2]) for name in module.state_dict())
    return {name: (module.get_submodule(path), leaf) for name, path, leaf in parts}


def _tensor(slots: Slots, name: str) -> Tensor:
    owner, leaf = slots[name]
    return getattr(owner, leaf)


@torch.no_grad()
def _copy(state: Iterable[tuple[str, Tensor]], slots: Slots) -> None:
    if gone := next((name for name in slots if _tensor(slots, name).is_meta), None):
        raise RuntimeError(f"{gone} is not in memory any more: turn offloading off first")
    for name, value in state:
        _tensor(slots, name).copy_(value)


def _folder(module: nn.Module) -> Path | None:
    """The folder that a transformer was loaded from, where it is one on this machine."""
    name = dict(getattr(module, "config", {})).get("_name_or_path")
    return Path(name) if name and Path(name).is_dir() else None


def _on_disk(module: nn.Module) -> bool:
    """Whether diffusers' group offloading keeps the weights in files."""
    for part in module.modules():
        registry = getattr(part, "_diffusers_hook", None)
        hook = registry.get_hook("group_offloading") if registry is not None else None
        if getattr(getattr(hook, "group", None), "offload_to_disk_path", None):
            return True
    return False
