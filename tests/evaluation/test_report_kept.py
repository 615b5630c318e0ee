"""What other commands kept beside a run comes into the report; what is of other settings does not."""

import pytest
from report_runs import write_runs

from fastdit.evaluation.report.files import figures
from fastdit.evaluation.report.kept import kept_results
from fastdit.evaluation.report.page import render
from fastdit.evaluation.report.rows import gather
from fastdit.evaluation.report.runs import find_runs
from fastdit.evaluation.report.table import Report
from fastdit.evaluation.samples import Samples, keep_result
from fastdit.evaluation.vbench.dimensions import DIMENSIONS


def interval(value, n=8):
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": n}


@pytest.fixture
def folder(tmp_path):
    return write_runs(tmp_path)


def keep(folder, name, **data):
    for run, more in data.items():
        keep_result(Samples.open(folder / run), name, {"metric": name, "n": 8, "warnings": [], **more})


def test_clip_score_with_its_checkpoint(folder):
    keep(folder, "clip", **{
        run: {"model": "clip:vit", "values": {"clip": interval(20 + i)}, "warnings": ["2 of 8 prompts are long"]}
        for i, run in enumerate(("dense", "mild"))
    })  # fmt: skip
    report = gather([folder]).report
    column = report.columns[-1]
    assert column.title == "CLIP score" and "clip:vit" in column.meaning
    assert [row.text(column)[0] for row in report.rows] == ["20.00", "21.00", "-"]
    assert "mild, clip: 2 of 8 prompts are long" in report.warnings


def test_figures_measured_differently_are_left_out(folder):
    keep(folder, "clip", dense={"model": "a", "values": {"clip": interval(1)}},
         mild={"model": "/x/b", "values": {"clip": interval(2)}})  # fmt: skip
    found = kept_results(find_runs([folder]))
    assert not found.columns
    assert found.warnings == ["clip is left out, as model is not the same for all runs: b, a"]


def test_distances_keep_their_names(folder):
    values = {"FD(lite)": interval(30), "KID(lite)": interval(0.01), "KID(lite), 100 subsets of 8": interval(0.02),
              "precision": interval(0.5)}  # fmt: skip
    same = {"metric": "distances.lite", "against": "/data/ref", "n_reference": 99, "values": values}
    keep(folder, "distances.lite", dense=same, mild=same)
    keep(folder, "distances.inception", dense={**same, "metric": "distances.inception", "values": {"FID": interval(3)}})
    found = kept_results(find_runs([folder]))
    titles = {column.key: column.title for column in found.columns}
    assert titles == {
        "fd": "FID", "distances.lite.FD(lite)": "FD(lite)", "kid": "KID(lite)", "precision": "precision",
        "distances.lite.KID(lite), 100 subsets of 8": "KID(lite), 100 subsets of 8",
    }  # fmt: skip
    assert any("99 reference samples" in note for note in found.notes)
    assert not kept_results(find_runs([folder]), with_distances=False).columns, "a report with --ref has its own"


@pytest.mark.parametrize(
    ("mild", "told"),
    [
        ({"n": 5, "values": {"FID": interval(3, 5)}}, "n is not the same for all runs: 5, 8"),
        ({"values": {"FID": interval(3, 5)}}, "n of FID is not the same for all runs: 5, 8"),
        ({"num": 8}, "num is not the same for all runs: 8, None"),
        ({"frames": "all"}, "frames is not the same for all runs: all, middle"),
        ({}, None),
    ],
)
def test_distances_over_different_samples_are_left_out(folder, mild, told):
    data = {"num": None, "frames": "middle", "values": {"FID": interval(3)}}
    keep(folder, "distances.inception", dense=data, mild=data | mild, strong={"values": {"FID": interval(3)}})
    found = kept_results(find_runs([folder]))
    assert [text for text in found.warnings if "left out" in text] == (
        [f"distances.inception is left out, as {told}"] if told else []
    )
    assert bool(found.columns) == (told is None), "a result that does not tell num and frames is compared by n alone"


