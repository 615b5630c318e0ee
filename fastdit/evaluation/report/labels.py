"""Where the names of points go in a plot: beside their point, over nothing else, not to be taken for another's."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DISTANCES = (8, 22, 38, 56, 78, 104)  # of a name from its point
DIRECTIONS = ((1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0))
TRIES = 12  # orders in which the names are placed: who comes first takes the best place
OUTSIDE, MISTAKEN, FAR = 1e6, 400.0, 1.0


@dataclass(frozen=True)
class Place:
    """Corners (x0, y0, x1, y1) of a name, and the corner or edge to which a line leads from its point, if it is far."""

    box: np.ndarray
    line_to: np.ndarray | None
    cost: float


def place(
    points: np.ndarray, sizes: np.ndarray, taken: np.ndarray, frame: np.ndarray, unit: float = 1.0
) -> list[Place]:
    """A place for each name: points (n, 2), sizes (n, 2) of names, boxes (m, 4) that are taken, the frame (4,).

    All in pixels from the lower left; `unit` is the pixels of one point of type. Several orders are tried, always the
    same ones, and the one that covers least is taken.
    """
    rng = np.random.default_rng(0)
    orders = [np.argsort(points[:, 0]), np.argsort(-points[:, 0])]
    orders += [rng.permutation(len(points)) for _ in range(TRIES)]
    best: list[Place] = []
    for order in orders:
        found = _in_order(order.tolist(), points, sizes, taken, frame, unit)
        if not best or _cost(found) < _cost(best):
            best = found
        if _cost(best) <= len(points) * FAR * DISTANCES[0]:  # all are near and cover nothing
            break
    return best


def _cost(places: Sequence[Place]) -> float:
    return sum(one.cost for one in places)


def _in_order(
    order: Sequence[int], points: np.ndarray, sizes: np.ndarray, taken: np.ndarray, frame: np.ndarray, unit: float
) -> list[Place]:
    places: dict[int, Place] = {}
    for number in order:
        others = np.delete(points, number, 0)
        named = [np.array([*one.box[:2] - 2 * unit, *one.box[2:] + 2 * unit]) for one in places.values()]
        covered = np.array([*taken, *named]).reshape(-1, 4)
        choices = [
            _judged(points[number], sizes[number], direction, far, others, covered, frame, unit)
            for far in range(len(DISTANCES))
            for direction in DIRECTIONS
        ]
        best = places[number] = min(choices, key=lambda one: one.cost)
        if best.line_to is not None:  # no later name on this line
            taken = np.array([*taken, *_dots(points[number], best.line_to, unit)])
    return [places[number] for number in range(len(points))]


def _judged(
    point: np.ndarray,
    size: np.ndarray,
    direction: tuple[int, int],
    far: int,
    others: np.ndarray,
    covered: np.ndarray,
    frame: np.ndarray,
    unit: float,
) -> Place:
    """A name in one direction and distance, and what is bad about it: pixels covered, points it may be taken for."""
    way = np.array(direction)
    anchor = point + way * np.array([1, 0.75]) * DISTANCES[far] * unit
    low = anchor + (way - 1) / 2 * size  # the corner or edge that looks at the point stands on the anchor
    box = np.array([*low, *(low + size)])
    shared = np.minimum(box[2:], covered[:, 2:]) - np.maximum(box[:2], covered[:, :2])
    cost = float(shared.clip(0).prod(1).sum() / unit**2) + FAR * DISTANCES[far]
    cost += OUTSIDE * bool((box[:2] < frame[:2]).any() or (box[2:] > frame[2:]).any())
    nearest = point.clip(box[:2], box[2:])
    if far == 0:
        near = np.linalg.norm(others - others.clip(box[:2], box[2:]), axis=1)
        mistaken = near < np.linalg.norm(point - nearest) + 1.5 * unit
    else:
        dots = _dots(point, nearest, unit)[:, :2]
        mistaken = np.linalg.norm(others[:, None] - dots, axis=2).min(1, initial=np.inf) < 4 * unit
    return Place(box, nearest if far else None, cost + MISTAKEN * float(mistaken.sum()))


def _dots(start: np.ndarray, end: np.ndarray, unit: float) -> np.ndarray:
    """Small boxes (k, 4) along a line."""
    dots = start + (end - start) * np.linspace(0, 1, 24)[:, None]
    return np.concatenate([dots, dots + 0.5 * unit], 1)
