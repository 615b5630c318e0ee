"""Sets of samples: runs, folders, single files; which belong together, and what is refused."""

import json

import numpy as np
import pytest

from fastdit.evaluation import frames
from fastdit.evaluation.generate import Drawn, Run, generate
from fastdit.evaluation.manifest import Item
from fastdit.evaluation.samples import Samples, keep_result, pairs


def picture(value=0):
    return np.full((8, 8, 3), value, np.uint8)


def make_run(folder, prompts=("a", "b", "c"), seed=0):
    items = [Item(i, prompt, seed + i) for i, prompt in enumerate(prompts)]
    generate(
        [Run("r", folder, {"seed": seed}, lambda part: Drawn([picture(item.seed)[None] for item in part], 1.0))],
        items,
        batch=2,
    )
    return Samples.open(folder)


def test_a_folder_gives_its_files_in_order_and_prefers_raw_frames(tmp_path):
    (tmp_path / "in").mkdir()
    frames.write_picture(tmp_path / "b.png", picture(2))
    frames.write_picture(tmp_path / "in" / "a.jpg", picture(1))
    video = np.random.default_rng(0).integers(0, 255, (3, 16, 16, 3), np.uint8)
    frames.write_video(tmp_path / "v.mp4", video, 8)
    frames.write_raw(tmp_path / "v.npy", video)
    (tmp_path / "notes.txt").write_text("no sample")
    samples = Samples.open(tmp_path)
    assert list(samples.names) == ["b", "in/a", "v"]
    assert (samples.read("v") == video).all() and samples.read("b").shape == (1, 8, 8, 3)
    assert not samples.is_run and not samples.records


def test_what_holds_no_samples_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no samples: none of"):
        Samples.open(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        Samples.open(tmp_path / "absent")
    (tmp_path / "x.txt").touch()
    with pytest.raises(ValueError, match=r"unknown file type '\.txt'"):
        Samples.open(tmp_path / "x.txt")
    frames.write_picture(tmp_path / "a.png", picture())
    frames.write_picture(tmp_path / "a.jpg", picture())
    with pytest.raises(ValueError, match=r"a\.jpg and a\.png are two samples of one name"):
        Samples.open(tmp_path)


def test_a_run_that_was_begun_but_holds_nothing_says_so(tmp_path):
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(ValueError, match="no finished samples yet"):
        Samples.open(tmp_path)


def test_runs_are_paired_by_index_prompt_and_seed(tmp_path):
    one, two = make_run(tmp_path / "1"), make_run(tmp_path / "2")
    assert pairs(one, two) == [(f"samples/00000{i}.png",) * 2 for i in range(3)]
    with pytest.raises(ValueError, match=r"sample 1 is 'b' with seed 1 in .*1 and 'x' with seed 1 in .*3"):
        pairs(one, make_run(tmp_path / "3", ("a", "x", "c")))
    with pytest.raises(ValueError, match=r"seed 0 in .* and 'a' with seed 9"):
        pairs(one, make_run(tmp_path / "4", seed=9))
    with pytest.raises(ValueError, match=r"1 of 3 samples of .*1 are not in .*5, the first is '2'"):
        pairs(one, make_run(tmp_path / "5", ("a", "b")))


def test_missing_samples_are_counted_and_runs_are_not_mixed(tmp_path):
    run = make_run(tmp_path / "1")
    assert not run.warnings and Samples.open(tmp_path / "1" / "samples").is_run
    (tmp_path / "1" / "samples" / "000001.png").write_bytes(b"")
    run = Samples.open(tmp_path / "1")
    assert len(run.names) == 2 and "1 of 3 samples are missing" in run.warnings[0]
    make_run(tmp_path / "2")
    with pytest.raises(ValueError, match=r"holds 2 runs \(1, 2\): give one of them"):
        Samples.open(tmp_path)


def test_folders_are_paired_by_name_and_single_files_as_they_are(tmp_path):
    for folder, names in (("x", "ab"), ("y", "ab"), ("z", "abc")):
        (tmp_path / folder).mkdir()
        for name in names:
            frames.write_picture(tmp_path / folder / f"{name}.png", picture())
    x, y, z = (Samples.open(tmp_path / name) for name in "xyz")
    assert pairs(x, y) == [("a", "a"), ("b", "b")]
    for one, two in ((x, z), (z, x)):
        with pytest.raises(ValueError, match=r"1 of 3 samples of .*z are not in .*x, the first is 'c'"):
            pairs(one, two)
    assert pairs(Samples.open(tmp_path / "x/a.png"), Samples.open(tmp_path / "y/b.png")) == [("a.png", "b.png")]


def test_results_are_kept_beside_the_samples_of_a_run(tmp_path):
    run = make_run(tmp_path)
    path = keep_result(run, "fidelity", {"n": 3})
    assert path == tmp_path / "results" / "fidelity.json"
    assert json.loads(path.read_text())["settings"] == run.settings["hash"]
    frames.write_picture(tmp_path / "a.png", picture())
    assert keep_result(Samples.open(tmp_path / "a.png"), "fidelity", {}) is None
    with pytest.raises(ValueError, match="Out of range float"):
        keep_result(run, "bad", {"value": float("nan")})
    assert not (tmp_path / "results" / "bad.json").exists()
