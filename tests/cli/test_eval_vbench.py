"""`fastdit eval vbench`: what the four commands print and write, and their exit codes."""

import inspect
import json
import os
import shutil
from pathlib import Path

import diffusers
import numpy as np
import pytest
from typer.testing import CliRunner
from vbench_stand_in import SUITE, interpreter, lookup, write_suite

from fastdit.cli.eval import generate as cli_generate
from fastdit.cli.eval import vbench
from fastdit.evaluation.generate import Drawn, Run, generate
from fastdit.evaluation.vbench.dimensions import DIMENSIONS

posix = pytest.mark.skipif(os.name != "posix", reason="the stand-in interpreter is a shell script")


def run(*arguments):
    """The command's result; an error that main() would print is raised."""
    result = CliRunner().invoke(vbench.app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def suite(tmp_path, monkeypatch):
    monkeypatch.delenv("VBENCH_FULL_INFO_JSON", raising=False)
    return write_suite(tmp_path)


@pytest.fixture
def videos(tmp_path, suite, monkeypatch):
    """A run's folder, made by the real generation loop from the command's own items."""
    taken = {}
    signature = inspect.signature(cli_generate.generate_runs)
    monkeypatch.setattr(
        cli_generate, "generate_runs", lambda *given, **more: taken.update(signature.bind(*given, **more).arguments)
    )
    monkeypatch.setattr(vbench, "_check_videos", lambda *_: None)
    folder = tmp_path / "run"
    result = run(
        "generate", "--model", "some/video", "--prompts", suite, "--dims", "temporal_flickering,color", "--samples", 2,
        "--flickering-samples", 3, "-m", "token_merging:density=0.5", "--steps", 4, "--shard", "0/1", "--out", folder,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert taken["model"] == "some/video" and taken["shard"] == "0/1" and taken["batch"] == 1
    assert taken["call"]["num_inference_steps"] == 4
    (name, where, recipe), items = taken["runs"][0], taken["items"]
    assert where == folder and [method.to_dict()["density"] for method in recipe.methods] == [0.5]

    def draw(part):
        clips = [np.random.default_rng(item.seed).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8) for item in part]
        return Drawn(clips, 1.0)

    generate([Run(name, folder, {}, draw)], items, batch=1)
    return folder


def test_prompts_shows_what_dimensions_need(suite):
    result = run("prompts", "--prompts", suite)
    assert result.exit_code == 0 and "8 prompts, 80 videos" in result.output
    assert "dynamic_degree" in result.output and "0.5" in result.output and "human_action" not in result.output
    assert run("prompts", "--prompts", suite, "--dims", "scene,color").output.split("\n")[:2] == [
        "harbour",
        "a blue chair",
    ]
    names = run("prompts", "--prompts", suite, "--dims", "color", "--names").output.split("\n")
    assert names[:5] == [f"a blue chair-{index}.mp4" for index in range(5)]


def test_prompts_of_the_variable_and_of_nothing(suite, monkeypatch):
    monkeypatch.setenv("VBENCH_FULL_INFO_JSON", str(suite))
    assert "8 prompts" in run("prompts").output
    monkeypatch.delenv("VBENCH_FULL_INFO_JSON")
    with pytest.raises(ValueError, match="VBench's prompts were not found"):
        run("prompts")
    with pytest.raises(ValueError, match="has no prompts for human_action"):
        run("prompts", "--prompts", suite, "--dims", "human_action")


def test_generate_makes_what_vbench_looks_for(videos):
    assert sorted(path.name for path in (videos / "videos").iterdir()) == sorted(
        f"{entry['prompt_en']}-{index}.mp4"
        for entry, count in zip((SUITE[0], SUITE[1], SUITE[5]), (3, 3, 2), strict=True)
        for index in range(count)
    )
    assert len(lookup(videos / "videos", "a blue chair")) == 2
    lines = [json.loads(line) for line in (videos / "manifest.0.jsonl").read_text().splitlines()]
    assert {line["seed"] for line in lines if line["prompt"] == "a blue chair"} == {0, 1}


def test_score_without_vbench_tells_by_its_exit_code(videos, suite):
    result = run("score", "--videos", videos, "--prompts", suite, "--dims", "temporal_flickering,color")
    assert result.exit_code == 1
    assert "6 of 10" in result.output and "skipped: needs vbench" in result.output and "unfiltered" in result.output
    told = json.loads((videos / "results" / "vbench.json").read_text())
    settings = json.loads((videos / "settings.json").read_text())
    assert told["metric"] == "vbench" and told["settings"] == settings["hash"] and list(told["skipped"]) == ["color"]
    only = run(
        "score", "--videos", videos, "--prompts", suite, "--dims", "temporal_flickering", "--out", videos / "other"
    )
    assert only.exit_code == 1 and (videos / "other" / "vbench.json").is_file(), "4 of 10 videos are missing"
    assert "\N{DOUBLE DAGGER} videos that VBench wants are missing or damaged" in only.output
    for path in sorted((videos / "videos").glob("*-0.mp4")):
        for index in range(1, 5):
            shutil.copy(path, path.with_name(f"{path.stem[:-2]}-{index}.mp4"))
    whole = run("score", "--videos", videos, "--prompts", suite, "--dims", "temporal_flickering")
    assert whole.exit_code == 0 and "10 of 10" in whole.output and "missing" not in whole.output


@posix
def test_score_with_an_interpreter_and_aggregate(videos, tmp_path):
    python = interpreter(tmp_path / "env")  # its prompts are used, none are given
    result = run(
        "score", "--videos", videos, "--python", python, "--dims", "temporal_flickering,color", "--device", "cpu"
    )
    assert (
        result.exit_code == 1 and "vbench 0.1.5" in result.output and "color failed: vbench's results" in result.output
    )
    result = run("aggregate", videos, "-o", tmp_path / "figures.json")
    assert result.exit_code == 1 and "no Total, 15 of 16 dimensions are missing: subject_consistency" in result.output
    assert "warning:" in result.output and "unfiltered" in result.output, "what is wrong with the videos stays said"
    figures = json.loads((tmp_path / "figures.json").read_text())[str(videos)]
    assert figures["sums"] == {} and figures["normalised"]["temporal_flickering"] == pytest.approx(
        (figures["scores"]["temporal_flickering"] - 0.6293) / (1 - 0.6293)
    )


def test_aggregate_of_all_dimensions(tmp_path):
    whole, half = tmp_path / "whole.json", tmp_path / "half"
    scores = {name: (row.low + row.high) / 2 for name, row in DIMENSIONS.items()}
    whole.write_text(json.dumps({name: [value, []] for name, value in scores.items()}))
    result = run("aggregate", whole)
    assert result.exit_code == 0 and "50.00" in result.output.split("Total")[1]
    # a run whose results hold videos: the sums get intervals
    (half / "results").mkdir(parents=True)
    rows = [
        {"name": f"{p}-{k}", "prompt": p, **{name: scores[name] + 0.01 * (p == "a") for name in DIMENSIONS}}
        for p in "abc"
        for k in range(2)
    ]
    told = {"metric": "vbench", "values": {n: {"value": v} for n, v in scores.items()}, "samples": rows}
    (half / "results" / "vbench.json").write_text(json.dumps(told))
    result = run("aggregate", whole, half, "-o", tmp_path / "figures.json")
    assert result.exit_code == 0 and " to " in result.output.split("Total")[1]
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures[str(whole)]["sums"]["total"]["low"] is None
    total = figures[str(half)]["sums"]["total"]
    assert "\N{DOUBLE DAGGER}" not in result.output
    (half / "results" / "vbench.json").write_text(json.dumps({**told, "partial": {"scene": "3 of 430"}}))
    result = run("aggregate", half, "-o", tmp_path / "figures.json")
    marked = [line for line in result.output.splitlines() if "\N{DOUBLE DAGGER}" in line]
    assert [line.split()[1] for line in marked[:3]] == ["scene", "Semantic", "Total"] and len(marked) == 4
    assert "scene 3 of 430" in result.output
    assert json.loads((tmp_path / "figures.json").read_text())[str(half)]["partial"] == {"scene": "3 of 430"}
    assert total["low"] < total["value"] < total["high"] and total["value"] == pytest.approx(0.5)


def test_a_model_that_makes_pictures_is_refused_before_it_is_loaded(suite, tmp_path, monkeypatch):
    monkeypatch.setattr(cli_generate, "generate_runs", lambda *_, **__: pytest.fail("it generates"))
    for name, call in (("Picture", lambda self, prompt: None), ("Video", lambda self, prompt, num_frames=5: None)):
        monkeypatch.setattr(diffusers, f"Tiny{name}Pipeline", type(name, (), {"__call__": call}), raising=False)
        (tmp_path / name).mkdir()
        (tmp_path / name / "model_index.json").write_text(json.dumps({"_class_name": f"Tiny{name}Pipeline"}))
    asked = ("generate", "--prompts", suite, "--dims", "color", "--out", tmp_path / "run", "--model")
    with pytest.raises(ValueError, match="Picture: TinyPicturePipeline makes pictures, and VBench scores videos"):
        run(*asked, tmp_path / "Picture")
    with pytest.raises(ValueError, match="--num-frames 1: VBench scores videos"):
        run(*asked, tmp_path / "Video", "--num-frames", 1)
    vbench._check_videos(str(tmp_path / "Video"), None)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prompts", "--prompts", "none.json"), "none.json does not exist"),
        (("prompts", "--python", "no-such-python"), "--python no-such-python does not exist"),
        (("score", "--videos", "none", "--prompts", "{suite}"), "--videos none is no folder"),
        (("score", "--videos", ".", "--prompts", "{suite}", "--dims", "sceen"), "no dimension 'sceen'"),
        (("aggregate", "none"), "none does not exist"),
        (
            ("generate", "--model", "x/y", "--prompts", "{suite}", "--samples", "0"),
            "--samples must lie between 1 and 100",
        ),
    ],
)
def test_bad_input_is_one_line(suite, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        run(*(str(suite) if argument == "{suite}" else argument for argument in arguments))
    assert "\n" not in str(caught.value)


def test_help_names_the_commands():
    output = run("--help").output
    assert all(name in output for name in ("prompts", "generate", "score", "aggregate"))
    assert Path(vbench.__file__).name == "vbench.py"
