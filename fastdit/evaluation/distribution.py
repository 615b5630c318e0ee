"""One set of samples against a reference: Frechet and kernel distance, precision and recall of their features."""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastdit.evaluation.distances import Statistics, frechet_distance, kid, kid_interval
from fastdit.evaluation.features.base import Extractor
from fastdit.evaluation.features.extract import Features, kept_features
from fastdit.evaluation.intervals import Interval
from fastdit.evaluation.neighbours import precision_recall
from fastdit.evaluation.samples import Samples

NEIGHBOURS = 3


@dataclass(frozen=True)
class Measured:
    """Figures by key (fd, kid, kid_subsets, precision, recall), what the distances are called, and n of both sets."""

    values: dict[str, Interval]
    names: dict[str, str]
    n: int
    n_reference: int | None
    warnings: list[str] = field(default_factory=list)


def open_reference(path: Path, extractor: Extractor, **options: Any) -> tuple[Statistics, list[str]]:
    """The reference's statistics, with its features where it holds pictures, and what must be said about it.

    `path` is what Samples opens, or an npz of statistics: ours, clean-fid's, or ADM's, whose mean and covariance are of
    the whole data set and whose pictures (arr_0) serve the kernel distance, precision and recall, as ADM's evaluator
    has it.
    """
    held = arrays(path)
    if not {"mu", "sigma"} <= held:
        found = kept_features(Samples.open(path), extractor, **options)
        return Statistics.of(found.values, found.extractor), found.warnings
    if "arr_0" in held and not extractor.is_inception:
        found = kept_features(Samples.open(path), extractor, **options)
        warning = f"{path} holds Inception's statistics, which {extractor.name} cannot use: only its pictures count"
        return Statistics.of(found.values, found.extractor), [*found.warnings, warning]
    statistics = Statistics.load(path)
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
        found = kept_features(Samples.open(path), extractor, **options)
        return replace(statistics, features=found.values), [*warnings, *found.warnings]
    return statistics, warnings


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
    groups: Sequence[str] | None = None,
    kid_subset_size: int | None = None,
) -> Measured:
    """All figures that the reference allows; without its features there is the Frechet distance only."""
    own = Statistics.of(found.values, found.extractor)
    n = len(found.values)
    names = {"fd": extractor.label("FD"), "kid": extractor.label("KID")}
    values = {"fd": Interval(frechet_distance(own, reference), None, None, n)}
    warnings = []
    small = [str(size) for size in (n, reference.n) if size is not None and size < extractor.dimension]
    if small:
        warnings.append(f"{names['fd']} of {' and '.join(small)} samples in {extractor.dimension} dimensions is far "
                        f"too high, more so the fewer there are: read {names['kid']}, which has no such bias"
                        )  # fmt: skip
    if reference.features is None:
        warnings.append(f"the reference holds statistics only: {names['kid']}, precision and recall need its pictures, "
                        "or statistics that fastdit saved with features")  # fmt: skip
        return Measured(values, names, n, reference.n, warnings)
    values["kid"] = kid_interval({"": found.values}, reference.features, groups).interval("")
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
    return Measured(values, names, n, reference.n or len(reference.features), warnings)
