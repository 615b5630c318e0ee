"""Whether a run has come to its target, from its log."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastdit.training.options import TrainOptions

MARGIN = 0.03  # above the target, of the routable work: as much is noise


def reached(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """The share of the routable work at the end of a log: free of noise where it was validated; None: no routing."""
    for name in ("routed", "share"):
        last = next((row for row in reversed(rows) if name in row), None)
        if last is not None and last["step"] == rows[-1]["step"]:
            return float(last[name])
    return None


def missed(share: float, options: TrainOptions) -> str | None:
    """What to say, and to change, where a run ends too far above its target."""
    if share <= options.goal + MARGIN:
        return None
    return (
        f"the run ends with {share:.3f} of the routable work, above its target {options.goal:g}: raise --target-weight "
        f"(now {options.target_weight:g}), --router-lr (now {options.router_lr:g}) or --steps"
    )
