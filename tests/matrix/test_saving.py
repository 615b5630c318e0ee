"""Saving while attached writes what would have been written before, and reading it gives diffusers' own class."""

import filecmp
from pathlib import Path

import diffusers
import pytest
import torch
from helpers import BY_NAME, ON_EACH, dense_output, fits, settings_in_forwards, universal_settings

from fastdit import FastDiTPipeline, accelerate


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@ON_EACH
def test_saved_while_attached_is_saved_before(tiny, tmp_path):
    pipe = tiny.make()
    tiny.call(pipe, steps=2)
    names = {name: list(module.state_dict()) for name, module in transformers(pipe)}
    pipe.save_pretrained(tmp_path / "before")
    for index, setting in enumerate(s for s in settings_in_forwards() if fits(tiny, s)):
        with accelerate(pipe, [setting.method]):
            assert {name: list(module.state_dict()) for name, module in transformers(pipe)} == names
            tiny.call(pipe, steps=2)
            pipe.save_pretrained(tmp_path / str(index))
        assert files(tmp_path / str(index)) == files(tmp_path / "before")
        for file in files(tmp_path / "before"):
            assert filecmp.cmp(tmp_path / str(index) / file, tmp_path / "before" / file, shallow=False), file


def transformers(pipe):
    return [(name, getattr(pipe, name)) for name in ("transformer", "transformer_2") if getattr(pipe, name, None)]


@pytest.mark.parametrize("name", ["pixart_alpha", "wan"])
def test_reading_it_gives_diffusers_own_class(name, tmp_path):
    tiny = BY_NAME[name]
    pipe = tiny.make()
    host = type(pipe)
    with accelerate(pipe, [universal_settings()[0].method]):
        pipe.save_pretrained(tmp_path)
    nothing = {key: None for key, value in pipe.components.items() if value is None}
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path, **nothing)
    assert type(again) is host
    assert torch.equal(tiny.call(again), dense_output(name))


def test_other_pipelines_made_from_an_accelerated_one_are_plain():
    """`from_pipe`, called on diffusers' class or on the instance's, and `components` share the transformer."""
    tiny = BY_NAME["pixart_alpha"]
    pipe = tiny.make()
    with accelerate(pipe, [universal_settings()[0].method]):
        fast = tiny.call(pipe)
        for other in (
            diffusers.PixArtSigmaPipeline.from_pipe(pipe),
            type(pipe).from_pipe(pipe),
            diffusers.PixArtAlphaPipeline(**pipe.components),
        ):
            assert not isinstance(other, FastDiTPipeline)
            assert other.transformer is pipe.transformer
            with pytest.raises(ValueError, match="accelerated already"):
                accelerate(other, [universal_settings()[0].method])
        assert torch.equal(tiny.call(pipe), fast)
    assert torch.equal(tiny.call(other), dense_output("pixart_alpha"))


def test_copies_of_an_accelerated_pipeline_are_refused():
    import copy
    import pickle

    pipe = BY_NAME["pixart_alpha"].make()
    with accelerate(pipe, [universal_settings()[0].method]):
        for make in (copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="restore it first"):
                make(pipe)
