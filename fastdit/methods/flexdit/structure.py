"""Which block of a transformer plays which role, and which sparse grid belongs to which noise time."""

import itertools
import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fastdit.methods.flexdit.config import FlexDiT, checked_rate
from fastdit.ops.token_grid import Grid, nearest_grid, pruning_rate

Role = Literal["pooling", "generate", "sparse", "recover", "dense"]
STEPS = 1000  # the rate changes from one whole timestep of T to the next, as these are what models are trained on
COUNTS = ("pooling", "modules", "sparse", "dense")


@dataclass(frozen=True)
class Structure:
    """The options with nothing left open; the defaults are those of DiT-XL/2, as published."""

    pooling: int = 2
    modules: int = 4
    sparse: int = 3
    dense: int = 1
    rate: tuple[float, float] | float | None = (0.61, 0.86)
    grid: int | None = None

    @property
    def needed(self) -> int:
        """Blocks that have a role of their own; those above are dense."""
        return self.pooling + self.modules * (2 + self.sparse + self.dense)

    def roles(self, depth: int) -> list[Role]:
        """The role of each block; ValueError where the blocks do not suffice, with counts that fit."""
        if self.needed > depth:
            raise ValueError(
                f"flexdit: pooling={self.pooling} and modules={self.modules} of 2 + sparse={self.sparse} + "
                f"dense={self.dense} blocks need {self.needed} blocks, and this transformer has {depth}: "
                f"take {self.fitting(depth)}"
            )
        module: list[Role] = ["generate"]
        module += ["sparse"] * self.sparse
        module += ["recover"]
        module += ["dense"] * self.dense
        roles: list[Role] = ["pooling"] * self.pooling
        roles += module * self.modules
        roles += ["dense"] * (depth - len(roles))
        return roles

    def fitting(self, depth: int) -> str:
        """Lower counts that fit: a module if possible, then pooling and dense as they are, then most sparse blocks."""
        ranges = (range(min(getattr(self, name), depth) + 1) for name in COUNTS)
        candidates = (Structure(*counts) for counts in itertools.product(*ranges))
        best = max(
            (candidate for candidate in candidates if candidate.needed <= depth),
            key=lambda c: (c.modules > 0, c.pooling, c.dense, c.modules * c.sparse, c.modules),
        )
        names = COUNTS if best.modules else COUNTS[:2]
        return ", ".join(f"{name}={getattr(best, name)}" for name in names)

    def sparse_grid(self, grid: Grid, time: float = 0.0) -> Grid:
        """The sparse grid at noise time t / T; ValueError for a fixed one that is finer than the full grid."""
        height, width = grid
        if self.grid is not None:
            if self.grid**2 > height * width:
                raise ValueError(
                    f"grid={self.grid} is finer than the {height} x {width} tokens of this picture: give at most "
                    f"{math.isqrt(height * width)}"
                )
            return nearest_grid(grid, 1 - self.grid**2 / (height * width))
        if not isinstance(self.rate, tuple):
            return nearest_grid(grid, self.rate or 0.0)
        step = math.floor(time * STEPS + 1e-3)  # the margin is for steps / T that float32 rounds down
        return nearest_grid(grid, pruning_rate(step / STEPS, *self.rate))

    def intervals(self, grid: Grid) -> list[tuple[float, float]]:
        """Ranges low <= t / T < high of equal sparse grids, in rising order; together they are [0, 1]."""
        if not self.modules:
            return [(0.0, 1.0)]
        groups = itertools.groupby(range(STEPS), key=lambda step: self.sparse_grid(grid, step / STEPS))
        starts = [next(steps) for _, steps in groups]
        return [(low / STEPS, high / STEPS) for low, high in itertools.pairwise([*starts, STEPS])]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self) | {"rate": list(self.rate) if isinstance(self.rate, tuple) else self.rate}


def structure_of(method: FlexDiT, stored: dict[str, Any] | None) -> tuple[Structure, Structure | None]:
    """The structure that a method's options mean, and that of its checkpoint.

    How many blocks have which role is the checkpoint's to say, and ValueError names an option that contradicts it;
    the grids may differ.
    """
    trained = None if stored is None else _trained(stored, method.checkpoint)
    chosen: dict[str, Any] = asdict(trained or Structure())
    for name in COUNTS:
        given = getattr(method, name)
        if given is None or given == chosen[name]:
            continue
        if trained is not None:
            raise ValueError(
                f"flexdit: {name}={given} contradicts checkpoint {method.checkpoint}, whose weights were trained with "
                f"{name}={chosen[name]}: leave {name} out"
            )
        chosen[name] = given
    if method.rate is not None or method.grid is not None:
        chosen |= {"rate": method.rate, "grid": method.grid}
    return Structure(**chosen), trained


def _trained(stored: dict[str, Any], checkpoint: str | None) -> Structure:
    try:
        counts = {name: int(stored[name]) for name in COUNTS}
        rate, grid = stored["rate"], stored["grid"]
        return Structure(**counts, rate=None if rate is None else checked_rate(rate), grid=grid)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"checkpoint {checkpoint}: its structure is damaged ({error!r}), write it again") from None
