"""Scoring: the subprocess protocol against a stand-in vbench, native scores, what is kept and what is done again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from vbench_stand_in import CASE, PACKAGE, SUITE, interpreter, lookup, wrapper, write_suite

from fastdit.evaluation import frames
from fastdit.evaluation.vbench import runner
from fastdit.evaluation.vbench.flickering import temporal_flickering
from fastdit.evaluation.vbench.names import Names
from fastdit.evaluation.vbench.results import kept
from fastdit.evaluation.vbench.runner import Engine, Failed
from fastdit.evaluation.vbench.scoring import Scoring
from fastdit.evaluation.vbench.suite import PromptSuite
from fastdit.evaluation.vbench.videos import Folder, fingerprint, show

posix = pytest.mark.skipif(os.name != "posix", reason="the stand-in interpreter is a shell script")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    frames.write_video(path, np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8), 8)
    return path


@pytest.fixture
def run(tmp_path, clip):
    """A run's folder with two videos of each prompt, and raw frames beside them as `generate` leaves them."""
    folder = tmp_path / "run"
    (folder / "videos").mkdir(parents=True)
    (folder / "samples").mkdir()
    (folder / "samples" / "000000.npy").touch()
    for prompt in {entry["prompt_en"] for entry in SUITE}:
        for index in range(2):
            shutil.copy(clip, folder / "videos" / f"{prompt}-{index}.mp4")
    return folder


@pytest.fixture
def suite(tmp_path):
    return PromptSuite.read(write_suite(tmp_path))


@pytest.fixture
def engine(tmp_path):
    return Engine.of(interpreter(tmp_path / "env"))


def scoring(run, suite, **more) -> Scoring:
    return Scoring(run, suite, run / "results", **more)


def result(run) -> dict:
    return json.loads((run / "results" / "vbench.json").read_text())


def test_without_vbench_native_dimensions_run_and_the_rest_is_listed(run, suite, clip):
    outcome = scoring(run, suite).score(suite.dimensions)
    assert not outcome.complete and list(outcome.scores) == ["temporal_flickering"] and not outcome.failed
    assert set(outcome.skipped) == set(suite.dimensions) - {"temporal_flickering"}
    assert "name its interpreter with --python" in outcome.skipped["scene"]
    score = outcome.scores["temporal_flickering"]
    assert score.value == pytest.approx(temporal_flickering(frames.read(clip))) and (score.n, score.wanted) == (4, 10)
    told = result(run)
    assert told["values"]["temporal_flickering"]["low"] <= score.value and told["vbench"] is None
    assert any("temporal_flickering: unfiltered" in text for text in told["warnings"])
    assert "temporal_flickering 6 of 10" in told["warnings"][0]
    assert {row["prompt"] for row in told["samples"]} == {entry["prompt_en"] for entry in SUITE[:2]}


def test_a_damaged_video_is_left_out_and_counted(run, suite):
    names = sorted((run / "videos").glob("a lamp*"))
    names[0].write_bytes(names[0].read_bytes()[:700])
    outcome = scoring(run, suite).score(["temporal_flickering"])
    score = outcome.scores["temporal_flickering"]
    assert outcome.partial == {"temporal_flickering": "7 of 10"} == result(run)["partial"], "six missing, one damaged"
    assert score.n == 3 and "1 of 4 videos were left out" in score.notes[0] and names[0].name in score.notes[0]
    for path in (run / "videos").glob("a *"):
        path.write_bytes(b"x")
    assert (
        "no video can be scored"
        in scoring(run, suite, again=True).score(["temporal_flickering"]).failed["temporal_flickering"]
    )


