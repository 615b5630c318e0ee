"""The patch ledger: every change to a live object goes through it and is undone strictly last in, first out.

Only instances are changed, never a class or a module. What was there before comes back by identity; an object that
somebody else put in our place meanwhile is left alone, with a warning.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_ABSENT = object()


@dataclass
class _Entry:
    what: str
    undo: Callable[[], None]
    holds: Callable[[], bool]


def _hooked(obj: Any, value: Any) -> bool:
    """Whether diffusers' hooks (layerwise casting) were put around a forward, which they go on calling."""
    references = getattr(vars(obj).get("_diffusers_hook"), "_fn_refs", ())
    return any(getattr(reference, "forward", None) is value for reference in references)


class PatchLedger:
    """Records changes to instances so that they can be verified and undone exactly."""

    def __init__(self) -> None:
        self._entries: list[_Entry] = []

    def __len__(self) -> int:
        return len(self._entries)

    def set_attribute(self, obj: Any, name: str, value: Any, what: str = "") -> None:
        """Set an instance attribute; undoing restores the previous instance attribute or deletes ours."""
        previous = vars(obj).get(name, _ABSENT)
        what = what or f"{type(obj).__name__}.{name}"
        setattr(obj, name, value)

        def undo() -> None:
            if vars(obj).get(name, _ABSENT) is not value:
                warnings.warn(f"{what} was replaced by something else after fastdit; it stays", stacklevel=2)
            elif previous is _ABSENT:
                delattr(obj, name)
            else:
                setattr(obj, name, previous)

        self._entries.append(_Entry(what, undo, lambda: vars(obj).get(name, _ABSENT) is value or _hooked(obj, value)))

    def set_class(self, obj: Any, cls: type) -> None:
        """Change the class of one instance."""
        previous = type(obj)
        obj.__class__ = cls

        def undo() -> None:
            if type(obj) is cls:
                obj.__class__ = previous
            else:
                warnings.warn(f"the class of {previous.__name__} was changed after fastdit; it stays", stacklevel=2)

        self._entries.append(_Entry(f"class of {previous.__name__}", undo, lambda: type(obj) is cls))

    def add_hook(self, handle: Any, what: str) -> None:
        """Keep a `RemovableHandle` of a module hook that was just registered."""
        hooks = handle.hooks_dict_ref
        self._entries.append(_Entry(what, handle.remove, lambda: handle.id in (hooks() or {})))

    def record(self, what: str, undo: Callable[[], None], holds: Callable[[], bool] = lambda: True) -> None:
        """Keep the way back of a change of another kind, that was just made."""
        self._entries.append(_Entry(what, undo, holds))

    def verify(self) -> None:
        """Raise RuntimeError naming the first object whose patch somebody removed or replaced."""
        for entry in self._entries:
            if not entry.holds():
                raise RuntimeError(
                    f"{entry.what} no longer holds what fastdit installed (fused projections, new processors and a "
                    "replaced module do this): call set_methods(...) again after such a change"
                )

    def undo(self) -> None:
        """Undo everything, last change first; what fails to be undone stays recorded, and a second call tries again."""
        while self._entries:
            self._entries[-1].undo()
            self._entries.pop()
