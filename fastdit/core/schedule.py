"""A number that may change with the noise level, written as data: in Python, in JSON and on the command line."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Knots = tuple[tuple[float, float], ...]

KINDS = ("constant", "linear", "cosine", "points")
FORMS = "a number, 'linear:0.4:0.9', 'cosine:0.4:0.9' (value at noise 1, then at noise 0) or 'points:1=0.4:0=0.9'"


@dataclass(frozen=True)
class Schedule:
    """A value for every noise level in [0, 1]: the curve `kind` through `knots`, (noise, value) by rising noise."""

    kind: str
    knots: Knots

    def __post_init__(self) -> None:
        """Sort the knots; ValueError naming the mend for an unknown kind, or knots that no curve goes through."""
        if self.kind not in KINDS:
            raise ValueError(f"unknown schedule kind {self.kind!r}; use one of {', '.join(KINDS)}")
        knots = tuple(sorted((float(noise), float(value)) for noise, value in self.knots))
        noises = [noise for noise, _ in knots]
        if not knots:
            raise ValueError("schedule points is empty; give at least one point, such as [[1, 0.4]]")
        if not all(0 <= noise <= 1 for noise in noises):  # also refuses nan
            raise ValueError(f"schedule noise levels {noises} leave [0, 1]; 1 is pure noise, 0 the finished sample")
        if len(set(noises)) < len(noises):
            raise ValueError(f"schedule noise levels {noises} repeat; give each noise level one value")
        if not all(math.isfinite(value) for _, value in knots):
            raise ValueError(f"schedule values {[value for _, value in knots]} are not finite; give ordinary numbers")
        if self.kind == "constant" and len(knots) != 1:
            raise ValueError(f"a constant schedule has one value, not {len(knots)}; use Schedule.constant(value)")
        if self.kind in ("linear", "cosine") and noises != [0.0, 1.0]:
            raise ValueError(f"a {self.kind} schedule needs its values at noise 1 and 0; for other levels use 'points'")
        object.__setattr__(self, "knots", knots)

    @classmethod
    def constant(cls, value: float) -> Schedule:
        """The same value at every noise level."""
        return cls("constant", ((0.0, value),))

    @classmethod
    def linear(cls, noise_1: float, noise_0: float) -> Schedule:
        """A straight line in the noise level from `noise_1` at noise 1 to `noise_0` at noise 0."""
        return cls("linear", ((1.0, noise_1), (0.0, noise_0)))

    @classmethod
    def cosine(cls, noise_1: float, noise_0: float) -> Schedule:
        """Half a cosine from `noise_1` at noise 1 to `noise_0` at noise 0: flat at both ends."""
        return cls("cosine", ((1.0, noise_1), (0.0, noise_0)))

    @classmethod
    def points(cls, points: Iterable[Iterable[float]]) -> Schedule:
        """Straight lines through [noise, value] pairs in any order; constant outside the outermost pairs."""
        pairs = [tuple(pair) for pair in points]
        if any(len(pair) != 2 for pair in pairs):
            raise ValueError(f"schedule points {pairs} are not pairs; write [[noise, value], ...]")
        return cls("points", tuple((pair[0], pair[1]) for pair in pairs))

    @classmethod
    def parse(cls, x: ScheduleLike) -> Schedule:
        """A schedule from a number, a Schedule, its dict or its command-line form; ValueError naming the mend."""
        if isinstance(x, Schedule):
            return x
        try:
            if isinstance(x, str):
                return cls._from_text(x)
            if isinstance(x, Mapping):
                return cls._from_dict(x)
            if not isinstance(x, bool):
                return cls.constant(float(x))
        except (TypeError, ValueError) as error:
            raise ValueError(f"cannot read schedule {x!r}: {error}. Write {FORMS}") from error
        raise ValueError(f"cannot read schedule {x!r}: true and false are not numbers. Write {FORMS}")

    @classmethod
    def _from_text(cls, text: str) -> Schedule:
        kind, *rest = text.strip().split(":")
        if not rest:
            return cls.constant(float(kind))
        if kind == "points":
            return cls.points([float(number) for number in part.split("=")] for part in rest)
        return cls._from_ends(kind, rest)

    @classmethod
    def _from_dict(cls, data: Mapping[str, Any]) -> Schedule:
        fields = {"constant": {"value"}, "linear": {"noise_1", "noise_0"}, "cosine": {"noise_1", "noise_0"}}
        kind = data.get("kind")
        wanted = fields.get(str(kind), {"points"})
        if kind in KINDS and set(data) - {"kind"} != wanted:
            raise ValueError(f"kind {kind!r} takes exactly {', '.join(sorted(wanted, reverse=True))}")
        if kind == "constant":
            return cls.constant(data["value"])
        if kind == "points":
            return cls.points(data["points"])
        return cls._from_ends(str(kind), [data.get("noise_1"), data.get("noise_0")])

    @classmethod
    def _from_ends(cls, kind: str, ends: list[Any]) -> Schedule:
        if kind not in ("linear", "cosine"):
            raise ValueError(f"unknown kind {kind!r}, known: {', '.join(KINDS)}")
        if len(ends) != 2:
            raise ValueError(f"{kind} takes two values, not {len(ends)}")
        return cls.linear(*map(float, ends)) if kind == "linear" else cls.cosine(*map(float, ends))

    def at(self, noise: float) -> float:
        """The value at one noise level; levels outside the knots take the nearest knot's value."""
        noises = [level for level, _ in self.knots]
        right = bisect_right(noises, noise)
        if right == 0 or right == len(noises):
            return self.knots[max(0, right - 1)][1]
        (low, start), (high, stop) = self.knots[right - 1], self.knots[right]
        part = (noise - low) / (high - low)
        if self.kind == "cosine":
            part = (1 - math.cos(math.pi * part)) / 2
        # Written as a weighted sum, not start + part * rise: exact at both ends, and so neutral settings stay neutral.
        return start * (1 - part) + stop * part

    def quantised(self, noise: float, step: float = 1 / 16) -> float:
        """The value rounded to the nearest multiple of `step` in [step, 1]: few values, and so few tensor shapes."""
        return min(1.0, max(step, math.floor(self.at(noise) / step + 0.5) * step))

    def values(self) -> tuple[float, ...]:
        """The defining values, for range checks: every value of the curve lies between two of them."""
        return tuple(value for _, value in self.knots)

    def to_dict(self) -> float | dict[str, Any]:
        """What `parse` reads back and JSON can hold: a plain number for a constant, a dict for a curve."""
        if self.kind == "constant":
            return self.knots[0][1]
        if self.kind == "points":
            return {"kind": "points", "points": [list(knot) for knot in self.knots]}
        return {"kind": self.kind, "noise_1": self.knots[1][1], "noise_0": self.knots[0][1]}

    def __str__(self) -> str:
        """The command-line form, which `parse` reads back."""
        falling = self.knots[::-1]  # sampling goes from noise 1 down to 0, and so does the text
        if self.kind == "points":
            return ":".join(["points", *(f"{_short(noise)}={_short(value)}" for noise, value in falling)])
        texts = [_short(value) for _, value in falling]
        return texts[0] if self.kind == "constant" else ":".join([self.kind, *texts])


ScheduleLike = float | str | Mapping[str, Any] | Schedule


def _short(number: float) -> str:
    """The shortest text that reads back as the same number: 1 rather than 1.0."""
    return repr(number).removesuffix(".0")
