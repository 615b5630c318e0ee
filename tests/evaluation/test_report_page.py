"""The page: stands alone, escapes everything, shows plots and strips; the rule by which strips are chosen."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image
from report_runs import PROMPTS, write_runs

from fastdit.evaluation.intervals import Interval
from fastdit.evaluation.report import labels, plots
from fastdit.evaluation.report.columns import PSNR, SPEEDUP, distance_columns, vbench_column
from fastdit.evaluation.report.files import write_report
from fastdit.evaluation.report.page import tables
from fastdit.evaluation.report.rows import gather
from fastdit.evaluation.report.strips import BUDGET, choose, strips
from fastdit.evaluation.report.table import Report


class Page(HTMLParser):
    """Tags with attributes, and the text outside <style>."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.style, self.open = [], "", "", []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if "style" in self.open[-1:]:
            self.style += data
        else:
            self.text += data


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = write_runs(tmp_path_factory.mktemp("runs"))
    out = tmp_path_factory.mktemp("out") / "a" / "b"
    gathered = gather([folder], title="<b>Title</b>", command="fastdit eval report 'a & b'")
    return gathered, out, write_report(gathered, out, 4)


@pytest.fixture(scope="module")
def page(written):
    return Page((written[1] / "report.html").read_text(encoding="utf-8"))


def test_all_files_are_there_and_nothing_else(written):
    _, out, paths = written
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "report.json", "report.md", "speed_psnr.png"]
    assert sorted(paths) == sorted(out.iterdir())
    assert Image.open(out / "speed_psnr.png").width >= 1000
    assert Report.from_json((out / "report.json").read_text(encoding="utf-8")) == written[0].report
    assert "](speed_psnr.png)" in (out / "report.md").read_text(encoding="utf-8")


def test_the_page_needs_nothing_else(page, written):
    assert not {"script", "link", "iframe", "object", "embed", "base", "meta http-equiv"} & {
        tag for tag, _ in page.tags
    }
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("src", "href", "xlink:href", "srcset", "poster", "data", "action"):
            value = attributes.get(name, "#")
            assert value.startswith(("#", "data:image/png;base64,", "data:image/jpeg;base64,")), (tag, name, value[:80])
    assert "@import" not in page.style and "url(" not in page.style.replace("url(#", "")
    html = (written[1] / "report.html").read_text(encoding="utf-8")
    # xmlns are names, not addresses
    assert not re.findall(r"https?://", re.sub(r'xmlns(:\w+)?="[^"]*"', "", html))
    assert "/home/" not in html and str(written[1].parent) not in html
    assert len(html) < 2_000_000


def test_prompts_titles_and_commands_are_text(page):
    assert PROMPTS[0] in page.text and "<b>Title</b>" in page.text and "fastdit eval report 'a & b'" in page.text
    alts = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert f"{PROMPTS[0]}, mild" in alts


def test_every_figure_of_the_table_stands_on_the_page(page, written):
    report = written[0].report
    for row in report.rows:
        for column in report.columns:
            assert all(part in page.text for part in row.text(column))
    for text in [*report.notes, *report.environment.values(), *(column.meaning for column in report.columns)]:
        assert text in page.text
    assert (
        json.loads(re.search(r"mild [0-9a-f]{12}(\{.*?\n\})", page.text, re.DOTALL)[1])["methods"][0]["density"] == 0.5
    )


def test_strips_hold_the_pictures_of_all_runs(page, written):
    images = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 4 * 3
    runs = written[0].runs
    found, warnings = strips(runs, written[0].psnr, 4)
    assert not warnings and [cell.run for cell in found[0].cells] == ["dense", "mild", "strong"]
    data = base64.b64decode(found[2].cells[1].frames[0].split(",")[1])
    name = runs[1].samples.names[found[2].index]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), runs[1].samples.read(name)[0]), "small: lossless"
    assert found[2].cells[0].psnr is None and f"{found[2].cells[1].psnr:.1f} dB" in page.text


def test_strips_are_chosen_by_rule():
    psnr = {
        "a": {0: 30, 1: 20, 2: 28, 3: 25, 4: 40},
        "b": {0: 30, 1: 31, 2: 18, 3: 25, 4: 40},
    }  # means 30 25.5 23 25 40
    assert choose(range(5), psnr, 4) == [(2, "lowest PSNR"), (1, "median PSNR"), (0, "sample 0"), (3, "sample 3")]
    assert choose(range(5), psnr, 1) == [(2, "lowest PSNR")] and choose(range(5), psnr, 0) == []
    assert choose([7, 9], {}, 6) == [(7, "sample 7"), (9, "sample 9")]
    assert choose([0], {"a": {0: 3.0}}, 6) == [(0, "lowest PSNR")]
    assert choose([0, 1], {"a": {1: 3.0}}, 6) == [(1, "lowest PSNR"), (0, "sample 0")], "one that could not be read"