def test_another_n_is_printed_beside_its_figure(folder):
    assert gather([folder]).report.n_text == "n = 8"
    few = {"n": 5, "values": {"KID(lite)": interval(0, 5)}}
    keep(folder, "distances.lite", dense=few, mild=few)
    keep(folder, "clip", dense={"values": {"clip": interval(20)}})
    gathered = gather([folder])
    report = gathered.report
    kernel = next(column for column in report.columns if column.key == "kid")
    assert [row.over(kernel) for row in report.rows] == ["n 5", "n 5", ""]
    assert {row.over(column) for row in report.rows for column in report.columns if column is not kernel} == {""}
    assert "(\N{MINUS SIGN}100 to 100), n 5 |" in report.to_markdown() and Report.from_json(report.to_json()) == report
    assert "same n" not in report.notes[0] and "says its own n" in report.notes[0]
    assert report.n_text == "n = 8 where no other n is given" and report.n_text in report.to_markdown()
    html = render(report, [], [], "")
    assert "\N{MINUS SIGN}100 to 100, n 5<" in html and report.n_text in html and "; n where it is not 8" in html
    titles = {key: figure.axes[0].get_title("left") for key, (_, figure) in figures(report).items()}
    assert titles == {"psnr": "n = 8, 95 % intervals", "kid": "n = 5, 95 % intervals"}


def test_vbench_over_missing_videos_is_marked(folder):
    full = {"values": {name: interval(0.9) for name in DIMENSIONS}, "samples": []}
    keep(folder, "vbench", dense=full, mild=full | {"partial": {"scene": "3 of 430"}})
    report = gather([folder]).report
    assert [row.partial for row in report.rows] == [[], ["vbench.scene", "vbench.semantic", "vbench.total"], []]
    table = "\n".join(report.tables())
    assert table.count("\N{DOUBLE DAGGER}") == 3 and len(report.footnotes) == 1
    for text in (report.to_markdown(), render(report, [], [], "")):
        assert "\N{DOUBLE DAGGER} videos that VBench wants are missing or damaged" in text
    points = figures(report)["vbench.total"][1].axes[0].texts
    assert "mild\N{DOUBLE DAGGER}" in [text.get_text() for text in points]


def test_vbench_with_its_sums_only_where_they_are_whole(folder):
    full = {name: interval(0.9) for name in DIMENSIONS}
    engines = dict.fromkeys(DIMENSIONS, "vbench 0.1.5")
    samples = [{"name": f"{p}-0", "prompt": p, **dict.fromkeys(DIMENSIONS, 0.9)} for p in "ab"]
    keep(folder, "vbench", dense={"values": full, "engines": engines, "samples": samples},
         mild={"values": {"temporal_flickering": interval(0.98)}, "engines": {"temporal_flickering": "fastdit"},
               "samples": []})  # fmt: skip
    report = gather([folder]).report
    keys = [column.key for column in report.columns if column.group == "VBench"]
    assert len(keys) == 19 and keys[-3:] == ["vbench.quality", "vbench.semantic", "vbench.total"]
    assert "vbench.total" in report.rows[0].values and "vbench.total" not in report.rows[1].values
    flickering = next(column for column in report.columns if column.key == "vbench.temporal_flickering")
    assert report.rows[1].text(flickering)[0] == "98" and flickering.heading == "temporal flickering, %"


def test_stale_damaged_and_other_n_are_counted(folder):
    keep(folder, "clip", dense={"values": {"clip": interval(1)}, "n": 5}, mild={"values": {"clip": interval(1)}},
         strong={"values": 3})  # fmt: skip
    text = (folder / "mild/results/clip.json").read_text()
    (folder / "mild/results/clip.json").write_text(text.replace('"settings": "', '"settings": "x'))
    (folder / "strong/results/torn.json").write_text('{"metric": "cl')
    found = kept_results(find_runs([folder]))
    assert [list(found.values.get(run, {})) for run in ("dense", "mild", "strong")] == [["clip.clip"], [], []]
    said = "\n".join(found.warnings)
    assert "dense: results/clip.json is of 5 samples, not of these 8" in said
    assert "mild: results/clip.json is of other settings (x" in said
    assert "strong: results/clip.json is no result" in said and "strong: results/torn.json is no result" in said


def test_a_metric_that_is_not_known_here_is_shown_by_its_name(folder):
    keep(folder, "reward", dense={"values": {"mean": interval(0.25)}})
    found = kept_results(find_runs([folder]))
    assert found.columns[0].title == "reward mean" and found.values["dense"]["reward.mean"].value == 0.25
