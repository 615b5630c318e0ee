"""Two sets of samples from the same noise, dense and accelerated: fidelity, sharpness and motion, with intervals."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastdit.evaluation import frames
from fastdit.evaluation.fidelity import capped, frame_psnr, frame_ssim
from fastdit.evaluation.intervals import Interval, bootstrap
from fastdit.evaluation.motion import motion, sharpness
from fastdit.evaluation.perceptual import Perceptual
from fastdit.evaluation.samples import Samples, pairs


@dataclass(frozen=True)
class Pair:
    """One sample in both sets: distances of each frame, sharpness and motion as (dense, accelerated)."""

    name: str
    group: Hashable  # the prompt: samples of one prompt are no independent draws
    psnr: np.ndarray  # (T,) dB, at most 100
    ssim: np.ndarray  # (T,)
    perceptual: np.ndarray | None  # (T,)
    identical: int  # frames equal in every pixel
    sharpness: tuple[float, float]
    motion: tuple[float, float] | None  # None for a picture

    def to_dict(self, key: str | None) -> dict[str, Any]:
        """The means over frames; for a video also each frame's value. `key` names the perceptual distance."""
        distances = {"psnr": self.psnr, "ssim": self.ssim}
        if key is not None and self.perceptual is not None:
            distances[key] = self.perceptual
        out: dict[str, Any] = {"name": self.name, "frames": len(self.psnr), "identical_frames": self.identical}
        out |= {name: float(values.mean()) for name, values in distances.items()}
        out |= {"sharpness": list(self.sharpness), "motion": None if self.motion is None else list(self.motion)}
        if len(self.psnr) > 1:
            out["per_frame"] = {name: values.tolist() for name, values in distances.items()}
        return out


@dataclass(frozen=True)
class Comparison:
    """What came of it: `values` by name, each with its 95 % interval over prompts and its n; the pairs behind them."""

    values: dict[str, Interval]
    samples: list[Pair]
    warnings: list[str] = field(default_factory=list)
    perceptual: Perceptual | None = None

    @property
    def frames(self) -> int:
        return sum(len(pair.psnr) for pair in self.samples)

    @property
    def identical(self) -> int:
        """Frames that are equal in every pixel."""
        return sum(pair.identical for pair in self.samples)

    def to_dict(self) -> dict[str, Any]:
        """As JSON: every number finite, None where there is no interval or no motion."""
        key = self.perceptual.key if self.perceptual else None
        return {
            "metric": "fidelity",
            "n": len(self.samples),
            "frames": self.frames,
            "identical_frames": self.identical,
            "values": {name: interval.to_dict() for name, interval in self.values.items()},
            "warnings": self.warnings,
            "samples": [pair.to_dict(key) for pair in self.samples],
        }


