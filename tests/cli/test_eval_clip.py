"""fastdit eval clip: a score with its checkpoint's name, kept beside the run."""

import json
import sys

import pytest
from evaluation_sets import crops, save, save_run, tiny_clip
from rich.console import Console

from fastdit import cli


def run(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command, in this process."""
    monkeypatch.setattr(sys, "argv", ["fastdit", "eval", "clip", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    captured = capsys.readouterr()
    return exit_.value.code or 0, captured.out, captured.err


def test_the_score_is_printed_and_kept(monkeypatch, capsys, tmp_path):
    folder = save_run(tmp_path / "run", crops(3, 0, side=40), ["a cat", "rain", "tree " * 90])
    model = tiny_clip(tmp_path / "ViT-tiny[b]")
    for _ in range(2):  # the second time with the features that were kept
        code, out, err = run(
            monkeypatch, capsys, folder, "--model", model, "--workers", 0, "--json", tmp_path / "o.json"
        )
        assert code == 0, err
        assert "CLIP score (clip:ViT-tiny[b]): " in out and ", 3 samples" in out
        assert "1 of 3 prompts are longer than the 77 tokens" in out
    data = json.loads((tmp_path / "o.json").read_text())
    kept = json.loads((folder / "results" / "clip.json").read_text())
    assert {key: kept[key] for key in data} == data
    assert [sample["name"] for sample in data["samples"]] == [f"samples/{index:06d}.png" for index in range(3)]
    assert data["model"].startswith("clip:ViT-tiny[b]:") and set(data["values"]["clip"]) == {
        "value",
        "low",
        "high",
        "n",
    }


def test_nothing_is_lost_by_printing(monkeypatch, capsys, tmp_path):
    folder = save_run(tmp_path / "run", crops(2, 0, side=40), "ab")

    def broken(console: Console, *_: object, **__: object) -> None:
        if not console.stderr:  # the bar's
            raise RuntimeError("no terminal")

    monkeypatch.setattr("rich.console.Console.print", broken)
    code, _, _ = run(monkeypatch, capsys, folder, "--model", tiny_clip(tmp_path / "ViT-tiny"), "--workers", 0)
    assert code == 2 and (folder / "results" / "clip.json").is_file()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("bare", "--model", "x"), "bare has no manifest, so no prompts"),
        (("run", "--model", "./nowhere"), "--model ./nowhere could not be loaded as a CLIPModel"),
        (("run", "--json", "no/o.json"), "--json no/o.json: folder no does not exist"),
        (("none",), "none does not exist"),
    ],
)
def test_bad_input_is_one_line(monkeypatch, capsys, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "bare", crops(2, 0, side=16))
    save_run(tmp_path / "run", crops(2, 0, side=16), "ab")
    code, _, err = run(monkeypatch, capsys, *arguments)
    lines = [line for line in err.strip().split("\n") if line.startswith("fastdit: ")]
    assert code == 2 and len(lines) == 1 and message in lines[0], err