def test_videos_show_four_frames_and_large_ones_shrink_to_the_budget(tmp_path):
    gathered = gather([write_runs(tmp_path, frames=9)], no_dense=True)
    found, _ = strips(gathered.runs, {}, 2)
    assert [len(cell.frames) for cell in found[0].cells] == [4, 4, 4] and found[0].why == "sample 0"
    noise = np.random.default_rng(0).integers(0, 256, (4, 200, 300, 3), np.uint8)
    for run in gathered.runs:
        object.__setattr__(run.samples, "read", lambda name: noise)
    found, _ = strips(gathered.runs, {}, 6)
    assert sum(len(url) for strip in found for cell in strip.cells for url in cell.frames) <= BUDGET
    assert 48 <= found[0].cells[0].width < 256 and found[0].cells[0].height == round(found[0].cells[0].width * 2 / 3)


def point(name, x, y, dense=False):
    return plots.Point(name, Interval(x, x - 0.02, x + 0.02, 5), Interval(y, y - 1, y + 1, 5), dense)


def test_the_frontier_is_what_nothing_beats_in_both():
    points = [point("a", 1.0, 30), point("b", 1.1, 25), point("c", 1.2, 27), point("d", 1.4, 20), point("e", 1.4, 19)]
    assert [p.name for p in plots.frontier(points, "higher")] == ["a", "c", "d"]
    assert [p.name for p in plots.frontier(points, "lower")] == ["e"]


def test_names_in_a_plot_cover_neither_each_other_nor_the_points():
    points = [point(f"density-0.{i}", 1.2 + 0.01 * i, 25 + i % 3) for i in range(6)]
    figure = plots.draw(points, SPEEDUP, PSNR, "n = 5")
    figure.canvas.draw()
    axes, renderer = figure.axes[0], figure.canvas.get_renderer()
    texts = [text for text in axes.texts if text.get_text().startswith("density")]
    assert sorted(text.get_text() for text in texts) == sorted(p.name for p in points)
    boxes = [Text.get_window_extent(text, renderer) for text in texts]  # without the leading line
    assert not [(i, j) for i in range(6) for j in range(i) if boxes[i].overlaps(boxes[j])]
    at = [axes.transData.transform((p.x.value, p.y.value)) for p in points]
    assert not [(i, j) for i in range(6) for j in range(6) if boxes[i].contains(*at[j])]


def test_names_go_beside_their_points_and_to_the_free_side():
    sizes, frame, nothing = np.array([[30.0, 10]]), np.array([0.0, 0, 200, 200]), np.empty((0, 4))
    near = labels.place(np.array([[100.0, 100]]), sizes, nothing, frame)[0]
    assert near.box.tolist() == [108, 106, 138, 116] and near.line_to is None, "right and above"
    edge = labels.place(np.array([[190.0, 195]]), sizes, nothing, frame)[0]
    assert edge.box.tolist() == [152, 179, 182, 189] and edge.line_to is None, (
        "left and below in the upper right corner"
    )
    walled = labels.place(np.array([[100.0, 100]]), sizes, np.array([[75.0, 75, 125, 125]]), frame)[0]
    x0, y0, x1, y1 = walled.box
    assert walled.line_to is not None and not (x0 < 125 and x1 > 75 and y0 < 125 and y1 > 75)
    crowd = np.array([[100.0, 100], [104, 104]])
    one, two = labels.place(crowd, sizes.repeat(2, 0), nothing, frame)
    distance = [[np.linalg.norm(p - p.clip(b.box[:2], b.box[2:])) for p in crowd] for b in (one, two)]
    assert distance[0][0] < distance[0][1] and distance[1][1] < distance[1][0], "each is nearer to its own point"


def test_a_plot_is_the_same_twice_and_takes_the_pages_colours():
    points = [point("dense", 1, 0.0, True), point("x<y", 1.3, 2)]
    kid = distance_columns("FID", "KID")[0]
    first, again = (plots.svg(plots.draw(points, SPEEDUP, kid, "n"), 'a "label"') for _ in range(2))
    assert first == again and "&quot;label&quot;" in first and "var(--ink)" in first and "var(--accent)" in first
    assert not re.findall("#[0-9a-f]{6}", first) and "<script" not in first
    assert first.startswith("<svg") and "<metadata" not in first


def test_an_earlier_reports_plots_do_not_stay(written, tmp_path):
    for name in ("speed_kid.png", "speed_psnr.png", "own.png"):
        (tmp_path / name).write_bytes(b"old")
    write_report(gather([written[0].runs[1].samples.root]), tmp_path, 0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["own.png", "report.html", "report.json", "report.md"]


def test_vbench_has_a_table_of_its_own():
    found = tables([SPEEDUP, PSNR, vbench_column("scene")])
    assert [[column.key for column in table.columns] for table in found] == [["speedup", "psnr"], ["vbench.scene"]]
    assert found[0].groups == [("Speed", 1), ("Against dense", 1)]
