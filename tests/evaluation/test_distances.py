"""Frechet and kernel distance against closed forms, slow references, and clean-fid's and torch-fidelity's own code."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdit.evaluation.frechet import Statistics, frechet_distance, moments
from fastdit.evaluation.intervals import Interval
from fastdit.evaluation.kernel import kid, kid_interval


def features(n: int, dimension: int = 12, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    """Correlated Gaussian rows (n, dimension) float32; equal seeds mix alike."""
    mix = np.random.default_rng(99).standard_normal((dimension, dimension))
    return (np.random.default_rng(seed).standard_normal((n, dimension)) @ mix + shift).astype(np.float32)


def of(n: int, dimension: int = 12, seed: int = 0, shift: float = 0.0) -> Statistics:
    return Statistics.of(features(n, dimension, seed, shift), "test")


def without_features(s: Statistics) -> Statistics:
    return Statistics(s.mean, s.covariance, s.n, s.extractor)


def test_frechet_of_diagonal_gaussians_has_a_closed_form():
    rng = np.random.default_rng(0)
    mean, other, a, b = rng.random((4, 9))
    expected = ((mean - other) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    first, second = Statistics(mean, np.diag(a), None, "x"), Statistics(other, np.diag(b), None, "x")
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-12)
    a[3:] = 0  # singular: no Cholesky factor
    expected = ((mean - other) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    for one, two in permutations((Statistics(mean, np.diag(a), None, "x"), second)):
        assert frechet_distance(one, two) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n", [5, 12, 40])
def test_frechet_to_itself_is_0(n):
    a = of(n)
    scale = np.trace(a.covariance)
    for one, two in ((a, a), (a, without_features(a)), (without_features(a), without_features(a))):
        # what is left of a singular covariance is the square root of rounding
        assert 0 <= frechet_distance(one, two) <= scale * (1e-12 if one.features is two.features else 1e-6)


@given(st.integers(2, 30), st.integers(2, 30), st.integers(1, 16), st.floats(-3, 3))
@settings(max_examples=40, deadline=None)
def test_frechet_is_symmetric_and_does_not_depend_on_the_way(n, m, dimension, shift):
    a, b = of(n, dimension), of(m, dimension, 1, shift)
    expected = frechet_distance(a, b)  # by the factors of whichever set has fewer samples than dimensions
    scale = np.trace(a.covariance) + np.trace(b.covariance)
    assert expected >= 0
    for one, two in ((b, a), (without_features(a), b), (a, without_features(b))):
        assert frechet_distance(one, two) == pytest.approx(expected, rel=1e-6, abs=1e-5 * scale)


@pytest.mark.parametrize("n, m, dimension", [(300, 200, 64), (40, 60, 64), (40, 300, 64)])
def test_frechet_agrees_with_clean_fid_and_torch_fidelity(n, m, dimension):
    x, y = features(n, dimension), features(m, dimension, 1, 0.3)
    ours = frechet_distance(Statistics.of(x, "test"), Statistics.of(y, "test"))
    theirs = pytest.importorskip("torch_fidelity.metric_fid")
    stats = [theirs.fid_features_to_statistics(torch.from_numpy(values)) for values in (x, y)]
    assert ours == pytest.approx(theirs.fid_statistics_to_metric(*stats, False)[theirs.KEY_METRIC_FID], rel=1e-4)
    clean_fid = pytest.importorskip("cleanfid.fid")
    try:
        assert ours == pytest.approx(clean_fid.fid_from_feats(x, y), rel=1e-4)
    except TypeError:
        pytest.skip("clean-fid does not run with scipy 1.18 and later")


def test_blocks_give_the_covariance_of_the_whole():
    x = features(50) + np.float32(1e4)  # a mean that would eat the digits of a sum of squares
    for blocks in ([x], np.array_split(x, 7)):
        mean, covariance, n = moments(blocks)
        np.testing.assert_allclose(mean, x.mean(0, dtype=np.float64), rtol=1e-12)
        np.testing.assert_allclose(covariance, np.cov(x.astype(np.float64), rowvar=False), rtol=1e-9)
        assert n == 50
    assert Statistics.of(iter(np.array_split(x, 7)), "test").features is None


def test_statistics_are_kept_whole(tmp_path):
    a = of(30)
    b = Statistics.load(a.save(tmp_path / "a.npz"))
    assert (b.n, b.extractor, b.assumed) == (30, "test", False) and frechet_distance(a, b) < 1e-9
    np.testing.assert_array_equal(a.features, b.features)
    with np.load(tmp_path / "a.npz") as file:  # the names under which clean-fid and ADM look
        assert {"mu", "sigma", "n", "extractor", "fastdit"} <= set(file)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
    with pytest.raises(ValueError, match=r"a\.txt: statistics are saved as \.npz"):
        a.save(tmp_path / "a.txt")


def test_statistics_of_others_are_taken_for_inceptions(tmp_path):
    mean, covariance = np.zeros(4), np.eye(4, dtype=np.float32)
    np.savez(tmp_path / "clean.npz", mu=mean, sigma=covariance)
    np.savez(tmp_path / "adm.npz", mu=mean, sigma=covariance, mu_s=np.ones(7), sigma_s=np.eye(7))
    for name in ("clean", "adm"):
        loaded = Statistics.load(tmp_path / f"{name}.npz")
        assert (loaded.extractor, loaded.assumed, loaded.n, loaded.dimension) == ("inception", True, None, 4)
        for extractor in ("inception", "inception:legacy_tensorflow", "inception-tf"):
            loaded.check(extractor, 4)
        with pytest.raises(ValueError, match="features of inception cannot be compared with those of clip:x"):
            loaded.check("clip:x", 4)


def test_statistics_that_cannot_be_compared_or_read(tmp_path):
    a = of(5, 3)
    with pytest.raises(ValueError, match="features of other cannot be compared with those of test"):
        frechet_distance(a, Statistics.of(a.features, "other"))
    with pytest.raises(ValueError, match="statistics \\(of test\\) have 4 dimensions where test has 3"):
        frechet_distance(a, of(5, 4))
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        of(1)
    with pytest.raises(ValueError, match="not finite"):
        Statistics.of(np.array([[0.0], [np.nan]]), "test")
    bad = {
        "text": ("no npz of statistics", None),
        "samples": ("mu and sigma missing", {"arr_0": np.zeros(3)}),
        "shapes": (r"mu \(3,\) and sigma \(2, 2\) must be", {"mu": np.zeros(3), "sigma": np.eye(2)}),
        "nan": ("not finite", {"mu": np.full(2, np.nan), "sigma": np.eye(2)}),
        "n": ("n must be one whole number", {"mu": np.zeros(2), "sigma": np.eye(2), "n": np.arange(2)}),
        "n nan": ("n must be one whole number", {"mu": np.zeros(2), "sigma": np.eye(2), "n": np.array(np.nan)}),
        "names": ("mu must hold numbers", {"mu": np.array(["a", "b"]), "sigma": np.eye(2)}),
        **{
            name: (message, {"mu": np.zeros(2), "sigma": np.eye(2), "features": features})
            for name, message, features in (
                ("flat", r"features \(6,\) must be \(samples, 2\).*make the file anew", np.zeros(6)),
                ("wide", r"features \(6, 3\) must be \(samples, 2\)", np.zeros((6, 3))),
                ("infinite", "features that are not finite: make the file anew", np.full((6, 2), np.inf)),
                ("words", "features must hold numbers, not <U1", np.full((6, 2), "a")),
            )
        },
        "torn groups": (
            r"groups \(3,\) must number each row",
            {"mu": np.zeros(2), "sigma": np.eye(2), "features": np.zeros((6, 2)), "groups": np.arange(3)},
        ),
        "pickle": ("no npz of statistics", {"mu": np.array([None]), "sigma": np.eye(1)}),
    }
    for name, (message, data) in bad.items():
        path = tmp_path / f"{name}.npz"
        path.write_text("no") if data is None else np.savez(path, **data)
        with pytest.raises(ValueError, match=message) as error:
            Statistics.load(path)
        assert str(path) in str(error.value)


def slow_kid(x: np.ndarray, y: np.ndarray) -> float:
    """Pair by pair."""
    x, y = x.astype(np.float64), y.astype(np.float64)

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return (float(a @ b) / len(a) + 1) ** 3

    within = [np.mean([k(s[i], s[j]) for i, j in permutations(range(len(s)), 2)]) for s in (x, y)]
    return float(sum(within) - 2 * np.mean([k(a, b) for a in x for b in y]))


def test_kid_by_pairs_and_by_blocks(monkeypatch):
    x, y = features(11, 5), features(9, 5, 1, 0.2)
    assert kid(x, y) == pytest.approx(slow_kid(x, y), rel=1e-10)
    monkeypatch.setattr("fastdit.evaluation.kernel.CELLS", 20)
    assert kid(x, y) == pytest.approx(slow_kid(x, y), rel=1e-10)


def test_kid_subsets_agree_with_torch_fidelity_and_clean_fid():
    x, y = features(70), features(50, seed=1, shift=0.3)
    theirs = pytest.importorskip("torch_fidelity.metric_kid")
    options = {"kid_subset_size": 40, "kid_subsets": 10, "rng_seed": 5, "verbose": False}
    found = theirs.kid_features_to_metric(torch.from_numpy(x), torch.from_numpy(y), **options)
    assert kid(x, y, 40, 10, seed=5) == pytest.approx(found[theirs.KEY_METRIC_KID_MEAN], rel=1e-4)
    clean_fid = pytest.importorskip("cleanfid.fid")
    np.random.seed(5)
    assert kid(x, y, 40, 10, seed=5) == pytest.approx(clean_fid.kernel_distance(y, x, 10, 40), rel=1e-4)


def test_kid_interval_is_the_statistic_of_each_draw(monkeypatch):
    x, y = features(7, 4), features(6, 4, 1, 0.5)
    counts = np.array([[1, 1, 1, 1, 1, 1, 1], [3, 0, 2, 0, 1, 1, 0], [7, 0, 0, 0, 0, 0, 0]])
    monkeypatch.setattr("fastdit.evaluation.kernel.draws_of", lambda groups, draws, seed: counts)
    drawn = kid_interval({"a": x}, y).drawn["a"]
    assert drawn[0] == pytest.approx(slow_kid(x, y))
    # the second draw by hand: repeated samples, pairs of one sample with itself left out
    rows = np.repeat(np.arange(7), counts[1])
    pairs = [(i, j) for i, j in permutations(rows, 2) if i != j]
    kernel = (x.astype(np.float64) @ x.T / 4 + 1) ** 3
    cross = ((x[rows].astype(np.float64) @ y.T / 4 + 1) ** 3).mean()
    own = slow_kid(x, y) - np.mean([kernel[i, j] for i, j in permutations(range(7), 2)])
    own += 2 * ((x.astype(np.float64) @ y.T / 4 + 1) ** 3).mean()
    assert drawn[1] == pytest.approx(np.mean([kernel[i, j] for i, j in pairs]) + own - 2 * cross)
    assert np.isnan(drawn[2])  # one sample alone has no pairs


def test_kid_interval_is_not_biased_by_repeats_and_pairs_the_sets():
    reference, x = features(60, seed=1), features(40, seed=2, shift=0.5)
    close = x + np.float32(0.02) * features(40, seed=3)
    found = kid_interval({"dense": x, "fast": close}, reference)
    both = [found.interval(name) for name in ("dense", "fast")]
    for one in both:
        assert one.low < one.value < one.high and one.n == 40
    assert both[0].value == pytest.approx(kid(x, reference), rel=1e-9)
    spread = both[0].high - both[0].low
    assert abs(np.mean(found.drawn["dense"]) - both[0].value) < 0.1 * spread
    change = found.difference("fast", "dense")
    assert change.value == pytest.approx(both[1].value - both[0].value)
    assert change.high - change.low < 0.3 * spread
    again = kid_interval({"dense": x}, reference)
    np.testing.assert_array_equal(again.drawn["dense"], found.drawn["dense"])
    grouped = kid_interval({"dense": np.repeat(x, 2, 0)}, reference, groups=np.repeat(np.arange(40), 2).tolist())
    alone = kid_interval({"dense": np.repeat(x, 2, 0)}, reference)
    assert np.std(grouped.drawn["dense"]) > 1.2 * np.std(alone.drawn["dense"])


def in_groups(count: int, size: int, seed: int, shift: float = 0.0) -> tuple[np.ndarray, list[int]]:
    """Samples of `count` prompts, `size` of each: half of the variance is the prompt's."""
    rng = np.random.default_rng(seed)
    prompts = rng.standard_normal((count, 1, 24)) + shift
    rows = (prompts + rng.standard_normal((count, size, 24))) / np.sqrt(2)
    return rows.reshape(-1, 24).astype(np.float32), np.repeat(np.arange(count), size).tolist()