@posix
def test_one_that_fails_loses_no_other(run, suite, engine, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/our/own/packages")
    start = time.monotonic()
    outcome = scoring(run, suite, engine=engine, timeout=1).score(suite.dimensions)
    assert time.monotonic() - start < 10
    assert outcome.failed == {
        "scene": "RuntimeError: no weights for the captioner",
        "motion_smoothness": "stopped after 1 s (--timeout)",
        "dynamic_degree": "killed by SIGKILL (out of memory?)",
        "aesthetic_quality": "vbench ended well and wrote no results",
        "overall_consistency": "vbench's score is nan",
        "color": outcome.failed["color"],
    }
    assert outcome.failed["color"].startswith("vbench's results cannot be read (JSONDecodeError")
    assert set(outcome.scores) == set(suite.dimensions) - set(outcome.failed) and not outcome.skipped
    told = result(run)
    assert told["vbench"] == "0.1.5" and told["failed"] == outcome.failed
    assert outcome.scores["subject_consistency"].value == pytest.approx((10 + 11 + 12 + 13) / 4 / 20)
    assert outcome.scores["imaging_quality"].samples[0].score == pytest.approx(0.5), "per video it is 0 to 100"
    assert (
        outcome.scores["imaging_quality"].value == pytest.approx(0.575) and not outcome.scores["imaging_quality"].notes
    )
    frames_mean = outcome.scores["background_consistency"]
    assert frames_mean.low is None and frames_mean.value == pytest.approx(0.535)
    assert "the mean over videos is 0.525000" in frames_mean.notes[0]
    assert outcome.scores["appearance_style"].n == 1
    assert outcome.partial["appearance_style"] == "3 of 5", "what vbench leaves out by its own rules is not missing"
    assert outcome.scores["appearance_style"].notes[0].startswith("vbench judged 1 of 2 videos")
    log = (run / "results" / "vbench" / "scene.log").read_text()
    assert "Traceback" in log and "/our/own/packages" not in log
    # the process that hung is gone, and so is what it started
    time.sleep(0.1)
    for pid in map(int, (run / "results" / "vbench" / "pids").read_text().split()):
        assert not running(pid)
    # what VBench writes about the temporary folder of videos is not left in the results
    assert not list((run / "results").rglob("*_full_info.json"))


def running(pid: int) -> bool:
    """Whether a process does anything still; one that only waits to be reaped by init does not."""
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@posix
def test_scored_dimensions_are_skipped_until_their_videos_change(run, suite, engine, monkeypatch):
    asked = []
    score = Engine.score
    monkeypatch.setattr(Engine, "score", lambda self, name, *rest: asked.append(name) or score(self, name, *rest))
    names = ["subject_consistency", "imaging_quality"]
    scoring(run, suite, engine=engine).score(names)
    first = result(run)
    assert asked == names
    # again, by one process more, and without naming the interpreter: nothing is done
    for more in ({"engine": engine}, {}):
        assert scoring(run, suite, **more).score(names).complete and asked == names
    assert result(run)["values"] == first["values"]
    # a call for another dimension keeps what holds
    assert set(scoring(run, suite).score(["temporal_flickering"]).scores) == {*names, "temporal_flickering"}
    assert list(result(run)["values"]) == ["subject_consistency", "temporal_flickering", "imaging_quality"]
    assert scoring(run, suite, engine=engine, again=True).score(names[:1]).complete and asked == [*names, names[0]]
    # another vbench, or a video more: scored anew
    other = Engine(engine.python, "0.1.6", engine.suite)
    scoring(run, suite, engine=other).score(names[:1])
    assert asked[3:] == names[:1]
    source = run / "videos" / "a fox runs-0.mp4"
    shutil.copy(source, run / "videos" / "a fox runs-2.mp4")
    outcome = scoring(run, suite).score(["imaging_quality"])
    assert "subject_consistency was scored on other videos than are there now" in outcome.warnings[-1]
    assert "subject_consistency" not in result(run)["values"]
    scoring(run, suite, engine=engine).score(names)
    assert asked[4:] == ["subject_consistency"]
    # a torn file of an earlier version is as good as none
    (run / "results" / "vbench" / "imaging_quality.json").write_text('{"dimension"')
    assert kept(run / "results", "imaging_quality") is None
    scoring(run, suite, engine=engine).score(names)
    assert asked[5:] == ["imaging_quality"]


@posix
def test_ctrl_c_ends_the_child_and_keeps_what_is_done(run, suite, engine, tmp_path):
    """Also SIGKILL: the child watches a pipe of its parent."""
    code = (
        "import signal, sys; from pathlib import Path\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # shells make background jobs ignore Ctrl-C
        "from fastdit.evaluation.vbench.runner import Engine\n"
        "from fastdit.evaluation.vbench.scoring import Scoring\n"
        "from fastdit.evaluation.vbench.suite import PromptSuite\n"
        "run, suite, python = map(Path, sys.argv[1:])\n"
        "scoring = Scoring(run, PromptSuite.read(suite), run / 'results', Engine(python, '0.1.5', None))\n"
        "scoring.score(['subject_consistency', 'motion_smoothness'])\n"
    )
    pids = run / "results" / "vbench" / "pids"
    for sent in (signal.SIGINT, signal.SIGKILL):
        pids.unlink(missing_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-c", code, run, suite.path, engine.python], stderr=subprocess.DEVNULL,
            start_new_session=True, env={**os.environ, "TMPDIR": str(tmp_path)},
        )  # fmt: skip
        try:
            wait_for(lambda: pids.is_file() and len(pids.read_text().split()) == 2)
            process.send_signal(sent)
            assert process.wait(10) != 0
        finally:
            process.kill()
        wait_for(lambda: not any(running(int(pid)) for pid in pids.read_text().split()))
        assert kept(run / "results", "subject_consistency").engine == "vbench 0.1.5"
        if sent == signal.SIGINT:
            assert list(result(run)["values"]) == ["subject_consistency"]


def wait_for(condition, seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


@posix
def test_interpreters_without_vbench_and_no_interpreters(tmp_path, engine, monkeypatch):
    assert engine.name == "vbench 0.1.5" and engine.suite.name == "VBench_full_info.json" and engine.suite.is_file()
    assert (
        Engine.of(interpreter(tmp_path / "raises", "raise SystemError", version=None)).version == "of unknown version"
    )
    empty = wrapper(tmp_path / "python", tmp_path / "nothing")
    with pytest.raises(ValueError, match=r'has no vbench: .* -m pip install "vbench==0\.1\.5" "setuptools<81"'):
        Engine.of(empty)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vbench").mkdir()  # a folder where the user stands is no package
    with pytest.raises(ValueError, match="has no vbench"):
        Engine.of(empty)
    with pytest.raises(ValueError, match="--python no-such-python does not exist"):
        Engine.of("no-such-python")
    with pytest.raises(ValueError, match="is a folder without bin/python"):
        Engine.of(tmp_path)
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").symlink_to(engine.python)
    assert Engine.of(tmp_path / "venv").python == tmp_path / "venv" / "bin" / "python", "a venv's link is not resolved"
    empty.write_text("#!/bin/sh\necho 'bad magic' >&2; exit 3\n")
    with pytest.raises(ValueError, match="fails: bad magic"):
        Engine.of(empty)
    empty.write_text("#!/bin/sh\necho hello\n")
    with pytest.raises(ValueError, match="is no Python interpreter that answers"):
        Engine.of(empty)


@posix
def test_a_package_that_does_not_import_tells_what_it_lacks(run, suite, tmp_path):
    package = PACKAGE.replace("import json, os,", "import pkg_resources, json, os,")
    package = package.replace(
        "import pkg_resources", "raise ModuleNotFoundError('No module named pkg_resources'); import x"
    )
    outcome = scoring(run, suite, engine=Engine.of(interpreter(tmp_path / "env", package))).score(["color"])
    assert outcome.failed["color"].startswith(
        'ModuleNotFoundError: No module named pkg_resources (install "setuptools<81"'
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"x": [1.0, []]}', "KeyError"),
        ('{"color": 1.0}', "TypeError"),
        ('{"color": [1.0, []]}', "scored no video"),
        ('{"color": [null, [{"video_path": "a", "video_results": 1}]]}', "no score with a list"),
        ('{"color": [1.0, [{"video_path": "a", "video_results": null}]]}', "no number for a"),
        ('{"color": [Infinity, [{"video_path": "a", "video_results": 1}]]}', "score is inf"),
        ("\xff", "cannot be read"),
    ],
)
def test_results_that_are_none(tmp_path, text, message):
    path = tmp_path / "color_eval_results.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(Failed, match=message):
        runner.read_results(path, "color")


