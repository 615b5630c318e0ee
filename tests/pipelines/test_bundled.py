"""The bundled model is what the README shows: it loads by name, runs accelerated, and draws what it is asked for."""

import json

import numpy as np
import pytest
import torch
from diffusers import PixArtAlphaPipeline

from fastdit import FastDiTPipeline, zoo
from fastdit.pipelines.recipes import Recipe

MODEL = "fastdit/emoji-image"


@pytest.fixture(scope="module")
def pipe():
    pipe = FastDiTPipeline.from_pretrained(MODEL)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def colour(picture: np.ndarray) -> np.ndarray:
    """Mean colour of what is drawn: the pixels that are not white."""
    drawn = picture[(picture < 0.9).any(-1)]
    assert 0.1 < len(drawn) / (64 * 64) < 0.9
    return drawn.mean(0)


def test_one_call_without_other_arguments_draws_a_red_apple(pipe):
    out = pipe("red apple", generator=torch.Generator().manual_seed(0))
    red, green, blue = colour(np.asarray(out.images[0]) / 255)
    assert red > 0.6 and red > green + 0.25 and red > blue + 0.25
    assert isinstance(pipe, FastDiTPipeline) and isinstance(pipe, PixArtAlphaPipeline)
    assert pipe.report.steps == 20 and pipe.report.macs_executed < pipe.report.macs_dense


def test_different_prompts_draw_different_colours(pipe):
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    broccoli, heart = pipe(["broccoli", "blue heart"], generator=generators, output_type="np").images
    assert colour(broccoli).argmax() == 1 and colour(heart).argmax() == 2


def test_dense_is_diffusers_own_output(pipe):
    call = {"prompt": "rocket", "output_type": "np", "num_inference_steps": 2}
    plain = PixArtAlphaPipeline.from_pretrained(zoo.folder_of(MODEL), dtype=torch.float32)
    plain.set_progress_bar_config(disable=True)
    more = {**pipe.call_defaults, **call}
    expected = plain(**more, generator=torch.Generator().manual_seed(1)).images
    with pipe.dense():
        dense = pipe(**call, generator=torch.Generator().manual_seed(1)).images
    assert np.array_equal(dense, expected)


def test_folder_is_small_and_complete():
    folder = zoo.folder_of(MODEL)
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 30e6
    assert "red apple" in zoo.prompts(MODEL) and len(zoo.prompts(MODEL)) <= 300
    assert json.loads((folder / "training.json").read_text())["steps"] > 0
    assert Recipe.load(folder / "fastdit.json").methods
    assert not list(folder.rglob("*.bin")) and not list(folder.rglob("*.pt"))
