"""fastdit train: a run from pictures to an adapter that loads in one line, and bad input."""

import json

import numpy as np
import pytest
import torch
from test_cli import run
from tiny import make_dit

from fastdit import DyDiT, FastDiTPipeline

SHORT = ("--steps", 2, "--batch", 4, "--warmup", 1, "--hold", 0, "--device", "cpu", "--lr-warmup", 0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_dit().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "pictures.npz"
    pictures = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    np.savez(path, x=pictures, y=np.arange(6))
    return path


def test_from_pictures_to_an_adapter_that_loads_in_one_line(monkeypatch, capsys, tmp_path, model, data):
    out = tmp_path / "out"
    command = ("train", "dydit", "--model", model, "--data", data, "-o", out, *SHORT, "--target", 0.7)
    code, printed, error = run(monkeypatch, capsys, *command)
    assert code == 0, error
    assert str(out / "adapter") in printed and "step 2" in printed and str(out / "curves.png") in printed
    assert (
        printed.splitlines()[-1]
        == f'FastDiTPipeline.from_pretrained("{model}", methods=[DyDiT(checkpoint="{out}/adapter")])'
    )
    assert "step 1/2  loss" in error and "share" in error
    pipe = FastDiTPipeline.from_pretrained(model, methods=[DyDiT(checkpoint=str(out / "adapter"))])
    about = json.loads((out / "adapter/fastdit_adapter.json").read_text())
    assert about["training"]["steps"] == 2 and str(tmp_path) not in json.dumps(about["training"])
    with torch.no_grad():
        sample = pipe.transformer(
            torch.randn(1, 4, 16, 16), timestep=torch.tensor([500]), class_labels=torch.tensor([1])
        ).sample
    assert sample.isfinite().all()

    code, _, error = run(monkeypatch, capsys, *command, "--lr", 0.1)
    assert code == 2 and "--lr is 0.0001 there and 0.1 now" in error
    code, printed, error = run(monkeypatch, capsys, *command, "--steps", 3, "--resume", "--quiet")
    assert code == 0 and "step 3" in printed and "loss" not in error


def test_a_target_out_of_reach_is_a_warning(monkeypatch, capsys, tmp_path, model, data):
    short = (*SHORT, "--hold", 5)
    code, _, error = run(
        monkeypatch, capsys, "train", "dydit", "--model", model, "--data", data, "-o", tmp_path, *short
    )
    assert code == 0 and "warning: the target falls to 0.5 only at step 6" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dydit", "--target", 0), "--target must be a number above 0 and at most 1, got 0"),
        (("dydit", "--target", 1.2), "--target must be"),
        (("dense", "--target", 0.5), "--target: only a method that routes"),
        (("dydit:tokens=0.5",), "dydit: tokens=0.5 is for running the model, not for training it"),
        (("dydit", "--data", "absent"), "--data absent does not exist"),
        (("dydit", "--data", "empty"), "empty"),
        (("dydit", "--resume"), "holds no checkpoint to go on from"),
        (("dydit", "--device", "gpu"), "--device gpu: use auto or cpu"),
        (("dydit", "--init", "absent/adapter/folder"), "absent/adapter/folder does not exist"),
        (("radial_attention", "--parameters", "lora"), "does not fit"),
        (("dydiT", "--steps", 3), "did you mean 'dydit'"),
        (("dydit", "--model", "nowhere"), "unknown model 'nowhere'"),
    ],
)
def test_bad_input_is_one_line_before_any_work(monkeypatch, capsys, tmp_path, model, data, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    given = {"--model": model, "--data": data, "-o": "out", **dict(zip(arguments[1::2], arguments[2::2], strict=False))}
    flags = [a for a in arguments if a == "--resume"]
    code, _, error = run(
        monkeypatch, capsys, "train", arguments[0], *[part for pair in given.items() for part in pair], *flags
    )
    assert code == 2 and message in error and len(error.strip().splitlines()) == 1, error
    assert not (tmp_path / "out").exists()