def test_a_group_drawn_twice_brings_its_own_pairs_twice(monkeypatch):
    (x, groups), y = in_groups(3, 2, 0), features(6, 24, 1)
    times = np.array([[1, 1, 1], [2, 0, 1], [0, 0, 3]])
    monkeypatch.setattr("fastdit.evaluation.kernel.draws_of", lambda *_: times.repeat(2, 1))
    found = kid_interval({"a": x}, y, groups)
    kernel, cross = ((x.astype(np.float64) @ other.T / 24 + 1) ** 3 for other in (x, y))
    own = np.mean([((y[i].astype(np.float64) @ y[j]) / 24 + 1) ** 3 for i, j in permutations(range(6), 2)])
    for number, drawn in enumerate(times):
        copies = [(group, copy) for group in range(3) for copy in range(drawn[group])]
        rows = [(2 * group + i, (group, copy)) for group, copy in copies for i in range(2)]
        pairs = [(a, b) for a, b in permutations(rows, 2) if a[1] == b[1] or a[1][0] != b[1][0]]
        rest = own - 2 * cross[[row for row, _ in rows]].mean()
        expected = np.mean([kernel[a[0], b[0]] for a, b in pairs]) + rest
        assert found.drawn["a"][number] == pytest.approx(expected)
        pairs = [(a, b) for a, b in pairs if a[1] != b[1]]
        expected = np.mean([kernel[a[0], b[0]] for a, b in pairs]) + rest if pairs else np.nan
        assert found.across.drawn["a"][number] == pytest.approx(expected, nan_ok=True)
    assert found.values["a"] == pytest.approx(kid(x, y)), "the value is the one that others publish"
    monkeypatch.setattr("fastdit.evaluation.kernel.CELLS", 5)
    again = kid_interval({"a": x}, y, groups)
    np.testing.assert_allclose(again.drawn["a"], found.drawn["a"])
    np.testing.assert_allclose(again.across.drawn["a"], found.across.drawn["a"])


