"""Neutral settings are dense bit for bit although installed and called; all others do something and say what."""

import pytest
import torch
from helpers import counted, dense_output, pairs, settings, settings_in_forwards

from fastdit import accelerate
from fastdit.methods.base import load_methods
from fastdit.models.base import load_families


def test_every_method_and_family_is_in_the_tables():
    from methods_table import TABLE
    from tiny import TINY

    assert set(load_methods()) == set(TABLE), "add one row to tests/methods_table.py"
    assert {name for name in load_families() if "test" not in name} <= {tiny.family for tiny in TINY}


@pytest.mark.parametrize(("tiny", "setting"), settings("neutral"))
def test_neutral_is_dense_and_called(tiny, setting, monkeypatch):
    assert setting.method.neutral
    pipe = tiny.make()
    with counted(monkeypatch, *setting.seam) as calls, accelerate(pipe, [setting.method]) as handle:
        out = tiny.call(pipe, batch=2)
    assert torch.equal(out, dense_output(tiny.name, batch=2))
    report = handle.report
    # the skeleton on which MACs are counted makes calls too: at least the real ones must be there
    assert len(calls) >= sum(method.calls for method in report.methods.values()) > 0
    assert report.macs_executed == report.macs_dense > 0
    assert {method.density for method in report.methods.values()} == {1.0}


@pytest.mark.parametrize(("tiny", "setting"), settings("active"))
def test_active_acts_and_reports(tiny, setting, monkeypatch):
    assert not setting.method.neutral
    pipe, dense = tiny.make(), dense_output(tiny.name, batch=2)
    with counted(monkeypatch, *setting.seam) as calls, accelerate(pipe, [setting.method]) as handle:
        out = tiny.call(pipe, batch=2)
        report = handle.report
    assert out.shape == dense.shape and out.isfinite().all()
    assert not torch.equal(out, dense)
    assert (out - dense).abs().max() > 3e-5 * dense.abs().max()  # rounding is under 1e-6

    executed = sum(method.calls for method in report.methods.values())
    on_steps = setting.method.stage == "step"
    assert len(calls) >= executed == (report.steps if on_steps else 2 * report.evaluations)  # two blocks in every row
    for method in report.methods.values():
        assert method.layers == (0 if on_steps else 2) and 0 < method.density < 1 and not method.reason
    assert 0 < report.macs_executed < report.macs_dense
    assert report.steps == (2 if on_steps else 3) and report.steps_asked == 3 and report.seconds > 0
    assert report.warnings == list(dict.fromkeys(text for m in report.methods.values() for text in m.cautions))
    assert [row.step for row in report.rows] == [0, 1, 2]
    assert sum(row.macs_executed for row in report.rows) == report.macs_executed
    assert sum(row.passes for row in report.rows) == report.evaluations
    noises = [row.noise for row in report.rows]
    assert noises == sorted(noises, reverse=True) and 0 <= noises[-1] < noises[0] <= 1


@pytest.mark.parametrize(("tiny", "setting"), pairs(settings_in_forwards()[:1], ["wan"]))
def test_the_same_run_twice_is_the_same(tiny, setting):
    pipe = tiny.make()
    with accelerate(pipe, [setting.method]):
        assert torch.equal(tiny.call(pipe), tiny.call(pipe))
