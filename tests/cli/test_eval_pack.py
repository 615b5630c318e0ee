"""fastdit eval pack: an npz that ADM's evaluator reads, or one line and no file."""

import sys

import numpy as np
import pytest
from evaluation_sets import crops, save, save_run

from fastdit import cli


def run(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command, in this process."""
    monkeypatch.setattr(sys, "argv", ["fastdit", "eval", "pack", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    captured = capsys.readouterr()
    return exit_.value.code or 0, captured.out, captured.err


def test_a_run_and_a_folder_are_packed_in_order(monkeypatch, capsys, tmp_path):
    pictures = crops(4, 0, side=18)
    for folder in (save_run(tmp_path / "run", pictures, "abcd"), save(tmp_path / "folder", pictures)):
        code, out, err = run(monkeypatch, capsys, folder, tmp_path / "out.npz", "--num", 3)
        assert code == 0, err
        assert out == f"{tmp_path / 'out.npz'}: 3 pictures of 18 x 18\n"
        with np.load(tmp_path / "out.npz") as file:
            np.testing.assert_array_equal(file["arr_0"], np.stack(pictures[:3]))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("mixed", "out.npz"), "one npz holds one size"),
        (("broken", "out.npz"), "001.png is no picture that can be read"),
        (("mixed", "out.zip"), "ADM's evaluator reads .npz files"),
        (("mixed", "no/out.npz"), "folder no does not exist, make it first"),
        (("none", "out.npz"), "none does not exist"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(monkeypatch, capsys, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "mixed", [*crops(1, 0, side=16), *crops(1, 0, side=20)])
    (save(tmp_path / "broken", crops(2, 0, side=16)) / "001.png").write_bytes(b"PNG")
    before = sorted(tmp_path.rglob("*"))
    code, _, err = run(monkeypatch, capsys, *arguments)
    lines = [line for line in err.strip().split("\n") if line.startswith("fastdit: ")]
    assert code == 2 and len(lines) == 1 and message in lines[0], err
    assert sorted(tmp_path.rglob("*")) == before
