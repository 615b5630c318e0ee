"""Columns of a report: what each figure is called, its unit, which way is better, what it means, how it is printed."""

import math
from dataclasses import dataclass, replace

from fastdit.core.report import human
from fastdit.evaluation.intervals import Interval

ABSENT = "-"
SPEED, FIDELITY, DISTANCE, OTHER, VBENCH = "Speed", "Against dense", "Against the reference", "Other", "VBench"


@dataclass(frozen=True)
class Column:
    """One figure of the table; `digits` is the most that is ever printed after the point."""

    key: str
    group: str
    title: str
    meaning: str
    unit: str = ""
    better: str = ""  # "higher", "lower", or neither
    digits: int = 3
    scale: float = 1.0  # printed value / stored value
    signed: bool = False

    def text(self, interval: Interval | None) -> tuple[str, str]:
        """(value, interval) as printed; an absent figure is "-", and one without interval has an empty interval."""
        if interval is None:
            return ABSENT, ""
        if self.key == "macs":
            return human(interval.value), ""
        suffix = "x" if self.unit == "x" else ""
        if interval.low is None or interval.high is None:
            return self._number(interval.value, three(interval.value * self.scale, self.digits)) + suffix, ""
        digits = supported((interval.high - interval.low) * self.scale, self.digits)
        ends = " to ".join(self._number(end, digits) for end in (interval.low, interval.high))
        return self._number(interval.value, digits) + suffix, ends

    def _number(self, value: float, digits: int) -> str:
        text = f"{value * self.scale:{'+' if self.signed else ''}.{digits}f}"
        # what rounds to nothing has no sign
        return text.lstrip("+-") if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")

    @property
    def heading(self) -> str:
        """Title with unit: `PSNR, dB`, `Seconds per sample`."""
        if self.unit in ("", "x"):
            return self.title
        return f"{self.title}{'' if self.unit.startswith('per ') else ','} {self.unit}"

    @property
    def split(self) -> tuple[str, str]:
        """The title without what stands in brackets, and that: a narrow heading needs two lines."""
        head, bracket, rest = self.title.partition("(")
        inside, _, tail = rest.partition(")")
        return (head + tail, f"({inside})") if bracket else (self.title, "")

    @property
    def arrow(self) -> str:
        """Which way is better."""
        return {"higher": "\N{UPWARDS ARROW}", "lower": "\N{DOWNWARDS ARROW}"}.get(self.better, "")


def supported(width: float, most: int) -> int:
    """Digits after the point that an interval of this width supports: the last place is at most a tenth of it."""
    return min(most, max(0, math.ceil(1 - math.log10(width)))) if width > 0 else most


def three(value: float, most: int) -> int:
    """Digits after the point that make three in all: what is printed where no interval says more."""
    return min(most, max(0, 2 - math.floor(math.log10(abs(value))))) if value else most


SECONDS = Column(
    "seconds", SPEED, "Seconds", "Seconds of one sample: a batch's seconds divided by its samples, the median over "
    "batches.", "per sample", "lower", 4,
)  # fmt: skip
SPEEDUP = Column(
    "speedup", SPEED, "Speed-up", "Median seconds of the dense run over median seconds of this one.", "x", "higher", 2
)
MACS = Column(
    "macs", SPEED, "MACs", "Multiply-accumulate operations that the transformer executed for one sample, the mean over "
    "samples; one MAC is two FLOPs.", "per sample", "lower",
)  # fmt: skip
MACS_RATIO = Column(
    "macs_ratio", SPEED, "Fewer MACs", "MACs of the dense run over MACs of this one: the speed-up that counting "
    "promises.", "x", "higher", 2,
)  # fmt: skip
PSNR = Column(
    "psnr", FIDELITY, "PSNR", "Peak signal-to-noise ratio to the dense sample of the same noise, on raw frames; "
    "identical frames count 100 dB.", "dB", "higher", 2,
)  # fmt: skip
SSIM = Column(
    "ssim", FIDELITY, "SSIM", "Structural similarity to the dense sample (Gaussian window of 11, sigma 1.5); 1 is "
    "equal.", "", "higher", 4,
)  # fmt: skip
SHARPNESS = Column(
    "sharpness_ratio", FIDELITY, "Sharpness kept", "Variance of the Laplacian of all samples over that of the dense "
    "ones: below 1 is blur, above 1 is noise or hard edges.",
)  # fmt: skip
MOTION = Column(
    "motion_ratio", FIDELITY, "Motion kept", "Mean difference of consecutive frames over that of the dense samples: "
    "below 1, things move or flicker less.",
)  # fmt: skip


def lpips_column(key: str) -> Column:
    """LPIPS with the trunk that the key names: `lpips_alex`."""
    title = f"LPIPS({key.removeprefix('lpips_')})" if key.startswith("lpips_") else key
    meaning = "Learned perceptual distance to the dense sample (Zhang et al., 2018); 0 is equal."
    return Column(key, FIDELITY, title, meaning, "", "lower", 4)


def distance_columns(frechet: str, kernel: str) -> list[Column]:
    """`kid`, `kid_change` and `fd` under the names that the features allow: KID and FID, or KID(...) and FD(...)."""
    thousand = "\N{MULTIPLICATION SIGN} 1000"
    return [
        Column("kid", DISTANCE, kernel, "Kernel distance to the reference set: unbiased squared MMD, times 1000.",
               thousand, "lower", 3, 1000.0),
        Column("kid_change", DISTANCE, f"{kernel} minus dense", "By how much the kernel distance is above the dense "
               "run's; the interval is that of the difference.", thousand, "lower", 3, 1000.0, signed=True),
        Column("fd", DISTANCE, frechet, "Frechet distance to the reference set.", "", "lower", 2),
    ]  # fmt: skip


def kept_distance_column(key: str, kind: str, title: str) -> Column:
    """A distance, precision or recall that `fastdit eval fid` kept, under the title it gave it."""
    kernel, _, frechet = distance_columns(title, title)
    like = {"kid": kernel, "fd": frechet}.get(kind)
    if like is not None:
        return replace(like, key=key)
    meanings = {
        "precision": "Share of samples that lie among the reference's neighbours: they look real.",
        "recall": "Share of the reference that lies among the samples' neighbours: variety.",
    }
    return Column(key, DISTANCE, title, meanings.get(kind, f"`{title}` of `fastdit eval fid`."), "", "higher", 3)


def clip_column(metric: str, key: str, model: str) -> Column:
    """The CLIP score with its checkpoint, without which the figure says nothing."""
    meaning = f"100 times the cosine of picture and prompt features; checkpoint {model or 'unknown'}."
    return Column(f"{metric}.{key}", OTHER, "CLIP score" if key == "clip" else key, meaning, "", "higher", 2)


def vbench_column(name: str, engine: str = "") -> Column:
    """A dimension or a sum of VBench, in per cent; one that we computed ourselves says so."""
    own = engine == "fastdit"
    title = name.replace("_", " ")
    meaning = "VBench's score" if not own else "VBench's formula, computed by fastdit on the decoded videos"
    return Column(f"vbench.{name}", VBENCH, title, f"{meaning}, times 100.", "%", "higher", 2, 100.0)


def other_column(metric: str, key: str) -> Column:
    """A figure of any other command, by its own name."""
    title = key if key.startswith(metric) else f"{metric} {key}"
    return Column(f"{metric}.{key}", OTHER, title.replace("_", " "), f"`{key}` of results/{metric}.json.", "", "", 4)
