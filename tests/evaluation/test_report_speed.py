"""Speed-up of reports against numbers worked out by hand: pairs of batches, cold ones, runs that took no turns."""

import numpy as np
import pytest

from fastdit.evaluation.intervals import bootstrap, ratio_of_medians
from fastdit.evaluation.manifest import Record
from fastdit.evaluation.report.speed import speed


def records(seconds, session="s", first=0, cold=1, rank=0, size=2):
    """Records of batches that took these seconds a sample; the first `cold` of them are cold."""
    return [
        Record((first + number) * size + i, "f", "p", 0, "h", value, 2, 1, first + number, session, number < cold, rank)
        for number, value in enumerate(seconds)
        for i in range(size)
    ]


def test_a_speed_up_is_the_ratio_of_medians_over_warm_pairs():
    dense, fast = records([90, 2, 4, 6, 8.0]), records([50, 1, 2, 2, 3.0])
    found = speed(dense, fast)
    pairs = np.array([(2, 1), (4, 2), (6, 2), (8, 3)], float)
    assert found.speedup == bootstrap(pairs, statistic=ratio_of_medians) and found.speedup.value == 5 / 2
    assert found.speedup.n == 4 and found.in_turns is True and not found.warnings
    assert (found.seconds.value, found.seconds.n) == (2, 4), "the median of 1, 2, 2, 3"


def test_pairs_move_together_in_the_bootstrap():
    rng = np.random.default_rng(0)
    load = rng.uniform(1, 5, 12)  # other work on the machine, which slows both alike
    found = speed(records(2 * load), records(load)).speedup
    assert found.low == found.high == pytest.approx(2)


def test_cold_batches_stay_where_fewer_than_three_are_warm():
    found = speed(records([9, 2, 4.0]), records([6, 1, 2.0]))
    assert found.speedup.value == 4 / 2 and found.speedup.n == 3, "medians of all three"
    assert [text.partition(" warming up")[0] for text in found.warnings] == ["its seconds hold", "its speed-up holds"]
    assert speed(None, records([9, 2, 4, 6.0])).seconds.value == 4, "three warm ones are enough"


def test_warming_up_is_told_of_the_batches_behind_each_figure():
    few = records([9, 2, 4.0])
    whole = speed(few, records([6, 1, 2, 2, 2.0]))
    assert whole.speedup.n == 3 and whole.seconds.n == 4, "three pairs, one of them cold, and four warm batches"
    assert whole.warnings == ("its speed-up holds warming up, as fewer than 3 pairs of batches are warm",)
    # the dense run was warming up when this one was not: each has three warm batches, their pairs two
    crossed = speed(records([9, 2, 2, 2.0]), records([1, 1, 1, 5.0], cold=0)[:6] + records([5.0], first=3, cold=4))
    assert [text[:12] for text in crossed.warnings] == ["its speed-up"] and crossed.seconds.n == 3
    apart = speed(few, records([6, 1, 2, 2.0], session="t"))
    assert apart.in_turns is False and apart.warnings[1].startswith(
        "its speed-up holds warming up of the dense run, as"
    )
    both = speed(few, records([6, 1, 2.0], session="t"))
    assert both.warnings[0].startswith("its seconds") and "of the dense run and this one, as" in both.warnings[2]
    assert not speed(records([9, 2, 4, 4.0]), records([9, 2, 4, 4.0])).warnings


@pytest.mark.parametrize("other", [{"session": "t"}, {"rank": 1}, {"session": ""}])
def test_batches_of_another_session_or_rank_are_no_pairs(other):
    dense = records([9, 2, 4, 6.0], **({"session": ""} if other == {"session": ""} else {}))
    found = speed(dense, records([9, 1, 1, 2.0], **other))
    assert found.speedup.value == 4 and found.in_turns is False and found.speedup.low < 4 < found.speedup.high
    assert len(found.warnings) == 1 and "not timed in turns" in found.warnings[0]


def test_only_what_took_turns_is_paired_after_a_kill():
    fast = records([9, 1, 1, 1.0]) + records([50.0, 7], "later", first=4, cold=1)
    found = speed(records([9, 2, 2, 2, 8, 8.0]), fast)
    assert found.speedup.value == 2 and found.speedup.n == 3 and found.in_turns
    lone = speed(records([9, 2, 2, 2, 2, 2.0]), records([3.0]) + records([9, 1, 1, 1, 1.0], "later", first=1))
    assert lone.in_turns is False and lone.speedup.value == 2, "one pair of six batches says less than all unpaired"


def test_a_part_of_a_batch_has_the_batchs_seconds():
    whole = speed(None, records([9, 2, 4, 6.0]))
    assert speed(None, records([9, 2, 4, 6.0])[1:]) == whole


def test_nothing_timed_gives_no_figure():
    assert speed(None, records([0, 0, 0.0])).seconds is None
    found = speed(records([0, 0.0]), records([1, 1, 1, 1.0]))
    assert found.speedup is None and found.seconds.value == 1 and "dense run was not timed" in found.warnings[0]
