"""Two sets of samples: what is paired, averaged, counted, warned of and refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from fastdit.evaluation import frames
from fastdit.evaluation.comparison import compare
from fastdit.evaluation.fidelity import frame_ssim, psnr, ssim
from fastdit.evaluation.manifest import Record, Writer, open_run
from fastdit.evaluation.motion import motion, sharpness
from fastdit.evaluation.perceptual import Perceptual
from fastdit.evaluation.samples import Samples


def held(samples: dict[str, np.ndarray]) -> Samples:
    """Samples that are in memory."""
    return Samples(Path("nowhere"), list(samples), samples.__getitem__)


def pictures(count=4, length=1, size=24, seed=0):
    rng = np.random.default_rng(seed)
    smooth = [rng.integers(0, 256, (size // 4, size // 4, 3), np.uint8).repeat(4, 0).repeat(4, 1) for _ in range(count)]
    return {f"s{i}": np.stack([np.roll(x, 3 * t, 1) for t in range(length)]) for i, x in enumerate(smooth)}


def noisy(samples, sigma, seed=0):
    rng = np.random.default_rng(seed)
    return {name: (x + rng.normal(0, sigma, x.shape)).clip(0, 255).astype(np.uint8) for name, x in samples.items()}


def write_run(folder, samples, prompts=None, seeds=None, name="a", **settings):
    digest = open_run(folder, name, settings, {})
    writer = Writer(folder, 0)
    for index, sample in enumerate(samples.values()):
        file = f"samples/{index:06d}" + (".png" if len(sample) == 1 else ".npy")
        frames.write_picture(folder / file, sample[0]) if len(sample) == 1 else frames.write_raw(folder / file, sample)
        prompt = prompts[index] if prompts else f"prompt {index}"
        seed = seeds[index] if seeds else index
        writer.append(Record(index, file, prompt, seed, digest, 0.5, 2, 1, 0))
    writer.close()
    return folder


def test_the_same_set_twice_is_at_the_ends_of_every_scale():
    a = held(pictures(length=3))
    result = compare(a, a)
    assert result.values["psnr"].value == 100 and result.values["ssim"].value == pytest.approx(1, abs=1e-12)
    assert result.values["sharpness_ratio"].value == 1 == result.values["motion_ratio"].value
    assert (result.identical, result.frames) == (12, 12)
    assert [text for text in result.warnings if "the same in every pixel" in text]


def test_the_figures_are_means_over_frames_then_samples():
    a = pictures(3, length=2)
    a["s1"] = pictures(1, length=5, seed=9)["s0"]  # longer clips do not weigh more
    b = noisy(a, 12)
    b["s2"][0] = a["s2"][0]
    result = compare(held(a), held(b))
    assert result.values["psnr"].value == pytest.approx(np.mean([psnr(a[n], b[n]) for n in a]))
    assert result.values["ssim"].value == pytest.approx(np.mean([ssim(a[n], b[n]) for n in a]))
    for side, samples in (("dense", a), ("fast", b)):
        for name, measure in (("sharpness", sharpness), ("motion", motion)):
            expected = np.mean([measure(x) for x in samples.values()])
            assert result.values[f"{name}_{side}"].value == pytest.approx(expected)
    ratio = result.values["motion_fast"].value / result.values["motion_dense"].value
    assert result.values["motion_ratio"].value == pytest.approx(ratio)
    assert (result.identical, result.frames) == (1, 9) and result.warnings == []
    assert all(interval.low < interval.value < interval.high and interval.n == 3 for interval in result.values.values())
    assert result.samples[1].ssim == pytest.approx(frame_ssim(a["s1"], b["s1"]))


def test_stills_have_no_motion_and_mixed_sets_say_how_many_have():
    still, moving = pictures(3), pictures(2, length=2, seed=1)
    result = compare(held(still), held(noisy(still, 5)))
    assert not [name for name in result.values if name.startswith("motion")]
    assert result.to_dict()["samples"][0]["motion"] is None
    mixed = still | {f"v{name}": clip for name, clip in moving.items()}
    values = compare(held(mixed), held(noisy(mixed, 5))).values
    assert (values["motion_ratio"].n, values["psnr"].n) == (2, 5)


def test_blur_and_freezing_show_although_other_figures_look_good():
    photo = pytest.importorskip("skimage.data").astronaut()
    clips = {f"s{i}": np.stack([photo[i * 40 : i * 40 + 64, 2 * t : 2 * t + 64] for t in range(4)]) for i in range(4)}

    def blur(frame):
        return np.asarray(Image.fromarray(frame).filter(ImageFilter.GaussianBlur(1)))

    soft = {name: np.stack([blur(frame) for frame in clip]) for name, clip in clips.items()}
    frozen = {name: clip[:1].repeat(4, 0) for name, clip in clips.items()}
    blurred, still = compare(held(clips), held(soft)).values, compare(held(clips), held(frozen)).values
    assert blurred["sharpness_ratio"].high < 0.5
    assert still["motion_ratio"].value == 0 and still["sharpness_ratio"].value == pytest.approx(1, abs=0.1)


def test_more_noise_is_less_fidelity():
    a = pictures(5)
    results = [compare(held(a), held(noisy(a, sigma))).values for sigma in (2, 8, 32)]
    for name in ("psnr", "ssim"):
        values = [result[name].value for result in results]
        assert values == sorted(values, reverse=True)


def test_a_perceptual_distance_is_carried_under_its_own_name():
    distance = Perceptual("random_x", "random trunk (x), not LPIPS", lambda a, b: torch.full((len(a),), 0.5))
    a = pictures(2, length=2, size=32)
    result = compare(held(a), held(noisy(a, 5)), distance)
    assert result.values["random_x"].value == 0.5
    sample = result.to_dict()["samples"][0]
    assert sample["random_x"] == 0.5 and sample["per_frame"]["random_x"] == [0.5, 0.5]
    distance = Perceptual("x", "x", lambda a, b: torch.full((len(a),), torch.nan))
    with pytest.raises(ValueError, match="sample s0: the perceptual distance is not finite"):
        compare(held(a), held(a), distance)


def test_everything_fits_into_json():
    a = pictures(2, length=2)
    still = {name: clip[:1].repeat(2, 0) for name, clip in a.items()}
    for one, two in ((a, a), (a, noisy(a, 5)), (still, a)):
        data = json.loads(json.dumps(compare(held(one), held(two)).to_dict(), allow_nan=False))
        assert data["metric"] == "fidelity" and data["n"] == 2 == len(data["samples"])
        assert set(data["values"]["psnr"]) == {"value", "low", "high", "n"}
        assert len(data["samples"][0]["per_frame"]["psnr"]) == 2


def test_nothing_moves_in_the_dense_set():
    a = {name: clip.repeat(2, 0) for name, clip in pictures(3).items()}
    b = pictures(3, length=2)
    result = compare(held(a), held(b))
    assert "motion_ratio" not in result.values and result.values["motion_fast"].value > 0
    assert [text for text in result.warnings if "no motion at all" in text]
    b = {**a, "s0": b["s0"]}  # one of three moves: draws without it have no ratio, so there is no interval
    ratio = compare(held(b), held(b)).values["motion_ratio"]
    assert (ratio.value, ratio.low, ratio.high) == (1, None, None)


def test_one_sample_has_no_interval_and_says_so():
    a = pictures(1)
    result = compare(held(a), held(noisy(a, 5)))
    assert result.values["psnr"].low is None and result.values["psnr"].n == 1
    assert result.warnings == ["one sample only: there is nothing to draw an interval from"]


@pytest.mark.parametrize(
    "other, message",
    [
        (np.zeros((1, 24, 20, 3), np.uint8), r"sample s1 is 24 x 24 in the first set and 24 x 20 in the second"),
        (np.zeros((2, 24, 24, 3), np.uint8), r"sample s1 has 1 frames in the first set and 2 in the second"),
    ],
)
def test_mismatched_samples_are_refused_by_name(other, message):
    a = pictures(3)
    with pytest.raises(ValueError, match=message):
        compare(held(a), held({**a, "s1": other}))


def test_too_small_pictures_are_named():
    a = pictures(2, size=8)
    with pytest.raises(ValueError, match="sample s0: SSIM needs pictures of at least 11 x 11"):
        compare(held(a), held(a))


def test_sets_that_do_not_pair_are_refused():
    a = pictures(3)
    with pytest.raises(ValueError, match=r"1 of 3 samples .* the first is 's2'"):
        compare(held(a), held({name: a[name] for name in ("s0", "s1")}))


def test_unreadable_files_are_left_out_and_counted(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for name, sample in pictures(3).items():
            frames.write_picture(tmp_path / folder / f"{name}.png", sample[0])
    path = tmp_path / "b" / "s1.png"
    path.write_bytes(path.read_bytes()[:60])
    result = compare(Samples.open(tmp_path / "a"), Samples.open(tmp_path / "b"))
    assert [pair.name for pair in result.samples] == ["s0", "s2"] and result.values["psnr"].n == 2
    assert result.warnings[0].startswith("1 of 3 pairs are left out, the first: ") and "s1.png" in result.warnings[0]
    for path in (tmp_path / "b").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of 3 pairs can be read, the first: .*s0\.png"):
        compare(Samples.open(tmp_path / "a"), Samples.open(tmp_path / "b"))


def test_encoded_files_are_warned_of_and_raw_ones_beside_them_are_taken(tmp_path):
    clips = pictures(2, length=3, size=32)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for name, sample in clips.items():
            frames.write_video(tmp_path / folder / f"{name}.mp4", sample, 8)
    found = compare(*(Samples.open(tmp_path / folder) for folder in "ab"))
    assert len(found.warnings) == 3 and "2 of 2 samples of" in found.warnings[0]
    assert "were decoded from .mp4: this is fidelity after encoding" in found.warnings[0]
    for name, sample in clips.items():
        frames.write_raw(tmp_path / "a" / f"{name}.npy", sample)
    found = compare(*(Samples.open(tmp_path / folder) for folder in "ab"))
    assert len(found.warnings) == 1 and str(tmp_path / "b") in found.warnings[0]
    assert found.values["psnr"].value < 100


def test_runs_are_paired_by_manifest_and_drawn_by_prompt(tmp_path):
    samples, prompts = pictures(6), ["x", "x", "x", "y", "y", "y"]
    fast = {name: noisy({name: x}, 4 if i < 3 else 40)[name] for i, (name, x) in enumerate(samples.items())}
    a = Samples.open(write_run(tmp_path / "a", samples, prompts))
    b = Samples.open(write_run(tmp_path / "b", fast, prompts, method="fast"))
    by_prompt, alone = compare(a, b).values["psnr"], compare(held(samples), held(fast)).values["psnr"]
    assert by_prompt.value == pytest.approx(alone.value) and by_prompt.n == alone.n == 6
    assert by_prompt.high - by_prompt.low > alone.high - alone.low  # two prompts, not six independent samples
    one = Samples.open(write_run(tmp_path / "c", fast, ["x"] * 6))
    with pytest.raises(ValueError, match="sample 3 is 'y' with seed 3"):
        compare(a, one)
    same = Samples.open(write_run(tmp_path / "d", samples, ["x"] * 6))
    assert compare(same, one).warnings == ["6 samples of one prompt only: there is nothing to draw an interval from"]


def test_progress_counts_pairs():
    seen = []
    compare(held(pictures(2)), held(pictures(2)), progress=lambda *state: seen.append(state))
    assert seen == [(0, 2), (1, 2), (2, 2)]
