"""One set of samples against a reference: Frechet and kernel distance, precision and recall of their features."""

import zipfile
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastdit.evaluation.features.base import Extractor
from fastdit.evaluation.features.extract import Features, kept_features
from fastdit.evaluation.frechet import Statistics, frechet_distance
from fastdit.evaluation.intervals import Interval
from fastdit.evaluation.kernel import kid, kid_interval
from fastdit.evaluation.neighbours import precision_recall
from fastdit.evaluation.samples import Samples

NEIGHBOURS = 3
FEW = 10_000  # samples below which no paper's FID should be compared with


@dataclass(frozen=True)
class Measured:
    """Figures by key (fd, kid, kid_across, kid_subsets, precision, recall), what the distances are called, n of both.

    `n_reference` is the Frechet distance's, None where the statistics do not say it; `pictures` the kernel distance's.
    """

    values: dict[str, Interval]
    names: dict[str, str]
    n: int
    n_reference: int | None
    warnings: list[str] = field(default_factory=list)
    videos: int | None = None  # whose frames the n samples are
    pictures: int | None = None

    def title(self) -> str:
        """What was compared, in words."""
        own = f"{self.n} samples" if self.videos is None else f"{self.n} frames of {self.videos} videos"
        if self.n_reference is not None and self.pictures in (None, self.n_reference):
            return f"{own}, {self.n_reference} of the reference"
        known = "unknown n" if self.n_reference is None else f"n = {self.n_reference}"
        more = f"; {self.pictures} pictures for KID" if self.pictures else ""
        return f"{own}, the reference: statistics of {known}{more}"


def open_reference(path: Path, extractor: Extractor, **options: Any) -> tuple[Statistics, list[str]]:
    """The reference's statistics, with its features where it holds pictures, and what must be said about it.

    `path` is what Samples opens, or an npz of statistics: ours, clean-fid's, or ADM's, whose mean and covariance are of
    the whole data set and whose pictures (arr_0) serve the kernel distance, precision and recall, as ADM's evaluator
    has it.
    """
    held = arrays(path)
    if not {"mu", "sigma"} <= held:
        opened = open_pictures(path)
        found = kept_features(opened, extractor, **options)
        return Statistics.of(found.values, found.extractor, groups_of(opened, found)), found.warnings
    if "arr_0" in held and not extractor.is_inception:
        found = kept_features(open_pictures(path), extractor, **options)
        warning = f"{path} holds Inception's statistics, which {extractor.name} cannot use: only its pictures count"
        return Statistics.of(found.values, found.extractor), [*found.warnings, warning]
    try:
        statistics = Statistics.load(path)
    except ValueError as error:
        raise ValueError(f"--ref {error}") from error
    try:
        statistics.check(extractor.identity, extractor.dimension)
    except ValueError as error:
        raise ValueError(f"--ref {path}: {error}") from error
    warnings = []
    if statistics.assumed:
        warnings.append(f"{path} does not say whose features it holds: taken for Inception's")
        if "mu_s" in held and extractor.identity == "inception":
            warnings.append(f"{path} is ADM's, made with TensorFlow's resizing: --features inception-tf, or --resize "
                            "legacy_tensorflow, resizes the samples alike")  # fmt: skip
    if "arr_0" in held:
        found = kept_features(open_pictures(path), extractor, **options)
        return replace(statistics, features=found.values), [*warnings, *found.warnings]
    return statistics, warnings


def open_pictures(path: Path) -> Samples:
    """The reference's samples; ValueError that names the option."""
    try:
        return Samples.open(path)
    except ValueError as error:
        raise ValueError(f"--ref {error}") from error


def groups_of(samples: Samples, found: Features) -> list[Hashable]:
    """What each row belongs to: its prompt and class where there is a manifest, else its file, so its video."""
    records = samples.records
    return [(records[name].prompt, records[name].label) if name in records else name for name in found.names]


def bias_warnings(extractor: Extractor, n: int, n_reference: int | None) -> list[str]:
    """What must be said of a Frechet distance of so few samples."""
    name, kernel = extractor.label("FD"), extractor.label("KID")
    sizes = [size for size in (n, n_reference) if size is not None]
    mend = f"it is biased at every n: compare equal n only, or read {kernel}, which has no such bias"
    if small := [str(size) for size in sizes if size < extractor.dimension]:
        return [f"{name} of {' and '.join(small)} samples in {extractor.dimension} dimensions is far too high; {mend}"]
    if extractor.is_inception and n < FEW:
        return [f"{name} of {n} samples is no paper's, which take {FEW} to 50000; {mend}"]
    return []


def arrays(path: Path) -> set[str]:
    """Names of an npz's arrays; nothing for anything else."""
    if path.suffix.lower() != ".npz" or not path.is_file():
        return set()
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"--ref {path} is no npz that can be read: {error}") from error


def measure(
    found: Features,
    reference: Statistics,
    extractor: Extractor,
    groups: Sequence[Hashable] | None = None,
    kid_subset_size: int | None = None,
) -> Measured:
    """All figures that the reference allows; without its features there is the Frechet distance only.

    `groups` (n,) names each row's prompt; without it each sample is its own.
    """
    own = Statistics.of(found.values, found.extractor)
    n, files = len(found.values), len(set(found.names))
    groups = found.names if groups is None else groups
    names = {"fd": extractor.label("FD"), "kid": extractor.label("KID")}
    values = {"fd": Interval(frechet_distance(own, reference), None, None, n)}
    warnings = bias_warnings(extractor, n, reference.n)
    videos = files if n > files else None
    if videos is not None:
        warnings.append(f"{n} frames of {videos} videos are not {n} independent samples: {names['fd']}, precision and "
                        "recall take them for that; frames of one video are drawn together in intervals")  # fmt: skip
    if reference.features is None:
        warnings.append(f"the reference holds statistics only: {names['kid']}, precision and recall need its pictures, "
                        "or statistics that fastdit saved with features")  # fmt: skip
        return Measured(values, names, n, reference.n, warnings, videos)
    drawn = kid_interval({"": found.values}, reference.features, groups, reference_groups=reference.groups)
    values["kid"] = drawn.interval("")
    kind = "video" if videos is not None and len(set(groups)) == videos else "prompt"
    if len(set(groups)) < 2:
        warnings.append(f"all samples are of one {kind}: {names['kid']} has no interval, and all its pairs are within "
                        f"that {kind}, which is too high against a reference of many")  # fmt: skip
    if drawn.across is not None:
        values["kid_across"] = drawn.across.interval("")
        names["kid_across"] = f"{names['kid']}, across {kind}s"
        warnings.append(f"{names['kid']} counts pairs within a {kind} too, as published ones do: right where the "
                        f"{kind}s are all there are (ImageNet's classes), too high where they are a sample of many; "
                        f"read '{names['kid_across']}' then, which leaves them out")  # fmt: skip
    if kid_subset_size is not None:
        value = kid(found.values, reference.features, kid_subset_size)
        values["kid_subsets"] = Interval(value, None, None, n)
        names["kid_subsets"] = f"{names['kid']}, 100 subsets of {min(kid_subset_size, n, len(reference.features))}"
    if min(n, len(reference.features)) > NEIGHBOURS:
        precision, recall = precision_recall(found.values, reference.features, NEIGHBOURS)
        values["precision"] = Interval(precision, None, None, n)
        values["recall"] = Interval(recall, None, None, n)
    else:
        warnings.append(f"precision and recall need more than {NEIGHBOURS} samples of each")
    return Measured(values, names, n, reference.n, warnings, videos, len(reference.features))
