"""The stop rule against a reference that looks at the whole history, and the leap against the solver's own end."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdit.ops.leap import Settling, cosines, leap


def slow_settling_step(history: list[float], tolerance: float, patience: int) -> int | None:
    """The first step in which the last `patience` values all failed to better the best one that stood before each.

    The best one is what the rule took as such: values that better it by less than the tolerance do not replace it.
    """
    bests = [0]  # indices of the values that were the best in their time
    for index in range(1, len(history)):
        if history[index] > history[bests[-1]] + tolerance:
            bests.append(index)
        elif index - bests[-1] == patience:
            return index
    return None


@settings(max_examples=200, deadline=None)
@given(
    history=st.lists(st.integers(-10, 10).map(lambda n: n / 10), min_size=1, max_size=20),
    tolerance=st.sampled_from([0.0, 0.05, 0.1, 0.35]),
    patience=st.integers(1, 4),
)
def test_the_rule_is_the_slow_one(history, tolerance, patience):
    rule = Settling()
    found = next((i for i, value in enumerate(history) if rule.settled(value, tolerance, patience)), None)
    assert found == slow_settling_step(history, tolerance, patience)


def test_the_first_step_only_sets_the_best():
    for first in (-1.0, 0.0, 1.0):
        rule = Settling()
        assert not rule.settled(first, 1e-4, 1)
        assert rule.settled(first, 1e-4, 1)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**20), shape=st.sampled_from([(1, 5), (3, 4, 2), (2, 3, 2, 4, 4)]))
def test_cosines_are_those_of_the_whole_samples(seed, shape):
    a, b = torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))
    for index, value in enumerate(cosines(a, b).tolist()):
        one, other = a[index].flatten().tolist(), b[index].flatten().tolist()
        dot = math.fsum(x * y for x, y in zip(one, other, strict=True))
        assert value == pytest.approx(dot / math.hypot(*one) / math.hypot(*other), abs=1e-6)


def test_cosines_of_half_precision_are_taken_in_fp32():
    a = torch.full((1, 4096), 200.0, dtype=torch.float16)  # the sum of squares is beyond fp16
    assert cosines(a, a).tolist() == [pytest.approx(1, abs=1e-6)] and cosines(a, 0 * a).tolist() == [0.0]
    assert cosines(a, a).dtype == torch.float32


@pytest.mark.parametrize("rises", [False, True])
def test_a_leap_is_where_small_steps_arrive(rises):
    sigmas = [0.0, 0.1, 0.4, 1.0] if rises else [1.0, 0.7, 0.2, 0.0]
    sample, velocity = torch.randn(2, 2, 3, dtype=torch.float64)
    for start in range(3):
        arrived = sample
        for here, there in zip(sigmas[start:], sigmas[start + 1 :], strict=False):
            arrived = arrived + (there - here) * velocity
        leapt = leap(sample, velocity, sigmas[start], sigmas[-1])
        assert leapt.dtype == torch.float32 and torch.allclose(leapt.double(), arrived, atol=1e-6)


def test_a_leap_of_half_precision_is_taken_in_fp32():
    sample, velocity = torch.randn(2, 4, 100).bfloat16()
    exact = sample.double() - 0.7 * velocity.double()
    assert (leap(sample, velocity, 0.7, 0.0).double() - exact).abs().max() < 1e-6