def test_videos_are_shown_under_the_names_that_vbench_looks_for(tmp_path, clip):
    """Raw frames beside them, a safe name, a hidden file and another type in the folder do not confuse it."""
    entries = [
        {"prompt_en": name, "dimension": ["human_action"]} for name in (*CASE, "cat/dog", "x" * 300, "caf\u00e9")
    ]
    suite = PromptSuite.read(write_suite(tmp_path, entries))
    names = Names((prompt.prompt for prompt in suite.prompts), folds_case=True)
    (tmp_path / "videos").mkdir()
    for prompt in suite.prompts:
        shutil.copy(clip, tmp_path / "videos" / f"{names.stem(prompt.prompt, 0)}.mp4")
    (tmp_path / "videos" / "a paper boat-1.gif").touch()
    (tmp_path / "videos" / ".a paper boat-2.mp4").touch()
    (tmp_path / "videos" / "000000.npy").touch()
    videos, missing = Folder.open(tmp_path).of(suite, "human_action")
    assert [(video.prompt, video.index) for video in videos] == [(entry["prompt_en"], 0) for entry in entries]
    assert len(missing) == 4 * 5 and missing[0] == "a paper boat-1"
    hidden = show(videos, tmp_path / "shown")
    assert [video.prompt for video in hidden] == ["cat/dog", "x" * 300]
    for prompt in (*CASE, "caf\u00e9"):  # made on a file system that folds case, shown on one that does not
        assert lookup(tmp_path / "shown", prompt) == [f"{prompt}-0.mp4"]
    assert (tmp_path / "shown" / "A paper boat-0.mp4").read_bytes() == clip.read_bytes()
    mark = fingerprint(videos)
    os.utime(videos[0].path, ns=(1, 1))
    assert fingerprint(videos) != mark


