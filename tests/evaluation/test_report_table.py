"""The report as data: figures equal those of the functions behind them, digits, JSON and back, Markdown."""

import dataclasses
import itertools
import json
import os

import numpy as np
import pytest
import torch
from markdown_it import MarkdownIt
from report_runs import ITEMS, MERGING, run_of, write_runs

from fastdit.evaluation import frames
from fastdit.evaluation.comparison import compare
from fastdit.evaluation.features.base import Extractor
from fastdit.evaluation.features.extract import extract
from fastdit.evaluation.frechet import Statistics, frechet_distance
from fastdit.evaluation.generate import generate
from fastdit.evaluation.intervals import Interval
from fastdit.evaluation.kernel import kid_interval
from fastdit.evaluation.report import columns as c
from fastdit.evaluation.report.rows import Reference, gather
from fastdit.evaluation.report.table import Report
from fastdit.evaluation.samples import Samples, keep_result
from fastdit.evaluation.vbench.dimensions import DIMENSIONS


def small(picture):
    return picture[::8, ::8].transpose(2, 0, 1).copy()


class Pixels(Extractor):
    """Sixteen pixels of each channel."""

    name = title = identity = "pixels"
    summary, dimension, preprocess = "", 48, staticmethod(small)

    def __call__(self, batch):
        return batch.float().flatten(1) / 255

    def to(self, device):
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def reference():
    rows = np.random.default_rng(1).random((40, 48)).astype(np.float32)
    return Reference(Statistics.of(rows, "pixels"), Pixels(), workers=0, source="noise")


@pytest.fixture(scope="module")
def found(folder, reference):
    return gather([folder], reference=reference, title="A title | with a bar", command="fastdit eval report runs")


def test_rows_are_dense_first_and_then_by_falling_macs(found):
    assert [(row.name, row.dense, row.n) for row in found.report.rows] == [
        ("dense", True, 8), ("mild", False, 8), ("strong", False, 8)
    ]  # fmt: skip
    mild = found.report.rows[1].values
    assert (mild["macs"].value, mild["macs_ratio"].value) == (80, 100 / 80)
    # batches of 1, 3 and 4 are warm; their seconds are 1 + 0.01 * turn in every run
    assert mild["speedup"].value == pytest.approx(1 / 0.8) and found.report.rows[1].in_turns
    assert mild["seconds"].value == pytest.approx(0.8 * 1.03) and mild["seconds"].n == 3


def test_fidelity_is_that_of_the_comparison(found, folder):
    direct = compare(Samples.open(folder / "dense"), Samples.open(folder / "mild"))
    values = found.report.rows[1].values
    assert {key: values[key] for key in direct.values} == direct.values
    assert "psnr" not in found.report.rows[0].values
    assert found.psnr["mild"] == {i: float(pair.psnr.mean()) for i, pair in enumerate(direct.samples)}


def test_distances_are_those_of_the_functions_with_the_difference_to_dense(found, folder, reference):
    names = ("dense", "mild", "strong")
    features = {name: extract(Samples.open(folder / name), Pixels(), workers=0).values for name in names}
    groups = [(item.prompt, None) for item in ITEMS]
    drawn = kid_interval(features, reference.statistics.features, groups)
    for row in found.report.rows:
        assert row.values["kid"] == drawn.interval(row.name)
        direct = frechet_distance(Statistics.of(features[row.name], "pixels"), reference.statistics)
        assert row.values["fd"] == Interval(direct, None, None, 8)
        if row.name != "dense":
            assert row.values["kid_change"] == drawn.difference(row.name, "dense")
    titles = [column.title for column in found.report.columns]
    assert any(note.startswith("FD(pixels) is to 40 reference samples (noise)") for note in found.report.notes)
    assert {"KID(pixels)", "KID(pixels) minus dense", "FD(pixels)"} <= set(titles)
    assert not [title for title in titles if "FID" in title or title == "KID"], "only Inception's are FID and KID"


def test_a_run_that_is_the_reference_is_told(folder, reference):
    features = extract(Samples.open(folder / "mild"), Pixels(), workers=0).values
    itself = dataclasses.replace(reference, statistics=Statistics.of(features, "pixels"))
    said = [text for text in gather([folder], reference=itself).report.warnings if "reference itself" in text]
    assert len(said) == 1 and said[0].startswith("mild is the reference itself")


