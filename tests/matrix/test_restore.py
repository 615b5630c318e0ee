"""Restoring is exact: the same objects, classes and outputs as if fastdit had never been there, also after failures."""

import gc

import pytest
import torch
from helpers import (
    BY_NAME,
    ONE_OF_EACH_FAMILY,
    assert_same_objects,
    dense_output,
    first_settings,
    home,
    pairs,
    settings_in_forwards,
    snapshot,
    universal_settings,
)

from fastdit import FastDiTPipeline, accelerate, restore
from fastdit.models.base import family_of

ACTIVE = pytest.mark.parametrize("setting", first_settings(), ids=str)


@pytest.mark.parametrize(("tiny", "setting"), pairs(first_settings()))
def test_restore_is_exact(tiny, setting):
    pipe = tiny.make()
    dense = tiny.call(pipe)
    host, before, state = type(pipe), snapshot(pipe), list(pipe.transformer.state_dict())

    handle = accelerate(pipe, [setting.method])
    assert type(pipe) is not host and isinstance(pipe, host) and isinstance(pipe, FastDiTPipeline)
    assert type(pipe).__name__ == host.__name__
    assert list(pipe.transformer.state_dict()) == state
    fast = tiny.call(pipe)
    with pipe.dense():
        assert torch.equal(tiny.call(pipe), dense)
    assert torch.equal(tiny.call(pipe), fast), "dense() took something away"
    assert list(pipe.transformer.state_dict()) == state
    handle.restore()

    assert type(pipe) is host
    assert_same_objects(before, snapshot(pipe))
    assert torch.equal(tiny.call(pipe), dense) and not torch.equal(fast, dense)
    handle.restore()  # a second time is allowed


def raise_on(count, error):
    """A hook that raises at the `count`th call."""
    left = [count]

    def hook(*_):
        left[0] -= 1
        if not left[0]:
            raise error

    return hook


ERRORS = (RuntimeError("boom"), KeyboardInterrupt())


@pytest.mark.parametrize(
    ("tiny", "setting"), pairs(universal_settings()[:1]) + pairs(first_settings(), ONE_OF_EACH_FAMILY)
)
def test_restore_after_a_block_fails_in_mid_step(tiny, setting):
    pipe, error = tiny.make(), ERRORS[first_settings().index(setting) % 2]
    dense = tiny.call(pipe)
    before = snapshot(pipe)
    handle = accelerate(pipe, [setting.method])
    fast = tiny.call(pipe)

    passes = sum(row.passes for row in handle.report.rows[:1])
    # A14B changes transformers after its first step: what fails in step 2 is the second one
    transformer = getattr(pipe, "transformer_2", None) or pipe.transformer
    in_step_2 = 1 if transformer is not pipe.transformer else passes + 1
    block = family_of(transformer).blocks(transformer)[1][1]
    hook = block.register_forward_hook(raise_on(in_step_2, error))
    with pytest.raises(type(error)):
        tiny.call(pipe)
    hook.remove()
    assert pipe.report.steps == 1
    assert not {"step", "set_timesteps"} & set(vars(pipe.scheduler)), "the clock stayed on the scheduler"
    assert torch.equal(tiny.call(pipe), fast), "the broken run left something behind"
    handle.restore()
    assert_same_objects(before, snapshot(pipe))
    assert torch.equal(tiny.call(pipe), dense)


@ACTIVE
def test_restore_after_the_scheduler_fails(setting, monkeypatch):
    tiny = home(setting, "wan", "pixart_alpha")
    pipe, dense = tiny.make(), dense_output(tiny.name)
    handle = accelerate(pipe, [setting.method])
    with monkeypatch.context() as patch:
        hook = raise_on(2, RuntimeError("boom"))
        original = pipe.scheduler.step
        patch.setattr(pipe.scheduler, "step", lambda *args, **kwargs: (hook(), original(*args, **kwargs))[1])
        with pytest.raises(RuntimeError, match="boom"):
            tiny.call(pipe)
    assert pipe.report.steps == 1
    assert not pipe._fastdit.running
    handle.restore()
    assert torch.equal(tiny.call(pipe), dense)


@ACTIVE
def test_nothing_of_a_run_is_kept(setting):
    """Matchings, layouts and token steps go when the run ends: no tensor made in the run is alive after it."""
    tiny = home(setting, "hunyuan_video", "dit")
    pipe = tiny.make()
    with accelerate(pipe, [setting.method]):
        for batch in (1, 1):  # the first run fills the caches per shape
            gc.collect()
            before = {id(x) for x in gc.get_objects() if torch.is_tensor(x)}
            out = tiny.call(pipe, batch=batch)
        gc.collect()
        left = [x for x in gc.get_objects() if torch.is_tensor(x) and id(x) not in before and x.device.type != "meta"]
    mine = {id(value) for value in vars(pipe.scheduler).values()} | {id(out)}
    left = [x for x in left if x.data_ptr() != out.data_ptr()]  # what a numpy output is a view of
    shapes = [tuple(x.shape) for x in left if id(x) not in mine and x.numel() > 8]
    assert not shapes


@pytest.mark.parametrize(
    ("tiny", "setting"), pairs([*universal_settings()[:1], *settings_in_forwards()[:1]], ONE_OF_EACH_FAMILY)
)
def test_two_pipelines_of_one_class_are_independent(tiny, setting):
    one, other = tiny.make(), tiny.make()
    dense = dense_output(tiny.name)
    with accelerate(one, [setting.method]):
        fast = tiny.call(one)
        assert not isinstance(other, FastDiTPipeline)
        assert torch.equal(tiny.call(other), dense)
        with accelerate(other, [setting.method]):
            assert torch.equal(tiny.call(other), fast)
        assert torch.equal(tiny.call(other), dense)
        assert torch.equal(tiny.call(one), fast)


def test_the_function_restore():
    tiny = BY_NAME["pixart_alpha"]
    pipe = tiny.make()
    host = type(pipe)
    accelerate(pipe, [universal_settings()[0].method])
    restore(pipe)
    assert type(pipe) is host and torch.equal(tiny.call(pipe), dense_output("pixart_alpha"))
    with pytest.raises(ValueError, match="not accelerated"):
        restore(pipe)
