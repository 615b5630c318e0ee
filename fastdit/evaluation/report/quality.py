"""Quality of the runs: fidelity to the dense one, and distances to a reference."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastdit.core.files import read_json
from fastdit.evaluation.comparison import compare
from fastdit.evaluation.frechet import Statistics, frechet_distance
from fastdit.evaluation.intervals import Interval
from fastdit.evaluation.kernel import kid_interval
from fastdit.evaluation.perceptual import Perceptual
from fastdit.evaluation.report import columns as c
from fastdit.evaluation.report.columns import Column
from fastdit.evaluation.report.runs import Run, without_paths

Progress = Callable[[int, int], None]
SAME = 1e-6  # a Frechet distance up to this is that of a set to itself


@dataclass
class Figures:
    """Figures by run and column key, their columns in order, how they were measured, and counted warnings."""

    columns: list[Column] = field(default_factory=list)
    values: dict[str, dict[str, Interval]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    partial: dict[str, list[str]] = field(default_factory=dict)  # by run, the keys of figures with samples missing

    def put(self, run: str, column: Column, value: Interval) -> None:
        """Enter a figure, and its column where it is new."""
        self.values.setdefault(run, {})[column.key] = value
        if column.key not in [known.key for known in self.columns]:
            self.columns.append(column)


@dataclass(frozen=True)
class Fidelity:
    """Figures of a run against the dense one, and the PSNR of each sample by its index."""

    values: dict[str, Interval]
    psnr: dict[int, float]
    warnings: list[str] = field(default_factory=list)


def fidelity(dense: Run, run: Run, perceptual: Perceptual | None, progress: Progress) -> Fidelity:
    """What `fastdit eval fidelity` kept of just these samples, else the comparison itself."""
    data = kept_fidelity(dense, run, perceptual)
    if data is None:
        data = compare(dense.samples, run.samples, perceptual, progress).to_dict()
    indices = {name: record.index for name, record in dense.samples.records.items()}
    return Fidelity(
        {key: Interval(**value) for key, value in data["values"].items()},
        {indices[sample["name"]]: sample["psnr"] for sample in data["samples"]},
        [without_paths(text, (dense, run)) for text in data["warnings"]],
    )


def kept_fidelity(dense: Run, run: Run, perceptual: Perceptual | None) -> dict[str, Any] | None:
    """RUN/results/fidelity.json, if it is of these two settings, of these samples, and has the distance asked for."""
    path = run.samples.root / "results" / "fidelity.json"
    if not path.is_file():
        return None
    try:
        data = read_json(path)
        same = (data["settings"], data["against"]) == (run.hash, dense.hash)
        whole = sorted(sample["name"] for sample in data["samples"]) == sorted(dense.samples.names)
        asked = perceptual is None or perceptual.key in data["values"]
        newest = max((one.samples.root / name).stat().st_mtime for one in (dense, run) for name in one.samples.names)
        return data if same and whole and asked and path.stat().st_mtime >= newest else None
    except (ValueError, KeyError, TypeError, OSError):  # of another version, or damaged: compared anew
        return None


def fidelity_columns(found: Sequence[Fidelity]) -> list[Column]:
    """PSNR, SSIM, LPIPS, sharpness and motion, as far as some run has them."""
    keys = dict.fromkeys(key for one in found for key in one.values)
    perceptual = [c.lpips_column(key) for key in keys if key.startswith(("lpips", "random"))]
    return [column for column in (c.PSNR, c.SSIM, *perceptual, c.SHARPNESS, c.MOTION) if column.key in keys]


@dataclass(frozen=True)
class Rows:
    """Features of one run: rows (n, D) and the index of the sample that each is of."""

    values: np.ndarray
    indices: Sequence[int]


def distances(
    rows: Mapping[str, Rows],
    groups: Mapping[int, Hashable],
    reference: Statistics,
    names: tuple[str, str],
    dense: str | None,
    source: str = "",
) -> Figures:
    """Frechet and kernel distance of every run to one reference, over the samples that all have features of.

    `groups` gives each index's prompt and `source` names the reference. `names` are those of the two distances with
    these features: FID and KID are only Inception's. Statistics without their features give no kernel distance.
    """
    shared = sorted(set.intersection(*(set(one.indices) for one in rows.values())) & set(groups))
    found = Figures()
    if len(shared) < 2:
        raise ValueError(f"{names[0]} needs at least 2 samples that all runs have, there are {len(shared)}")
    if left := len(groups) - len(shared):
        found.warnings.append(f"{names[0]} leaves out {left} of {len(groups)} samples that cannot be read")
    features = {}
    for name, one in rows.items():
        place = {index: row for row, index in enumerate(one.indices)}
        features[name] = one.values[[place[index] for index in shared]]
    kernel, change, frechet = c.distance_columns(*names)
    told = "a reference of unknown size" if reference.n is None else f"{reference.n} reference samples"
    told += f" ({source})" if source else ""
    if reference.features is None:
        found.notes.append(f"There is no {names[1]}: the reference holds statistics only, without features.")
    else:
        drawn = kid_interval(features, reference.features, [groups[index] for index in shared])
        for name in features:
            found.put(name, kernel, drawn.interval(name))
            if dense is not None and name != dense:
                found.put(name, change, drawn.difference(name, dense))
        found.notes.append(
            f"{names[1]} uses the kernel (a\N{DOT OPERATOR}b / D + 1)\N{SUPERSCRIPT THREE} over all pairs of "
            f"{len(shared)} samples and {told}; being unbiased, it may fall below 0. Its interval draws prompts anew "
            "and holds the reference fixed. All runs share the draws, so the difference to dense has an interval of "
            "its own, mostly a narrower one: there is a change where it excludes 0."
        )
    for name, values in features.items():
        distance = frechet_distance(Statistics.of(values, reference.extractor), reference)
        found.put(name, frechet, Interval(distance, None, None, len(shared)))
        if distance < SAME:
            found.warnings.append(
                f"{name} is the reference itself, as it seems: its {names[1]} lies below 0, as no sample is paired "
                "with itself within a set"
            )
    found.notes.append(
        f"{names[0]} is to {told}. It has no interval, and with few samples it is far too high, by about the same for "
        "runs of one n: compare it within this table only."
    )
    return found