def test_kid_of_several_samples_a_prompt_lies_in_its_interval_and_across_is_unbiased():
    reference, everyone = (in_groups(2000, 1, seed, shift)[0] for seed, shift in ((999, 0), (998, 0.2)))
    true, trials = kid(everyone, reference[:500]), 40
    found = []
    for seed in range(trials):
        x, groups = in_groups(40, 5, seed, 0.2)
        drawn = kid_interval({"a": x}, reference[:500], groups, draws=200)
        found.append((drawn.interval("a"), drawn.across.interval("a")))
    assert all(one.low < one.value < one.high for both in found for one in both)
    mean, across = (np.mean([one.value for one in kind]) for kind in zip(*found))
    error = np.std([one.value for _, one in found]) / np.sqrt(trials)
    assert abs(across - true) < 3 * error < mean - true, "pairs within a prompt pull the plain value up"
    for kind, middle in zip(zip(*found), (mean, true)):
        assert np.mean([one.low <= middle <= one.high for one in kind]) >= 0.9


def test_kid_without_an_interval_or_pairs_across():
    x, reference = features(10), features(20, seed=1)
    alone = kid_interval({"a": x, "b": x + 1}, reference, ["one prompt"] * 10)
    assert alone.interval("a") == Interval(kid(x, reference), None, None, 10) and alone.across is None
    assert alone.difference("b", "a").low is None
    assert kid_interval({"a": x}, reference, range(10)).across is None
    few = kid_interval({"a": x[:3]}, reference)  # one draw of nine is a sample alone, which has no pairs
    assert 0 < np.isnan(few.drawn["a"]).mean() < 0.5 and few.interval("a").low is None
    two = kid_interval({"a": x}, reference, [0, 1] * 5)
    assert two.interval("a").low is not None and two.across.interval("a").low is None


