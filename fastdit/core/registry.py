"""Named parts that register themselves, so that a new part is one new file and no list has to be edited."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import ItemsView, Iterator
from types import ModuleType
from typing import Generic, TypeVar

T = TypeVar("T")


class Registry(Generic[T]):
    """Items of one kind by name, with an error that lists the known names when one is missing."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}

    def register(self, name: str, item: T) -> T:
        """Add `item` under `name` and return it; ValueError if the name already stands for another item."""
        # The same object twice is harmless: a module may be reached by two import paths.
        if self._items.setdefault(name, item) is not item:
            raise ValueError(f"{self.kind} {name!r} is registered already; choose another name")
        return item

    def __getitem__(self, name: str) -> T:
        """The item called `name`; ValueError with the known names and the nearest one if there is none."""
        # A ValueError and not a KeyError, whose message Python prints in quotes: users read this line.
        if name not in self._items:
            known = ", ".join(self) or "none"
            close = difflib.get_close_matches(name, self._items, n=1) if isinstance(name, str) else []
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ValueError(f"unknown {self.kind} {name!r}; known: {known}{hint}")
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._items))

    def __len__(self) -> int:
        return len(self._items)

    def items(self) -> ItemsView[str, T]:
        """(name, item) pairs, sorted by name."""
        return {name: self._items[name] for name in self}.items()

    def __repr__(self) -> str:
        return f"Registry({self.kind!r}: {', '.join(self) or 'empty'})"


def discover(package: str | ModuleType) -> list[str]:
    """Import every submodule of `package` (a module or its name), so that each can register itself; their names."""
    module = importlib.import_module(package) if isinstance(package, str) else package
    names = [f"{module.__name__}.{found.name}" for found in pkgutil.iter_modules(module.__path__)]
    for name in sorted(names):
        importlib.import_module(name)
    return sorted(names)
