"""Strips: the same samples of every run side by side, chosen by a rule that is stated, not by hand."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from fastdit.evaluation.report.runs import Run

RULE = (
    "By the mean PSNR of a sample over the accelerated runs: the lowest and the median; then the first samples of the "
    "list. Nothing was picked by eye."
)
RULE_WITHOUT_DENSE = "The first samples of the list. Nothing was picked by eye."
FRAMES = 4  # of a video, evenly spaced from the first to the last
BUDGET = 1_700_000  # bytes of all pictures together, so that the page stays below 2 MB
SMALL = 128 * 128  # pixels: up to this a picture is kept lossless
WIDTHS = (256, 192, 128, 96, 64, 48)  # pixels of a picture, tried in turn until all fit


@dataclass(frozen=True)
class Cell:
    """One run's sample: a data URL of each frame that is shown, their size in pixels, and its PSNR if there is one."""

    run: str
    frames: Sequence[str]
    width: int
    height: int
    psnr: float | None


@dataclass(frozen=True)
class Strip:
    """One sample of every run, and why it is shown."""

    index: int
    prompt: str
    seed: int
    why: str
    cells: Sequence[Cell]


def choose(indices: Sequence[int], psnr: Mapping[str, Mapping[int, float]], count: int) -> list[tuple[int, str]]:
    """Indices to show and why: lowest and median of the mean over runs of `psnr` (by run and index), then the first."""
    known = [index for index in indices if psnr and all(index in run for run in psnr.values())]
    means = {index: float(np.mean([run[index] for run in psnr.values()])) for index in known}
    chosen: dict[int, str] = {}
    if means:
        ordered = sorted(means, key=lambda index: (means[index], index))
        chosen[ordered[0]] = "lowest PSNR"
        chosen.setdefault(ordered[(len(ordered) - 1) // 2], "median PSNR")
    for index in indices:
        chosen.setdefault(index, f"sample {index}")
    return list(chosen.items())[:count]


def strips(runs: Sequence[Run], psnr: Mapping[str, Mapping[int, float]], count: int) -> tuple[list[Strip], list[str]]:
    """The chosen samples of all runs as embedded pictures, and counted warnings of those that cannot be read."""
    names = {run.name: {r.index: name for name, r in run.samples.records.items()} for run in runs}
    records = {record.index: record for record in runs[0].samples.records.values()}
    shown: list[tuple[int, str, list[np.ndarray]]] = []
    failed: list[str] = []
    for index, why in choose(list(records), psnr, count):
        try:
            shown.append((index, why, [run.samples.read(names[run.name][index]) for run in runs]))
        except (ValueError, OSError) as error:
            failed.append(str(error))
    warnings = [f"{len(failed)} strips are left out, the first: {failed[0]}"] if failed else []
    for width in WIDTHS:
        drawn = [[_frames(sample, width) for sample in samples] for _, _, samples in shown]
        if sum(len(url) for row in drawn for urls, _ in row for url in urls) <= BUDGET:
            break
    found = []
    for (index, why, _), row in zip(shown, drawn, strict=True):
        cells = [
            Cell(run.name, urls, *size, psnr.get(run.name, {}).get(index))
            for run, (urls, size) in zip(runs, row, strict=True)
        ]
        found.append(Strip(index, records[index].prompt, records[index].seed, why, cells))
    return found, warnings


def _frames(sample: np.ndarray, width: int) -> tuple[list[str], tuple[int, int]]:
    """Data URLs of a picture, or of four frames of a video (T, H, W, 3), at most `width` wide; their size."""
    picks = sorted({round(at) for at in np.linspace(0, len(sample) - 1, FRAMES).tolist()})
    images = [_smaller(sample[pick], width) for pick in picks]
    return [_url(image) for image in images], images[0].size


def _smaller(frame: np.ndarray, width: int) -> Image.Image:
    image = Image.fromarray(frame)
    if image.width <= width:
        return image
    height = max(1, round(image.height * width / image.width))
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _url(image: Image.Image) -> str:
    """A small picture as it is, a larger one as JPEG."""
    stream, kind = io.BytesIO(), "png" if image.width * image.height <= SMALL else "jpeg"
    image.save(stream, kind, quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
