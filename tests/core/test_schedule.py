import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdit.core.schedule import Schedule

numbers = st.floats(-1e6, 1e6)
levels = st.floats(0, 1)
schedules = st.one_of(
    st.builds(Schedule.constant, numbers),
    st.builds(Schedule.linear, numbers, numbers),
    st.builds(Schedule.cosine, numbers, numbers),
    st.builds(Schedule.points, st.lists(st.tuples(levels, numbers), min_size=1, max_size=5, unique_by=lambda p: p[0])),
)


@settings(max_examples=60, deadline=None)
@given(schedules)
def test_every_form_reads_back(schedule):
    assert Schedule.parse(schedule) is schedule
    assert Schedule.parse(str(schedule)) == schedule
    assert Schedule.parse(json.loads(json.dumps(schedule.to_dict()))) == schedule
    assert hash(Schedule.parse(str(schedule))) == hash(schedule)


@settings(max_examples=60, deadline=None)
@given(schedules, levels)
def test_the_curve_lies_between_its_values_and_meets_its_knots(schedule, noise):
    low, high = min(schedule.values()), max(schedule.values())
    assert low - 1e-6 <= schedule.at(noise) <= high + 1e-6
    assert all(schedule.at(level) == value for level, value in schedule.knots)


def test_values_by_hand():
    assert Schedule.parse(0.5).at(0.3) == 0.5
    linear = Schedule.parse("linear:0.4:0.9")
    assert linear.at(1) == 0.4 and linear.at(0) == 0.9 and linear.at(0.25) == pytest.approx(0.775)
    cosine = Schedule.parse("cosine:0.4:0.9")
    assert cosine.at(0.5) == pytest.approx(0.65)
    assert cosine.at(0.25) == pytest.approx(0.9 - 0.5 * (1 - math.cos(math.pi / 4)) / 2)
    points = Schedule.parse("points:1=0.4:0.5=0.8:0.25=1")
    assert points.at(0.75) == pytest.approx(0.6) and points.at(0.1) == 1 and points.at(2) == 0.4
    assert points == Schedule.points([[0.25, 1], [1, 0.4], [0.5, 0.8]])


def test_written_forms():
    assert str(Schedule.constant(1.0)) == "1" and Schedule.constant(0.5).to_dict() == 0.5
    assert str(Schedule.linear(0.4, 0.9)) == "linear:0.4:0.9"
    assert Schedule.linear(0.4, 0.9).to_dict() == {"kind": "linear", "noise_1": 0.4, "noise_0": 0.9}
    assert str(Schedule.points([[0, 1], [0.5, 0.8], [1, 0.4]])) == "points:1=0.4:0.5=0.8:0=1"
    assert Schedule.parse({"kind": "constant", "value": 2}) == Schedule.constant(2)


def test_quantised_is_a_sixteenth():
    ramp = Schedule.linear(0.0, 1.0)
    got = [ramp.quantised(i / 200) for i in range(201)]
    assert set(got) == {i / 16 for i in range(1, 17)}
    assert Schedule.constant(0.53).quantised(0.5) == 0.5 and Schedule.constant(0.55).quantised(0.5) == 0.5625
    assert Schedule.constant(7.0).quantised(0) == 1.0 and Schedule.constant(0.3).quantised(0, step=1 / 4) == 0.25


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("sloped:1:2", "known: constant, linear"),
        ("linear:1", "two values, not 1"),
        ("linear:a:b", "Write a number"),
        ("half", "Write a number"),
        ("points:1", "not pairs"),
        ("points:2=1", "pure noise"),
        ({"kind": "linear", "noise_1": 1}, "noise_1, noise_0"),
        ({"kind": "linear", "noise_1": 1, "noise_0": 1, "extra": 1}, "takes exactly"),
        ({"kind": "points", "points": []}, "at least one point"),
        ({"kind": "points", "points": [[0, 1], [0, 2]]}, "repeat"),
        ({"noise_1": 1}, "unknown kind"),
        (float("nan"), "finite"),
        (True, "not numbers"),
        (None, "Write a number"),
    ],
)
def test_errors_name_the_mend(bad, message):
    with pytest.raises(ValueError, match=message):
        Schedule.parse(bad)
