"""Cutting a model into the units that are read from disk together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fastdit.methods.block_streaming.checkpoint import Entry
from fastdit.methods.block_streaming.reading import PAGE

ALIGNMENT = 64  # bytes: where each small tensor begins in a buffer
DIRECT = 1 << 20  # bytes of a tensor from which on it is read straight into place
CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)  # their items are called, in a Sequential too


@dataclass(eq=False)
class Unit:
    """A module whose own forward is called, with its parameters and where they stand on disk."""

    name: str
    module: nn.Module
    tensors: list[tuple[nn.Parameter, Entry]] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)  # where each begins in a buffer
    nbytes: int = 0
    loaded: bool = False

    def add(self, parameter: nn.Parameter, entry: Entry) -> None:
        start, size = self.nbytes, parameter.numel() * parameter.element_size()
        if entry.dtype == parameter.dtype and size >= DIRECT and entry.start % entry.dtype.itemsize == 0:
            start += (entry.start - start) % PAGE  # aligned as in the file, so that it can be read straight into place
        self.tensors.append((parameter, entry))
        self.starts.append(start)
        self.nbytes = -(-(start + size) // ALIGNMENT) * ALIGNMENT

    def views(self, buffer: Tensor) -> list[Tensor]:
        """Each parameter's place in a page-aligned buffer of bytes, in its own dtype and shape."""
        views = []
        for (parameter, _), start in zip(self.tensors, self.starts, strict=True):
            size = parameter.numel() * parameter.element_size()
            views.append(buffer[start : start + size].view(parameter.dtype).view(parameter.shape))
        return views

    def fill(self, buffer: Tensor) -> None:
        """Let the parameters live in a buffer."""
        for (parameter, _), view in zip(self.tensors, self.views(buffer), strict=True):
            parameter.data = view
        self.loaded = True

    def empty(self) -> None:
        """Give the memory up."""
        for parameter, _ in self.tensors:
            parameter.data = placeholder(parameter.shape, parameter.dtype, parameter.device)
        self.loaded = False


def placeholder(shape: torch.Size, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """A tensor of this shape that takes the memory of one element: nan, so that it cannot be mistaken for weights."""
    one = torch.full((), float("nan"), device=device) if dtype.is_floating_point else torch.zeros((), device=device)
    return one.to(dtype).expand(shape)


def called_modules(root: nn.Module, name: str = "") -> list[tuple[str, nn.Module]]:
    """(name, module) of the units: items of the outermost lists, and what stands beside those, in order.

    A module with a list somewhere below it is walked into, since its own forward calls the list's items one by one;
    any other is one unit. Parameters that hang directly on the modules walked into belong to no unit.
    """
    found: list[tuple[str, nn.Module]] = []
    for key, child in root.named_children():
        path = f"{name}.{key}" if name else key
        if isinstance(child, CONTAINERS):
            found += [(f"{path}.{key}", item) for key, item in child.named_children()]
        elif any(isinstance(module, nn.ModuleList) for module in child.modules()):
            found += called_modules(child, path)
        else:
            found.append((path, child))
    return found


def cut(
    root: nn.Module, entries: Mapping[nn.Parameter, Entry], called_alone: Sequence[str] = ()
) -> tuple[list[Unit], Unit]:
    """Units of a model's parameters, in order, and one of what belongs to none: it stays in memory.

    A parameter that two units share stays in memory too: tied weights, and modules inside of units that are
    `called_alone` from elsewhere.
    """
    owners: dict[nn.Parameter, set[int]] = {}
    modules = called_modules(root) + [(name, root.get_submodule(name)) for name in called_alone]
    for index, (_, module) in enumerate(modules):
        for parameter in module.parameters():
            owners.setdefault(parameter, set()).add(index)
    units, core = [Unit(name, module) for name, module in modules], Unit("", root)
    for parameter, entry in entries.items():
        owner = owners.get(parameter, set())
        (units[next(iter(owner))] if len(owner) == 1 else core).add(parameter, entry)
    return [unit for unit in units if unit.tensors], core