def test_statistics_alone_give_the_frechet_distance_and_say_so(folder, reference):
    statistics = dataclasses.replace(reference.statistics, features=None)
    report = gather([folder], reference=dataclasses.replace(reference, statistics=statistics)).report
    assert "fd" in report.rows[0].values and "kid" not in report.rows[0].values
    assert any("no KID(pixels): the reference holds statistics only" in note for note in report.notes)


def test_json_and_back(found):
    report = found.report
    assert Report.from_json(report.to_json()) == report
    data = json.loads(report.to_json())
    assert data["rows"][1]["values"]["psnr"]["value"] == report.rows[1].values["psnr"].value, "all digits"
    assert "/home" not in report.to_json() and data["settings"]["mild"]["model"] == "tiny"
    with pytest.raises(ValueError, match=r"another version \(9, this one reads 1\)"):
        Report.from_json(json.dumps({**data, "version": 9}))


def test_markdown_shows_every_figure_with_its_interval(found):
    text = found.report.to_markdown({"a caption": "plot.png"})
    for row in found.report.rows:
        for value, interval in (row.text(column) for column in found.report.columns):
            assert f"{value} ({interval})" in text if interval else f"| {value} |" in text
    assert "\nn = 8 \N{MIDDLE DOT} " in text and "- **mild**: `token_merging:density=0.5,scope=block`\n" in text
    assert "![a caption](plot.png)" in text and "fastdit eval report runs" in text and "- processor: a CPU" in text


