"""Bootstrap intervals: closed forms, groups, and what one sample cannot have."""

import numpy as np
import pytest

from fastdit.evaluation.intervals import Interval, bootstrap, draws_of, ratio_of_medians


def test_the_interval_of_a_mean_is_that_of_the_normal_law():
    values = np.random.default_rng(3).normal(10, 2, 400)
    found = bootstrap(values)
    half = 1.96 * values.std() / np.sqrt(400)
    assert found.value == values.mean() and found.n == 400
    assert found.low == pytest.approx(values.mean() - half, abs=0.25 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.25 * half)


def test_the_fast_path_of_the_mean_equals_the_general_one():
    values = np.random.default_rng(0).random(30)
    groups = [i // 3 for i in range(30)]
    fast, general = bootstrap(values, groups), bootstrap(values, groups, statistic=np.mean)
    assert (fast.low, fast.high) == pytest.approx((general.low, general.high), abs=1e-12)


def test_samples_of_one_prompt_are_drawn_together():
    counts = draws_of(["a", "a", "b", "b", "b", "c"])
    assert counts.shape == (1000, 6)
    assert (counts[:, 0] == counts[:, 1]).all() and (counts[:, 2] == counts[:, 4]).all()
    assert (counts[:, 0] + counts[:, 2] + counts[:, 5] == 3).all()
    # five equal copies of each value carry no more evidence than one
    values = np.random.default_rng(1).random(40)
    alone, copies = bootstrap(values), bootstrap(np.repeat(values, 5), np.repeat(range(40), 5).tolist())
    assert (copies.low, copies.high) == pytest.approx((alone.low, alone.high), abs=1e-12)
    naive = bootstrap(np.repeat(values, 5))
    assert naive.high - naive.low < 0.6 * (copies.high - copies.low)


def test_one_sample_or_one_prompt_has_no_interval():
    assert bootstrap([4.0]) == Interval(4.0, None, None, 1)
    assert bootstrap([1.0, 3.0], ["a", "a"]) == Interval(2.0, None, None, 2)
    assert str(bootstrap([4.0])) == "4.0" and bootstrap([1.0, 1.0]).text(2) == "1.00 (1.00 to 1.00)"


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="at least one sample"):
        bootstrap([])
    with pytest.raises(ValueError, match="2 groups, 3 samples"):
        bootstrap([1, 2, 3], ["a", "b"])


def test_ratio_of_medians_is_not_moved_by_one_disturbed_round():
    pairs = np.array([[2.0, 1.0], [2.1, 1.0], [1.9, 1.0], [40.0, 1.0], [2.0, 30.0]])
    assert ratio_of_medians(pairs) == 2.0
    found = bootstrap(pairs, statistic=ratio_of_medians)
    assert found.value == 2.0 and found.low < 2.0 < found.high
