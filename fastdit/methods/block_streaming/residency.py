"""Which blocks stay in memory and which are streamed, for a budget: pure arithmetic on sizes.

Access is cyclic, so keeping what was used last would keep exactly what is needed last: the kept blocks are fixed
instead, and spread evenly, so that each streamed block is read while one or more kept blocks compute.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Residency:
    """Units kept (by index), and `slots` reused buffers of `slot_bytes` through which all others pass."""

    kept: frozenset[int]
    slots: int
    slot_bytes: int
    kept_bytes: int

    @property
    def nbytes(self) -> int:
        """Bytes that are held once every kept unit was read."""
        return self.kept_bytes + self.slots * self.slot_bytes


def smallest_budget(sizes: Sequence[int]) -> int:
    """The least budget that works: the largest unit alone."""
    return max(sizes, default=0)


def plan_residency(sizes: Sequence[int], budget: int) -> Residency:
    """As many units as fit are kept; the rest goes through two buffers, or one where two do not fit.

    ValueError where not even the largest unit fits.
    """
    if smallest_budget(sizes) > budget:
        raise ValueError(f"{budget} bytes do not hold the largest unit of {smallest_budget(sizes)}")
    everything = frozenset(range(len(sizes)))
    if sum(sizes) <= budget:
        return Residency(everything, 0, 0, sum(sizes))
    half = max(sizes) / 2
    small = sorted((index for index in everything if sizes[index] < half), key=lambda index: sizes[index])
    large = sorted(everything - set(small))
    # the small ones first: each read costs a little besides its bytes
    choices = [frozenset(small) | spread(large, count) for count in range(len(large) - 1, -1, -1)]
    choices += [frozenset(small[:count]) for count in range(len(small) - 1, -1, -1)]
    for slots in (2, 1):
        for kept in choices:
            streamed = everything - kept
            found = Residency(
                kept, min(slots, len(streamed)), max(sizes[index] for index in streamed), sum(sizes[i] for i in kept)
            )
            if found.nbytes <= budget:
                return found
    raise AssertionError("one buffer of the largest unit fits, as checked above")


def spread(items: Sequence[int], count: int) -> frozenset[int]:
    """`count` of the items, as evenly spaced as can be."""
    total = len(items)
    return frozenset(item for place, item in enumerate(items) if (place + 1) * count // total > place * count // total)