def parsed(text):
    """The tables of a Markdown text as GitHub reads them: rows of plain texts."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    found = []
    for token, inner in itertools.pairwise(tokens):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type in ("th_open", "td_open"):
            assert {child.type for child in inner.children} <= {"text", "text_special"}, inner.content
            found[-1][-1].append("".join(child.content for child in inner.children))
    return found


def test_markdown_tables_are_narrow_and_read_as_they_were_meant(found):
    names = ["dense", "a_b | <b>c</b>", "__init__ *x* [y](z) `w` a\\b"]
    rows = [dataclasses.replace(row, name=name) for row, name in zip(found.report.rows, names, strict=True)]
    columns = [*found.report.columns, c.other_column("reward", "reward_a|b"), *map(c.vbench_column, DIMENSIONS)]
    report = dataclasses.replace(found.report, rows=rows, columns=columns)
    tables = parsed(report.to_markdown())
    assert [[row[0] for row in table] for table in tables] == [["Run", *names]] * len(tables)
    heads = [head for table in tables for head in table[0][1:]]
    assert heads == [f"{column.heading} {column.arrow}".strip() for column in columns]
    assert max(len(row) for table in tables for row in table) <= 9 and "| a_b \\|" in report.to_markdown()
    assert [len(table[0]) - 1 for table in tables] == [7, 4, 8, 8], "speed and fidelity; distances and reward; VBench"


def test_a_run_alone_and_runs_without_reference_make_a_table(folder):
    report = gather([folder / "mild"]).report
    assert [column.key for column in report.columns] == ["seconds", "macs", "macs_ratio"]
    assert report.rows[0].values["macs_ratio"].value == 100 / 80, "against its own count without methods"
    report = gather([folder], no_dense=True).report
    assert len(report.rows) == 3 and not [row for row in report.rows if row.dense or "speedup" in row.values]
    outside = gather([folder / "mild"], dense=str(folder / "dense")).report
    assert [row.name for row in outside.rows] == ["dense", "mild"] and outside.rows[0].dense
    with pytest.raises(ValueError, match="either --dense or --no-dense"):
        gather([folder], dense="mild", no_dense=True)


def test_what_a_reader_must_know_is_counted_in_warnings(folder, tmp_path):
    run = run_of(tmp_path, "alone", 20, 0.5, 50, [MERGING], call={"num_inference_steps": 2})
    generate([dataclasses.replace(run, environment={"processor": "another"})], ITEMS, batch=2)
    damaged = tmp_path / "alone" / "samples" / "000003.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    report = gather([folder / "dense", tmp_path / "alone"]).report
    for part in (
        "alone: not only the methods differ from dense, call.num_inference_steps is 2, not 4",
        "alone: its speed-up is of runs that were not timed in turns",
        "alone: 1 of 8 pairs are left out, the first: alone/samples/000003.png is no picture",
        "the runs come from different environments, which a speed-up should not: see processor, torch",
    ):
        assert [text for text in report.warnings if text.startswith(part)], (part, report.warnings)
    assert not [text for text in report.warnings if str(tmp_path) in text]
    row = report.rows[1]
    assert row.in_turns is False and row.text(c.SPEEDUP)[0].endswith("\N{DAGGER}") and report.footnotes
    assert row.values["psnr"].n == 7 and row.over(c.PSNR) == "n 7" and not row.over(c.SPEEDUP)
    assert "same n" not in report.notes[0]
    assert "\N{DAGGER} not timed in turns" in report.to_markdown()


def test_fidelity_that_was_kept_is_read_unless_it_is_of_something_else(tmp_path):
    write_runs(tmp_path)
    dense, mild = (Samples.open(tmp_path / name) for name in ("dense", "mild"))
    data = compare(dense, mild).to_dict() | {"against": dense.settings["hash"]}
    data["values"]["psnr"]["value"] = 12.5

    def psnr():
        return gather([tmp_path]).report.rows[1].values["psnr"].value

    keep_result(mild, "fidelity", data)
    assert psnr() == 12.5
    keep_result(mild, "fidelity", {**data, "against": "another"})
    true = psnr()
    assert true > 20
    keep_result(mild, "fidelity", {**data, "samples": data["samples"][:5]})
    assert psnr() == true
    keep_result(mild, "fidelity", data)
    name = mild.names[0]
    frames.write_picture(mild.root / name, mild.read(name)[0])  # as if drawn anew
    newer = (mild.root / "results" / "fidelity.json").stat().st_mtime + 5
    os.utime(mild.root / name, (newer, newer))
    assert psnr() == true


@pytest.mark.parametrize(
    ("column", "interval", "text"),
    [
        (c.PSNR, Interval(28.4567, 27.111, 29.777, 9), ("28.5", "27.1 to 29.8")),
        (c.PSNR, Interval(28.4567, 28.45, 28.46, 9), ("28.46", "28.45 to 28.46")),
        (c.PSNR, Interval(28.4567, 8.1, 49.2, 9), ("28", "8 to 49")),
        (c.PSNR, None, ("-", "")),
        (c.SPEEDUP, Interval(1.1472, 1.1361, 1.1599, 9), ("1.15x", "1.14 to 1.16")),
        (c.SPEEDUP, Interval(1.0, None, None, 9), ("1.00x", "")),
        (c.SPEEDUP, Interval(12.3456, None, None, 9), ("12.3x", "")),
        (c.SSIM, Interval(1.0, 1.0, 1.0, 9), ("1.0000", "1.0000 to 1.0000")),
        (c.MACS, Interval(1.234e12, None, None, 9), ("1.23 T", "")),
        (c.distance_columns("FID", "KID")[0], Interval(-0.0002, -0.003, 0.0021, 9), ("\u22120.2", "\u22123.0 to 2.1")),
        (c.distance_columns("FID", "KID")[1], Interval(0.0123, 0.0104, 0.0141, 9), ("+12.3", "+10.4 to +14.1")),
        (c.distance_columns("FID", "KID")[1], Interval(-1e-7, -0.004, 0.004, 9), ("0.0", "\u22124.0 to +4.0")),
        (c.distance_columns("FID", "KID")[2], Interval(188.4712, None, None, 9), ("188", "")),
        (c.distance_columns("FID", "KID")[2], Interval(2.2712, None, None, 9), ("2.27", "")),
        (c.distance_columns("FID", "KID")[2], Interval(0.0, None, None, 9), ("0.00", "")),
    ],
)
def test_digits_are_those_that_the_interval_supports(column, interval, text):
    assert column.text(interval) == text


def test_torch_is_not_asked_for_randomness(folder):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first = gather([folder]).report
    assert torch.equal(before, torch.random.get_rng_state()) and gather([folder]).report == first