@posix
def test_videos_that_vbench_cannot_find_are_counted(tmp_path, clip, engine):
    entries = [{"prompt_en": name, "dimension": ["human_action"]} for name in ("cat/dog", "a person is waving")]
    suite = PromptSuite.read(write_suite(tmp_path, entries))
    names = Names(prompt.prompt for prompt in suite.prompts)
    for prompt in suite.prompts:
        (tmp_path / "run").mkdir(exist_ok=True)
        shutil.copy(clip, tmp_path / "run" / f"{names.stem(prompt.prompt, 0)}.mp4")
    score = scoring(tmp_path / "run", suite, engine=engine).score(["human_action"]).scores["human_action"]
    assert score.n == 1 and "1 videos were left out: their prompts cannot name a file" in score.notes[0]
    next((tmp_path / "run").glob("a person*")).unlink()
    outcome = scoring(tmp_path / "run", suite, engine=engine).score(["human_action"])
    assert "can find none of its videos" in outcome.failed["human_action"]


def test_the_filtered_videos_of_flickering(run, suite, tmp_path, clip):
    static = tmp_path / "filtered_videos"
    static.mkdir()
    shutil.copy(clip, static / "a clock that stands still.-0.mp4")
    name = "temporal_flickering"
    assert scoring(run, suite).score([name]).scores[name].n == 4
    filtered = scoring(run, suite, static=static).score([name]).scores[name]
    assert filtered.n == 1 and filtered.filtered and not any("unfiltered" in note for note in filtered.notes)
    assert scoring(run, suite).score([name]).scores[name].n == 4, "the unfiltered score is another one"


def test_folders_without_videos(tmp_path, suite):
    with pytest.raises(ValueError, match="is no folder: give a run"):
        scoring(tmp_path / "none", suite).score(["color"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no videos \(.mp4 .gif\)"):
        scoring(tmp_path / "empty", suite).score(["color"])
    assert not list((tmp_path / "empty").iterdir()), "nothing is written for bad input"
    (tmp_path / "empty" / "000000.mp4").touch()
    outcome = scoring(tmp_path / "empty", suite).score(["color"])
    assert outcome.failed["color"] == "none of its 5 videos is there, the first is 'a blue chair-0'"
