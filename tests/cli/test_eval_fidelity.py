"""fastdit eval fidelity: what it prints and writes, and one clear line for bad input."""

import json
import sys

import numpy as np
import pytest

from fastdit import cli
from fastdit.evaluation import frames, perceptual
from fastdit.evaluation.manifest import Record, Writer, open_run


def run(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command, in this process."""
    monkeypatch.setattr(sys, "argv", ["fastdit", "eval", "fidelity", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    captured = capsys.readouterr()
    return exit_.value.code or 0, captured.out, captured.err


def clips(count=3, length=1, sigma=0.0):
    rng = np.random.default_rng(0)
    for index in range(count):
        blocks = rng.integers(0, 256, (8, 8, 3), np.uint8).repeat(4, 0).repeat(4, 1)
        clip = np.stack([np.roll(blocks, t, 1) for t in range(length)])
        yield index, (clip + rng.normal(0, 1, clip.shape) * sigma).clip(0, 255).astype(np.uint8)


def write_run(folder, sigma):
    digest = open_run(folder, folder.name, {"sigma": sigma}, {})
    writer = Writer(folder, 0)
    for index, clip in clips(sigma=sigma):
        frames.write_picture(folder / f"samples/{index:06d}.png", clip[0])
        writer.append(Record(index, f"samples/{index:06d}.png", f"prompt {index}", index, digest, 0.5, 2, 1, 0))
    writer.close()
    return digest


def write_folder(folder, sigma=0.0, suffix=".png", length=1):
    folder.mkdir()
    for index, clip in clips(length=length, sigma=sigma):
        if suffix == ".npy":
            frames.write_raw(folder / f"{index}.npy", clip)
        elif suffix == ".png":
            frames.write_picture(folder / f"{index}.png", clip[0])
        else:
            frames.write_video(folder / f"{index}{suffix}", clip, 8)
    return folder


def test_two_runs_give_a_table_and_a_result_where_the_report_finds_it(monkeypatch, capsys, tmp_path):
    digests = [write_run(tmp_path / name, sigma) for name, sigma in (("dense", 0), ("fast", 10))]
    code, out, err = run(monkeypatch, capsys, tmp_path / "dense", tmp_path / "fast")
    assert code == 0, err
    for text in ("PSNR, dB", "SSIM", "sharpness, accelerated / dense", "0 of 3", "95 % interval", " to "):
        assert text in out
    assert "motion" not in out and "LPIPS" not in out
    kept = json.loads((tmp_path / "fast/results/fidelity.json").read_text())
    assert kept["settings"] == digests[1] and kept["against"] == digests[0]
    assert kept["metric"] == "fidelity" and kept["n"] == 3 and 25 < kept["values"]["psnr"]["value"] < 30
    assert not (tmp_path / "dense/results").exists()


def test_raw_videos_show_motion_frames_and_every_sample(monkeypatch, capsys, tmp_path):
    dense = write_folder(tmp_path / "dense", suffix=".npy", length=3)
    fast = write_folder(tmp_path / "fast", 10, suffix=".npy", length=3)
    code, out, err = run(monkeypatch, capsys, dense, fast, "--per-sample", "--json", tmp_path / "out.json")
    assert code == 0, err
    assert "motion, accelerated / dense" in out and "0 of 9" in out and "warning" not in out
    assert len([line for line in out.splitlines() if " -> " in line]) == 3
    data = json.loads((tmp_path / "out.json").read_text())
    assert len(data["samples"]) == 3 and len(data["samples"][0]["per_frame"]["ssim"]) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "fast", "out.json"]


def test_encoded_videos_are_compared_with_a_warning(monkeypatch, capsys, tmp_path):
    dense = write_folder(tmp_path / "dense", suffix=".npy", length=2)
    fast = write_folder(tmp_path / "fast", suffix=".mp4", length=2)
    code, out, err = run(monkeypatch, capsys, dense, fast)
    assert code == 0, err
    assert "warning: 3 of 3 samples of" in out and "fidelity after encoding" in out


def test_brackets_in_names_are_text_and_nothing_is_lost_by_printing(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("COLUMNS", "150")
    dense = write_folder(tmp_path / "dense", suffix=".npy", length=2)
    (tmp_path / "fast[").mkdir()
    fast = write_folder(tmp_path / "fast[" / "x]", suffix=".mp4", length=2)
    for folder, suffix in ((dense, ".npy"), (fast, ".mp4")):
        (folder / f"1{suffix}").rename(folder / f"[b]1{suffix}")
    code, out, err = run(monkeypatch, capsys, dense, fast, "--per-sample")
    assert code == 0, err
    assert "[b]1" in out and "fast[/x]" in out

    def broken(*_: object) -> None:
        raise RuntimeError("no terminal")

    write_run(tmp_path / "run", 10)
    monkeypatch.setattr("fastdit.cli.eval.fidelity.show", broken)
    code, _, _ = run(monkeypatch, capsys, tmp_path / "run", tmp_path / "run", "--json", tmp_path / "out.json")
    assert code == 2 and (tmp_path / "out.json").is_file() and (tmp_path / "run/results/fidelity.json").is_file()


def test_two_files_are_one_sample(monkeypatch, capsys, tmp_path):
    dense, fast = write_folder(tmp_path / "a"), write_folder(tmp_path / "b", 10)
    code, out, err = run(monkeypatch, capsys, dense / "1.png", fast / "1.png")
    assert code == 0, err
    assert "one sample only" in out


def test_a_perceptual_distance_is_shown_under_its_name(monkeypatch, capsys, tmp_path):
    pytest.importorskip("lpips")
    made = []
    monkeypatch.setattr(perceptual, "lpips", lambda *given: made.append(given) or perceptual.random_trunk("alex"))
    dense, fast = write_folder(tmp_path / "a"), write_folder(tmp_path / "b", 10)
    code, out, err = run(monkeypatch, capsys, dense, fast, "--lpips", "alex", "--device", "cpu", "--per-sample")
    assert code == 0, err
    assert made == [("alex", None, "cpu")] and "random trunk (alex), not LPIPS" in out and "LPIPS(" not in out


def test_bad_input_is_one_line_and_leaves_nothing(monkeypatch, capsys, tmp_path):
    a, b = write_folder(tmp_path / "a"), write_folder(tmp_path / "b")
    frames.write_picture(b / "1.png", np.zeros((32, 40, 3), np.uint8))
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for arguments, message in (
        ((a, tmp_path / "none"), "does not exist: give a folder"),
        ((a, tmp_path / "empty"), "holds no samples"),
        ((a, b, "--json", tmp_path / "out.json"), "sample 1 is 32 x 32 in the first set and 32 x 40 in the second"),
        ((a, a, "--json", tmp_path / "no/out.json"), "no does not exist, make it first"),
        ((a, a, "--lpips-weights", tmp_path), "--lpips-weights needs --lpips alex or --lpips vgg"),
        ((a, a, "--lpips", "squeeze"), "no trunk 'squeeze' here, use one of alex, vgg"),
        ((a, a, "--lpips", "vgg", "--lpips-weights", tmp_path), "needs the file vgg16-397923af.pth"),
    ):
        code, out, err = run(monkeypatch, capsys, *arguments)
        lines = err.strip().splitlines()
        assert code == 2 and out == "" and len(lines) == 1 and message in lines[0], (arguments, out, err)
    assert sorted(tmp_path.rglob("*")) == before
