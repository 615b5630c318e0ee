"""Which runs a report is about: finding, naming, choosing the dense one, cutting to common samples."""

import dataclasses
from pathlib import Path

import pytest
from report_runs import ITEMS, MERGING, run_of, write_runs

from fastdit.evaluation.generate import generate
from fastdit.evaluation.report.runs import (
    choose_dense,
    common,
    describe_methods,
    differences,
    environments,
    find_runs,
    published,
    shared_settings,
    without_paths,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_runs(tmp_path_factory.mktemp("runs"))


def test_a_folder_is_a_run_or_holds_runs(folder, tmp_path):
    assert [run.name for run in find_runs([folder])] == ["dense", "mild", "strong"]
    assert [run.name for run in find_runs([folder / "mild", folder])] == ["mild", "dense", "strong"], "each once"
    with pytest.raises(ValueError, match="is no run and holds none: give folders that `fastdit eval generate` wrote"):
        find_runs([tmp_path])


def test_equal_names_are_told_apart_by_folders(tmp_path):
    for parent in ("a", "b"):
        generate([run_of(tmp_path / parent, "same", sigma=3)], ITEMS[:2], batch=2)
    assert [run.name for run in find_runs([tmp_path / "a" / "same", tmp_path / "b" / "same"])] == ["a/same", "b/same"]


def test_the_dense_run_is_the_one_without_methods_or_the_given_one(folder, tmp_path):
    runs = find_runs([folder])
    assert choose_dense(runs).name == "dense"
    assert choose_dense(runs, "mild").name == choose_dense(runs, str(folder / "mild")).name == "mild"
    assert choose_dense(runs, without=True) is None
    assert choose_dense(runs[1:2]) is None, "a single run makes a table too"
    with pytest.raises(
        ValueError, match=r"none of the runs \(mild, strong\) is dense: give one with --dense, or --no-d"
    ):
        choose_dense(runs[1:])
    with pytest.raises(ValueError, match="--dense medium: the runs are dense, mild, strong"):
        choose_dense(runs, "medium")
    generate([run_of(tmp_path, "other")], ITEMS, batch=2)
    with pytest.raises(ValueError, match=r"2 runs are without methods \(dense, other\): say with --dense"):
        choose_dense(find_runs([folder, tmp_path]))


def test_runs_are_cut_to_what_all_have(folder, tmp_path):
    generate([run_of(tmp_path, "short", methods=[MERGING])], ITEMS[:3], batch=2)
    runs, warnings = common(find_runs([folder / "dense", tmp_path / "short"]))
    assert [len(run.samples.names) for run in runs] == [3, 3] and len(runs[0].records) == 8
    assert warnings == ["dense: 5 of 8 samples are left out, as not every run has them"]


def test_other_prompts_or_seeds_and_nothing_shared_are_refused(folder, tmp_path):
    generate([run_of(tmp_path, "other")], [dataclasses.replace(item, seed=7) for item in ITEMS], batch=2)
    with pytest.raises(
        ValueError, match=r"sample 0 is 'a <script>.*' with seed 100 in dense and .* with seed 7 in other"
    ):
        common(find_runs([folder / "dense", tmp_path / "other"]))
    runs = find_runs([folder / "dense", folder / "mild"])
    late = {name: record for name, record in runs[1].whole.records.items() if record.index > 5}
    early = {name: record for name, record in runs[0].whole.records.items() if record.index < 5}
    cut = [
        dataclasses.replace(run, whole=dataclasses.replace(run.whole, records=records))
        for run, records in zip(runs, (early, late), strict=True)
    ]
    with pytest.raises(ValueError, match=r"no sample is in all runs \(dense, mild\): let them finish first"):
        common(cut)


def test_what_else_differs_is_named(folder, tmp_path):
    generate([run_of(tmp_path, "half", call={"num_inference_steps": 2, "seed": 1, "x": True})], ITEMS, batch=4)
    dense, half = find_runs([folder / "dense", tmp_path / "half"])
    assert differences(dense, half) == [
        "call.num_inference_steps is 2, not 4", "batch is 4, not 2", "call.seed is 1, not 'absent'",
        "call.x is True, not 'absent'",
    ]  # fmt: skip
    assert shared_settings([half]) == {"model": "tiny", "inference steps": "2", "seed": "1", "batch": "4"}
    assert shared_settings([dense, half]) == {"model": "tiny"}
    assert shared_settings(find_runs([folder])) == {"model": "tiny", "inference steps": "4", "batch": "2"}


def test_environments_that_differ_are_told_by_run(folder, tmp_path):
    facts, warnings = environments(find_runs([folder]))
    assert facts == {"processor": "a CPU", "torch": "2"} and not warnings
    other = dataclasses.replace(run_of(tmp_path, "other"), environment={"processor": "another", "torch": "2"})
    generate([other], ITEMS, batch=2)
    facts, warnings = environments(find_runs([folder / "dense", tmp_path / "other"]))
    assert facts["processor"] == "a CPU (dense); another (other)" and facts["torch"] == "2"
    assert len(warnings) == 1 and warnings[0].endswith("see processor")


def test_no_path_of_the_machine_is_shown(folder):
    assert published({"model": "/home/me/models/tiny", "call": {"x": ["C:\\models\\big", 1]}, "id": "a/b"}) == {
        "model": "tiny", "call": {"x": ["big", 1]}, "id": "a/b"
    }  # fmt: skip
    runs = find_runs([folder])
    text = f"2 of 9 samples of {folder}/mild are lossy; {Path('/data/x y')} and /data/ref.npz: 1/2, a/b, https://x.y/z"
    assert without_paths(text, runs) == "2 of 9 samples of mild are lossy; x y and ref.npz: 1/2, a/b, https://x.y/z"


def test_methods_in_words():
    assert describe_methods([]) == "dense"
    assert describe_methods([MERGING, {"method": "x"}]) == "token_merging:density=0.5,scope=block + x"
