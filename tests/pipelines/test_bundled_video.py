"""The bundled video model loads by name and moves what it is asked for; sparse attention runs on it as it is."""

import json
import sys

import numpy as np
import pytest
import torch
from diffusers import WanPipeline

from fastdit import FastDiTPipeline, RadialAttention, zoo

MODEL = "fastdit/emoji-video"


@pytest.fixture(scope="module")
def pipe():
    pipe = FastDiTPipeline.from_pretrained(MODEL)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, prompt: str, **more) -> np.ndarray:
    """Frames (T, 64, 64, 3)."""
    return pipe(prompt, generator=torch.Generator().manual_seed(0), output_type="np", **more).frames[0]


def test_a_lemon_is_yellow_and_moves_right(pipe):
    clip = draw(pipe, "a lemon moving right", num_inference_steps=10)
    assert clip.shape == (31, 64, 64, 3) and isinstance(pipe, WanPipeline)
    ink = (clip < 0.9).any(-1)  # (T, 64, 64)
    red, green, blue = clip[ink].mean(0)
    assert min(red, green) > blue + 0.2
    centre = [np.argwhere(frame).mean(0) for frame in ink]
    assert centre[-1][1] - centre[0][1] > 5 > abs(centre[-1][0] - centre[0][0])


def test_sparse_attention_runs_and_says_that_it_is_too_small(pipe):
    pipe.set_methods([RadialAttention(decay=0.2)])
    sparse = draw(pipe, "a lemon moving right", num_inference_steps=3)
    method = pipe.report.methods["radial_attention"]
    assert "blocks of 16, unit 16 for frames of 64 tokens" in method.note and method.density < 1
    assert "1024 tokens are few" in pipe.report.warnings[0]
    pipe.set_methods([])
    assert not np.array_equal(sparse, draw(pipe, "a lemon moving right", num_inference_steps=3))


def test_dense_is_diffusers_own_output(pipe):
    call = {"num_inference_steps": 1, "num_frames": 9}
    plain = WanPipeline.from_pretrained(zoo.folder_of(MODEL), dtype=torch.float32)
    plain.set_progress_bar_config(disable=True)
    assert np.array_equal(draw(plain, "an owl", **{**pipe.call_defaults, **call}), draw(pipe, "an owl", **call))


def test_folder_is_small_and_holds_no_held_out_pair(monkeypatch, request):
    folder = zoo.folder_of(MODEL)
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 30e6
    assert json.loads((folder / "training.json").read_text())["steps"] > 0
    monkeypatch.syspath_prepend(str(request.config.rootpath / "examples"))
    monkeypatch.syspath_prepend(str(request.config.rootpath / "examples" / "emoji_video"))
    import data

    pairs = {f"{data.a(name)} moving {direction}" for name, direction in data.held_out()}
    known = set(zoo.prompts(MODEL))
    assert len(pairs) == 50 and not pairs & known and "a red apple moving left" in known
    sys.modules.pop("data")
