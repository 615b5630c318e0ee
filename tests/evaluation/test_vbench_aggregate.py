"""Quality, Semantic and Total as VBench computes them, and not at all where a dimension is missing."""

import json

import pytest

from fastdit.evaluation.vbench.aggregate import Row, Scores, load
from fastdit.evaluation.vbench.dimensions import DIMENSIONS, group

# Rows of VBench's leaderboard as printed in the appendix of LinGen (arXiv 2412.09856), percent: subject, background,
# flickering, motion, dynamic degree, aesthetic, imaging; object class, multiple objects, human action, color, spatial,
# scene, appearance, temporal style, overall; quality, semantic, total.
PUBLISHED = {
    "VideoCrafter-2.0": (
        (96.85, 98.22, 98.41, 97.73, 42.50, 63.13, 67.22),
        (92.55, 40.66, 95.00, 92.92, 35.86, 55.29, 25.13, 25.84, 28.23),
        (82.20, 73.42, 80.44),
    ),
    "Pika-1.0": (
        (96.94, 97.36, 99.74, 99.50, 47.50, 62.04, 61.87),
        (88.72, 43.08, 86.20, 90.57, 61.03, 49.83, 22.26, 24.22, 25.94),
        (82.92, 71.77, 80.69),
    ),
    "T2V-Turbo-v2": (
        (95.50, 96.71, 97.35, 97.07, 90.00, 62.61, 71.78),
        (95.33, 61.49, 96.20, 92.53, 43.32, 56.40, 24.17, 27.06, 28.26),
        (85.13, 77.12, 83.52),
    ),
}


def values(quality, semantic) -> dict[str, float]:
    return {name: score / 100 for name, score in zip(DIMENSIONS, (*quality, *semantic), strict=True)}


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_rows(model):
    quality, semantic, sums = PUBLISHED[model]
    scores = Scores(values(quality, semantic))
    for what, published in zip(("quality", "semantic", "total"), sums, strict=True):
        assert 100 * scores.sum(what) == pytest.approx(
            published, abs=0.01
        )  # they are rounded to 0.01, and so is each row


def test_by_hand():
    halves = Scores({name: (row.low + row.high) / 2 for name, row in DIMENSIONS.items()})
    assert all(halves.normalised(name) == pytest.approx(0.5) for name in DIMENSIONS)
    assert [halves.sum(what) for what in ("quality", "semantic", "total")] == pytest.approx([0.5, 0.5, 0.5])
    # subject consistency at its minimum and dynamic degree at its maximum, the other five of quality in the middle
    mixed = Scores({**halves.values, "subject_consistency": 0.1462, "dynamic_degree": 1.0, "scene": 0.8222})
    quality = (0 + 0.5 * 1 + 5 * 0.5) / 6.5
    semantic = (8 * 0.5 + 1) / 9
    assert mixed.sum("quality") == pytest.approx(quality) and mixed.sum("semantic") == pytest.approx(semantic)
    assert mixed.sum("total") == pytest.approx((4 * quality + semantic) / 5)
    assert Scores({"temporal_flickering": 0.6293 - 0.3707}).normalised("temporal_flickering") == pytest.approx(-1)


def test_no_sum_without_all_of_its_dimensions():
    full = values(*PUBLISHED["Pika-1.0"][:2])
    only_quality = Scores({name: full[name] for name in group("quality")})
    assert 100 * only_quality.sum("quality") == pytest.approx(82.92, abs=0.01)
    with pytest.raises(ValueError, match="total needs all 16 of its dimensions, 9 are missing: object_class, multiple"):
        only_quality.sum("total")
    with pytest.raises(ValueError, match="semantic needs all 9"):
        only_quality.interval("semantic")
    for name in full:
        with pytest.raises(ValueError, match=f"1 are missing: {name}"):
            Scores({other: value for other, value in full.items() if other != name}).sum("total")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scene": 63.1}, "give 0.63, not 63 %"),
        ({"sceen": 0.5}, "no dimension"),
        ({"scene": float("nan")}, "lie in 0 to 1"),
    ],
)
def test_bad_values(values, message):
    with pytest.raises(ValueError, match=message):
        Scores(values)


def rows_of(spread: float) -> list[Row]:
    """Five videos of three prompts a dimension, prompts `spread` apart; flickering and motion share their videos."""
    found = []
    for name in DIMENSIONS:
        if name == "motion_smoothness":
            continue
        names = ("temporal_flickering", "motion_smoothness") if name == "temporal_flickering" else (name,)
        for prompt in range(3):
            score = 0.2 + spread * (prompt - 1)
            found += [Row(f"{name} {prompt}-{k}", f"{name} {prompt}", dict.fromkeys(names, score)) for k in range(5)]
    return found


def test_interval_over_prompts():
    means = dict.fromkeys(DIMENSIONS, 0.2)
    assert Scores(means).interval("total").low is None
    still, wide = (Scores(means, rows_of(spread)).interval("total") for spread in (0, 0.05))
    assert still.low == pytest.approx(still.value) == pytest.approx(still.high)
    assert wide.low < wide.value < wide.high and wide.value == still.value and wide.n == 5 * 3 * 15
    assert wide == Scores(means, rows_of(0.05)).interval("total")
    # an aggregate that is no mean over videos moves the interval with it
    moved = Scores({**means, "scene": 0.3}, rows_of(0.05)).interval("semantic")
    before = Scores(means, rows_of(0.05)).interval("semantic")
    assert moved.low - before.low == pytest.approx(moved.value - before.value)
    few = [row for row in rows_of(0.05) if row.prompt not in ("scene 0", "scene 1")]
    assert (
        Scores(means, few).interval("semantic").low is None and Scores(means, few).interval("quality").low is not None
    )


def test_vbench_files_are_read(tmp_path):
    for name in ("imaging_quality", "human_action"):
        per_video = [
            {"video_path": f"v/a-b-{k}.mp4", "video_results": 50.0 + k if name == "imaging_quality" else k > 0}
            for k in range(2)
        ]
        aggregate = 0.505 if name == "imaging_quality" else 0.5
        (tmp_path / f"{name}_eval_results.json").write_text(json.dumps({name: [aggregate, per_video]}))
    (tmp_path / "x_full_info.json").write_text("[]")
    scores = load(tmp_path)
    assert scores.values == {"human_action": 0.5, "imaging_quality": 0.505}
    assert scores.rows == [
        Row("a-b-0", "a-b", {"human_action": 0.0, "imaging_quality": 0.50}),
        Row("a-b-1", "a-b", {"human_action": 1.0, "imaging_quality": 0.51}),
    ]
    (tmp_path / "again_eval_results.json").write_text((tmp_path / "human_action_eval_results.json").read_text())
    with pytest.raises(ValueError, match="human_action twice"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "no VBench results"),
        ('{"color": 1}', "no VBench results"),
        ('{"color": [0.5, [{}]]}', "no VBench results"),
        ('{"colour": [0.5, []]}', "no dimension 'colour'"),
        ('{"color": [55, []]}', "lie in 0 to 1"),
        ('{"color": [0.5', "no JSON file"),
    ],
)
def test_files_that_hold_no_results(tmp_path, text, message):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "x.json")


def test_absent_results(tmp_path):
    with pytest.raises(ValueError, match="holds no VBench results: `fastdit eval vbench score`"):
        load(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        load(tmp_path / "x.json")
