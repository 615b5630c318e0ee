"""Never a silent no-op: an error where a run would accelerate nothing, and a reason where one method did nothing."""

from collections.abc import Iterable, Sequence

from fastdit.core.errors import NothingAccelerated
from fastdit.core.report import MethodReport
from fastdit.methods.base import Method

Outlook = tuple[Method, MethodReport, str | None]  # a method, its report, and why it will not act (None: it will)


def refuse_nothing(found: Sequence[Outlook]) -> list[str]:
    """Before a run's first forward: warnings for the methods that will not act; NothingAccelerated if none will."""
    idle, busy = [], False
    for method, done, reason in found:
        reason = "neutral setting" if method.neutral else reason
        done.reason = reason or ""
        if reason and not method.neutral:
            idle.append(f"{method.name}: {reason}")
        else:
            busy = True
    idle = list(dict.fromkeys(idle))  # two transformers have the same reason
    if idle and not busy:
        raise NothingAccelerated("; ".join(idle))
    return idle


def explain_idle(found: Iterable[tuple[Method, MethodReport]]) -> None:
    """After a run: say in the report why a method did nothing on one of several transformers."""
    for method, done in found:
        if not done.reason and not method.neutral and done.density in (None, 1):
            ran = "no step of this transformer was in its range" if done.calls else "this transformer did not run"
            done.reason = ran
