"""fastdit eval generate: the bundled model's samples, alone, in turns, and by two processes."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
from PIL import Image, ImageChops
from test_cli import run

from fastdit.evaluation.manifest import read_manifest, read_settings

SHORT = ("--steps", 2, "--batch", 2)


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("red apple\nrocket\nsunflower\n")
    return path


def difference(one, two):
    """The largest difference of two pictures, in levels of 256."""
    return max(high for _, high in ImageChops.difference(Image.open(one), Image.open(two)).getextrema())


def test_a_sample_is_the_picture_that_generate_makes(monkeypatch, capsys, tmp_path, prompts):
    out = tmp_path / "run"
    code, printed, _ = run(monkeypatch, capsys, "eval", "generate", prompts, *SHORT, "--seed", 5, "-o", out)
    assert code == 0 and str(out) in printed
    assert [(r.prompt, r.seed) for r in read_manifest(out)] == [("red apple", 5), ("rocket", 6), ("sunflower", 7)]
    run(monkeypatch, capsys, "generate", "rocket", "--steps", 2, "--seed", 6, "-o", tmp_path / "rocket.png")
    assert difference(out / "samples/000001.png", tmp_path / "rocket.png") <= 1
    code, printed, _ = run(monkeypatch, capsys, "eval", "generate", prompts, *SHORT, "--seed", 5, "-o", out)
    assert code == 0 and "everything was there already" in printed
    code, _, error = run(monkeypatch, capsys, "eval", "generate", prompts, "--steps", 3, "--batch", 2, "-o", out)
    assert code == 2 and "call.num_inference_steps is 2 there and 3 now" in error


def test_runs_in_turns_start_from_one_noise(monkeypatch, capsys, tmp_path, prompts):
    runs = ("--run", "dense", "--run", "neutral=token_merging:density=1", "--run", "token_merging:density=0.5")
    assert run(monkeypatch, capsys, "eval", "generate", prompts, *runs, *SHORT, "-o", tmp_path)[0] == 0
    dense, neutral, half = (tmp_path / name for name in ("dense", "neutral", "token-merging-density-0.5"))
    for index in range(3):
        name = f"samples/{index:06d}.png"
        assert (dense / name).read_bytes() == (neutral / name).read_bytes() != (half / name).read_bytes()
    assert read_settings(dense)["settings"]["methods"] == []
    assert all(r.macs_executed == r.macs_dense > 0 for r in read_manifest(dense))
    assert all(r.macs_executed < r.macs_dense for r in read_manifest(half))
    assert read_settings(dense)["environment"]["torch"]


def test_two_processes_of_a_launch_make_what_one_makes(monkeypatch, capsys, tmp_path, prompts):
    arguments = ["eval", "generate", prompts, *SHORT, "-m", "token_merging:density=0.5", "--device", "cpu", "-o"]
    assert run(monkeypatch, capsys, *arguments, tmp_path / "one")[0] == 0
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", 2, "-m", "fastdit"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [str(part) for part in (*launch, *arguments, tmp_path / "two")]
    subprocess.run(
        command, check=True, capture_output=True, env=environment, cwd=os.path.dirname(find_spec("fastdit").origin)
    )
    one, two = (read_manifest(tmp_path / name) for name in ("one", "two"))
    assert [r.rank for r in two] == [0, 0, 1]
    assert [(r.file, r.prompt, r.seed, r.settings) for r in one] == [
        (r.file, r.prompt, r.seed, r.settings) for r in two
    ]
    for record in one:
        assert (tmp_path / "one" / record.file).read_bytes() == (tmp_path / "two" / record.file).read_bytes()


def test_a_shard_by_hand_and_classes_of_a_protocol(monkeypatch, capsys, tmp_path, prompts):
    for part in ("1/2", "0/2"):
        assert run(monkeypatch, capsys, "eval", "generate", prompts, *SHORT, "--shard", part, "-o", tmp_path)[0] == 0
    assert [r.rank for r in read_manifest(tmp_path)] == [0, 0, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("absent.txt",), "absent.txt does not exist"),
        (("--protocol", "coco-30k"), "coco-30k needs a file of prompts"),
        (("--protocol", "cifar"), "unknown protocol 'cifar'; known: coco-30k, imagenet-50k"),
        (("--run", "dense", "--run", "x=dense", "-m", "token_merging"), "give either --run or -m/--recipe"),
        (("--run", "dense", "--run", "dense"), "two runs are named dense"),
        (("--run", "token_marging"), "did you mean 'token_merging'"),
        (("--shard", "2/2"), "--shard 2/2: write it as I/N with I from 0 to N - 1"),
        (("--protocol", "imagenet-50k"), "PixArtAlphaPipeline is given prompts, not classes"),
        (("--run", "../x=dense"), "the name '../x' becomes a folder"),
        (("--shard", "two"), "write it as I/N"),
        (("--model", "fastdit/emoji"), "fastdit/emoji-image"),
    ],
)
def test_bad_input_is_one_line_before_any_work(monkeypatch, capsys, tmp_path, arguments, message):
    out = tmp_path / "out"
    code, _, error = run(monkeypatch, capsys, "eval", "generate", *arguments, "-o", out)
    assert code == 2 and message in error and len(error.strip().splitlines()) == 1
    assert not out.exists()


def test_an_output_that_is_a_file_is_refused(monkeypatch, capsys, prompts):
    code, _, error = run(monkeypatch, capsys, "eval", "generate", prompts, "-o", prompts)
    assert code == 2 and "is a file, give a folder" in error
