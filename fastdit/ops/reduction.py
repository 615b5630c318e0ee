"""What every token reducer answers with: which reduced row stands for each original row, and the way there and back."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

Grid = tuple[int, int, int]  # (frames, height, width), rows counted in row-major order


@dataclass(frozen=True, eq=False)
class Reduction:
    """N rows stood for by M: row n belongs to group assign[n]; each group has a member and groups keep the rows' order.

    assign is (B, N) long, or (1, N) if all samples agree. A group is its members' mean, or, when pruning, its one row
    `kept` (B, M). Everything derived is computed once here, because one reduction serves many blocks and steps.
    """

    assign: Tensor
    length: int
    kept: Tensor | None = None
    sizes: Tensor = field(
        init=False, repr=False
    )  # (B, M) long: rows in each group; their log is proportional attention's bias
    order: Tensor | None = field(init=False, repr=False)  # (B, N) long: rows sorted by group; None when pruning

    def __post_init__(self) -> None:
        """Count and sort the groups; ValueError if the shapes of assign and kept do not belong together."""
        if self.assign.dim() != 2 or not 1 <= self.length <= self.assign.shape[1]:
            raise ValueError(f"assign is (B, N) with 1 <= length <= N, not {tuple(self.assign.shape)}, {self.length}")
        if self.kept is not None and self.kept.shape != (self.assign.shape[0], self.length):
            raise ValueError(
                f"kept is (B, length) = {(self.assign.shape[0], self.length)}, not {tuple(self.kept.shape)}"
            )
        empty = self.assign.new_zeros(self.assign.shape[0], self.length)  # (B, M)
        sizes = empty.scatter_add(1, self.assign, torch.ones_like(self.assign))  # (B, M)
        object.__setattr__(self, "sizes", sizes)
        order = self.assign.argsort(dim=1, stable=True) if self.kept is None else None  # (B, N)
        object.__setattr__(self, "order", order)

    @property
    def rows(self) -> int:
        """N, the number of original rows."""
        return self.assign.shape[1]

    @property
    def per_sample(self) -> bool:
        """Whether the samples of a batch are reduced differently."""
        return self.assign.shape[0] > 1

    @property
    def is_identity(self) -> bool:
        """Whether every row stands for itself: M equals N, since groups are not empty and keep the rows' order."""
        return self.length == self.rows

    @property
    def dropped(self) -> Tensor:
        """(B, N) bool: rows whose own content is lost, which only pruning has; all False when rows are averaged."""
        if self.kept is None:
            return torch.zeros_like(self.assign, dtype=torch.bool)  # (B, N)
        everything = torch.ones_like(self.assign, dtype=torch.bool)  # (B, N)
        return everything.scatter(1, self.kept, False)

    def reduce(self, x: Tensor) -> Tensor:
        """(B, N, ...) -> (B, M, ...): the mean of each group, or the kept rows; a batch of 1 meets any other batch."""
        if self.is_identity:
            return x
        if self.kept is not None:
            return self._take(x, self.kept, self.rows)
        assert self.order is not None
        x = self._with_batch(x, self.rows)
        batch, trailing = x.shape[0], x.shape[2:]
        flat = x.reshape(batch * self.rows, -1)  # (B N, C)
        half = flat.dtype in (torch.float16, torch.bfloat16)
        # embedding_bag averages runs of listed rows in one pass: 4 times faster than index_add_ on CPU, and with a
        # fixed order of summation on CUDA, where index_add_ adds atomically and differs from run to run.
        if x.device.type == "mps":  # not in every torch release there
            total = x.new_zeros(batch * self.length, flat.shape[1])
            total.index_add_(0, _flat_index(self.assign.expand(batch, -1), batch, self.length), flat)
            mean = total / self.sizes.expand(batch, -1).reshape(-1, 1).to(total.dtype)
            return mean.reshape(batch, self.length, *trailing)
        starts = self.sizes.cumsum(1) - self.sizes  # (B, M)
        mean = F.embedding_bag(
            _flat_index(self.order, batch, self.rows),
            flat.float() if half else flat,  # half precision would lose small terms of large groups
            _flat_index(starts, batch, self.rows),
            mode="mean",
        )  # (B M, C)
        return mean.to(x.dtype).reshape(batch, self.length, *trailing)

    def restore(self, y: Tensor) -> Tensor:
        """(B, M, ...) -> (B, N, ...): every original row takes a copy of the row that stands for it."""
        return y if self.is_identity else self._take(y, self.assign, self.length)

    def _take(self, x: Tensor, index: Tensor, rows: int) -> Tensor:
        """Rows `index` (B, K) of x (B, rows, ...): index_select on flat rows moves whole rows, a gather elements."""
        x = self._with_batch(x, rows)
        batch, trailing = x.shape[0], x.shape[2:]
        taken = x.reshape(batch * rows, -1).index_select(0, _flat_index(index, batch, rows))  # (B K, C)
        return taken.reshape(batch, index.shape[1], *trailing)

    def _with_batch(self, x: Tensor, rows: int) -> Tensor:
        """x with the batch of `assign` if its own is 1; ValueError if it has other rows or samples than expected."""
        batch = self.assign.shape[0]
        if x.shape[1] != rows or (x.shape[0] != batch and 1 not in (x.shape[0], batch)):
            raise ValueError(f"expected rows of shape ({batch}, {rows}, ...), got {tuple(x.shape)}")
        return x if x.shape[0] >= batch else x.expand(batch, *x.shape[1:])


def identity(rows: int, device: torch.device | str | None = None) -> Reduction:
    """The reduction that changes nothing: `rows` groups of one row; reduce and restore return their argument."""
    return Reduction(torch.arange(rows, device=device).unsqueeze(0), rows)


def check_keep(rows: int, keep: int, grid: Grid) -> None:
    """ValueError naming the mend if `grid` does not hold `rows` rows, or `keep` is not in [1, rows]."""
    frames, height, width = grid
    if frames * height * width != rows:
        raise ValueError(
            f"grid {tuple(grid)} has {frames * height * width} rows but the metric has {rows}; pass its grid"
        )
    if not 1 <= keep <= rows:
        raise ValueError(f"keep={keep} is outside [1, {rows}]; keep at least one row and at most all")


def unit_rows(metric: Tensor) -> Tensor:
    """Rows (B, N, C) scaled to length 1 in at least float32, off the autograd graph: a choice has no gradient."""
    metric = metric.detach()
    unit = F.normalize(metric if metric.dtype == torch.float64 else metric.float(), dim=-1)  # (B, N, C)
    # A model that overflowed shows it in its output; here nan would only become an index out of range.
    return unit.nan_to_num()


def _flat_index(index: Tensor, batch: int, stride: int) -> Tensor:
    """Row numbers (B or 1, K) within samples -> (batch K,) row numbers in a batch whose samples have `stride` rows."""
    first = torch.arange(batch, device=index.device).unsqueeze(1) * stride  # (B, 1)
    return (index + first).flatten()