def compare(
    dense: Samples,
    fast: Samples,
    perceptual: Perceptual | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Comparison:
    """Compare two sets pair by pair; means over frames, then over samples.

    A file that cannot be read is left out and counted in `warnings`. ValueError if the sets do not pair, if a pair
    differs in size or length (nothing is cropped), or if nothing can be read.
    """
    names = pairs(dense, fast)
    found: list[Pair] = []
    unreadable: list[str] = []
    for done, (one, two) in enumerate(names):
        progress(done, len(names))
        try:
            a, b = dense.read(one), fast.read(two)
        except (ValueError, OSError) as error:
            unreadable.append(str(error))
            continue
        found.append(_pair(one, _group(dense, one), a, b, perceptual))
    progress(len(names), len(names))
    if not found:
        raise ValueError(f"none of {len(names)} pairs can be read, the first: {unreadable[0]}")
    warnings = _warnings(dense, fast, names, found)
    if unreadable:
        warnings.insert(0, f"{len(unreadable)} of {len(names)} pairs are left out, the first: {unreadable[0]}")
    return Comparison(_values(found, perceptual, warnings), found, warnings, perceptual)


def _group(samples: Samples, name: str) -> Hashable:
    record = samples.records.get(name)
    return name if record is None else (record.prompt, record.label)


def _pair(name: str, group: Hashable, a: np.ndarray, b: np.ndarray, perceptual: Perceptual | None) -> Pair:
    if len(a) != len(b):
        raise ValueError(f"sample {name} has {len(a)} frames in the first set and {len(b)} in the second: "
                         "generate both with one length")  # fmt: skip
    if a.shape != b.shape:
        sizes = [f"{height} x {width}" for _, height, width, _ in (a.shape, b.shape)]
        raise ValueError(f"sample {name} is {sizes[0]} in the first set and {sizes[1]} in the second (height x width): "
                         "generate both with one size")  # fmt: skip
    moved = motion(a), motion(b)
    try:
        return Pair(
            name,
            group,
            psnr=capped(frame_psnr(a, b)),
            ssim=frame_ssim(a, b),
            perceptual=None if perceptual is None else _finite(perceptual(a, b)),
            identical=sum(np.array_equal(x, y) for x, y in zip(a, b, strict=True)),
            sharpness=(sharpness(a), sharpness(b)),
            motion=None if moved[0] is None or moved[1] is None else (moved[0], moved[1]),
        )
    except ValueError as error:
        raise ValueError(f"sample {name}: {error}") from error


def _finite(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise ValueError("the perceptual distance is not finite: is the file of weights whole?")
    return values


def _values(found: list[Pair], perceptual: Perceptual | None, warnings: list[str]) -> dict[str, Interval]:
    """Means over samples and ratios of means, with intervals; a ratio to nothing is left out with a warning."""
    groups = [pair.group for pair in found]
    values = {
        "psnr": bootstrap([pair.psnr.mean() for pair in found], groups),
        "ssim": bootstrap([pair.ssim.mean() for pair in found], groups),
    }
    if perceptual is not None:
        values[perceptual.key] = bootstrap([p.perceptual.mean() for p in found if p.perceptual is not None], groups)
    moving = [pair for pair in found if pair.motion is not None]
    for name, part in (("sharpness", found), ("motion", moving)):
        if not part:
            continue
        rows = np.array([getattr(pair, name) for pair in part])  # (n, 2): dense, accelerated
        groups = [pair.group for pair in part]
        for column, side in enumerate(("dense", "fast")):
            values[f"{name}_{side}"] = bootstrap(rows[:, column], groups)
        if rows[:, 0].any():
            values[f"{name}_ratio"] = _ratio(rows, groups)
        else:
            warnings.append(f"the dense samples have no {name} at all, so there is no ratio of {name}")
    return values


def _ratio(rows: np.ndarray, groups: list[Hashable]) -> Interval:
    """Ratio of the means, not the mean of ratios: a sample that hardly moves would rule the latter."""
    with np.errstate(divide="ignore", invalid="ignore"):
        interval = bootstrap(rows, groups, lambda drawn: float(drawn[:, 1].mean() / drawn[:, 0].mean()))
    ends = np.array([interval.low, interval.high], np.float64)  # None becomes nan
    if np.isfinite(ends).all():
        return interval
    return Interval(interval.value, None, None, interval.n)  # one group, or draws in which nothing moves


def _warnings(dense: Samples, fast: Samples, names: list[tuple[str, str]], found: list[Pair]) -> list[str]:
    """What a reader of the figures should know, counted."""
    out = [*dense.warnings, *fast.warnings]
    for samples, own in ((dense, [one for one, _ in names]), (fast, [two for _, two in names])):
        paths = [path for name in own if (path := samples.paths.get(name)) and frames.is_lossy(path)]
        if paths:
            kinds = ", ".join(sorted({path.suffix.lower() for path in paths}))
            out.append(
                f"{len(paths)} of {len(own)} samples of {samples.root} were decoded from {kinds}: this is fidelity "
                "after encoding, which hides some differences and adds others; compare raw npy or png if you can"
            )
    if len({pair.group for pair in found}) == 1:
        what = "one sample" if len(found) == 1 else f"{len(found)} samples of one prompt"
        out.append(f"{what} only: there is nothing to draw an interval from")
    if all(pair.identical == len(pair.psnr) for pair in found):
        out.append("both sets are the same in every pixel: is it one model twice, or a method that did nothing?")
    return out
