"""What several test files share: tiny pipelines by name, cached dense outputs, call counting, snapshots of objects."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from methods_table import TABLE, Setting
from tiny import TINY, Tiny
from torch import nn

from fastdit.core.errors import NothingAccelerated
from fastdit.methods.base import load_methods
from fastdit.models.base import load_families

BY_NAME = {tiny.name: tiny for tiny in TINY}
ONE_OF_EACH_FAMILY = list({tiny.family: tiny.name for tiny in reversed(TINY)}.values())
ON_EACH = pytest.mark.parametrize("tiny", TINY, ids=lambda tiny: tiny.name)


def settings(kind: str, rows: Callable[[Tiny], Any] = lambda tiny: tiny.family) -> list[Any]:
    """pytest parameters (tiny, setting) for the `neutral` or `active` settings of every registered method.

    The first setting of each seam meets every row, the others one row of each kind that `rows` tells apart.
    """
    one_of_each = list({rows(tiny): tiny for tiny in reversed(TINY)}.values())
    first = first_settings(kind)
    return [
        pytest.param(tiny, setting, id=f"{tiny.name}-{setting}")
        for name in load_methods()
        for setting in getattr(TABLE[name], kind)
        for tiny in (TINY if setting in first else one_of_each)
        if fits(tiny, setting)
    ]


def fits(tiny: Tiny, setting: Setting) -> bool:
    """Whether the family offers what the method needs."""
    return not setting.method.missing(load_families()[tiny.family])


def pairs(found: list[Setting], names: list[str] | None = None) -> list[Any]:
    """pytest parameters (tiny, setting) of given settings on the named rows (all) that they fit."""
    rows = TINY if names is None else [BY_NAME[name] for name in names]
    return [pytest.param(t, s, id=f"{t.name}-{s}") for s in found for t in rows if fits(t, s)]


def home(setting: Setting, *names: str) -> Tiny:
    """The first of the named rows that a setting fits."""
    return next(BY_NAME[name] for name in names if fits(BY_NAME[name], setting))


def rotary_kind(tiny: Tiny) -> Any:
    """No rotary rows, rows behind a batch axis, or rows without one."""
    rotary = load_families()[tiny.family].rotary
    return rotary and rotary.axis


def first_settings(kind: str = "active") -> list[Setting]:
    """One setting per registered method and seam."""
    found: dict[tuple[str, Any], Setting] = {}
    for name in load_methods():
        for setting in getattr(TABLE[name], kind):
            found.setdefault((name, setting.seam), setting)
    return list(found.values())


def settings_in_forwards() -> list[Setting]:
    """Those of `first_settings()` that change what a transformer's forward computes: no loading, no steps."""
    return [setting for setting in first_settings() if setting.method.stage not in ("load", "step")]


def universal_settings() -> list[Setting]:
    """Those of `first_settings()` that fit every family but Mochi: what tests take that need any method at all."""
    rows = [tiny for tiny in TINY if tiny.family != "mochi"]
    return [setting for setting in first_settings() if all(fits(tiny, setting) for tiny in rows)]


@functools.cache
def dense_output(name: str, batch: int = 1, size: int = 16, steps: int = 3) -> torch.Tensor:
    """The output of a fresh pipeline that never met fastdit."""
    tiny: Tiny = BY_NAME[name]
    return tiny.call(tiny.make(), batch=batch, size=size, steps=steps)


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> Iterator[list[Any]]:
    """A list that grows by the arguments of each call of `owner.name`."""
    calls: list[Any] = []
    original = getattr(owner, name)

    @functools.wraps(original)
    def spy(*args: Any, **kwargs: Any) -> Any:
        calls.append((args, kwargs))
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, spy)
        yield calls


def assert_close(actual: torch.Tensor, expected: torch.Tensor, rtol: float = 1e-5) -> None:
    """Equal up to `rtol` of the largest value: rounding, not another result."""
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= rtol * expected.abs().max().clamp(min=1)


def snapshot(pipe: Any) -> dict[tuple[str, str], Any]:
    """Class, attribute names and object identities of every module of a pipeline, and of the scheduler and the pipe.

    What a run itself exchanges (time steps, counters) is kept by type only.
    """
    found: dict[tuple[str, str], Any] = {}
    for component, item in pipe.components.items():
        for name, module in item.named_modules() if isinstance(item, nn.Module) else ():
            where = f"{component}.{name}"
            found[where, "class"] = type(module)
            for key, value in vars(module).items():
                if isinstance(value, dict):
                    found[where, key] = id(value), {k: id(v) for k, v in value.items()}
                elif isinstance(value, list):  # a video VAE makes its caches anew
                    found[where, key] = [id(v) for v in value]
                else:
                    found[where, key] = value if isinstance(value, (int, float, str)) else id(value)
    for where, item in (("scheduler", pipe.scheduler), ("pipe", pipe)):
        found[where, "class"] = type(item)
        found.update({(where, key): type(value) for key, value in vars(item).items()})
    return found


def assert_same_objects(before: dict, after: dict) -> None:
    assert before.keys() == after.keys(), set(before) ^ set(after)
    changed = {key: (before[key], after[key]) for key in before if before[key] != after[key]}
    assert not changed, changed


__all__ = [
    "BY_NAME",
    "ONE_OF_EACH_FAMILY",
    "ON_EACH",
    "NothingAccelerated",
    "assert_close",
    "assert_same_objects",
    "counted",
    "dense_output",
    "first_settings",
    "fits",
    "home",
    "pairs",
    "rotary_kind",
    "settings",
    "settings_in_forwards",
    "snapshot",
    "universal_settings",
]  # fmt: skip