def test_kid_across_leaves_pairs_within_a_group_out_of_the_reference_too():
    x, (reference, groups) = features(9, 24), in_groups(4, 3, 1)
    found = kid_interval({"a": x}, reference, reference_groups=groups)
    kernel = (reference.astype(np.float64) @ reference.T / 24 + 1) ** 3
    pairs = list(permutations(range(12), 2))
    inside = [kernel[i, j] for i, j in pairs if groups[i] == groups[j]]
    every, apart = (
        np.mean([kernel[i, j] for i, j in of]) for of in (pairs, [p for p in pairs if p[0] // 3 != p[1] // 3])
    )
    assert len(inside) == 24 and found.values["a"] == pytest.approx(kid(x, reference))
    assert found.across.values["a"] == pytest.approx(found.values["a"] - every + apart)


def test_groups_are_kept_with_the_features(tmp_path):
    x, groups = in_groups(4, 3, 1)
    a = Statistics.of(x, "test", [f"video {group}" for group in groups])
    assert Statistics.load(a.save(tmp_path / "a.npz")).groups.tolist() == groups
    assert Statistics.of(x, "test", range(12)).groups is None


def test_kid_of_bad_input():
    x = features(5)
    with pytest.raises(ValueError, match="at least 2 samples"):
        kid(x[:1], x)
    with pytest.raises(ValueError, match="12 and 3 dimensions"):
        kid(x, features(5, 3))
    with pytest.raises(ValueError, match="not finite"):
        kid(x, np.full_like(x, np.inf))
    with pytest.raises(ValueError, match=r"equally many samples.*a has 5, b has 4"):
        kid_interval({"a": x, "b": x[:4]}, x)
    with pytest.raises(ValueError, match="3 groups, 5 samples"):
        kid_interval({"a": x}, x, groups=[1, 2, 3])
