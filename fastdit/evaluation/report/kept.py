"""What other commands left in RUN/results: VBench, CLIP score, distances; what is of other settings does not count."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from fastdit.core.files import read_json
from fastdit.evaluation.intervals import Interval
from fastdit.evaluation.report import columns as c
from fastdit.evaluation.report.quality import Figures
from fastdit.evaluation.report.runs import Run, without_paths
from fastdit.evaluation.vbench import aggregate

Known = list[tuple[Run, dict[str, Any], dict[str, Interval]]]  # run, the JSON, its figures


def kept_results(runs: Sequence[Run], with_distances: bool = True) -> Figures:
    """Figures of all results/*.json but fidelity's; of distances only where the report takes none itself."""
    found = Figures()
    for name in sorted({path.name for run in runs for path in (run.samples.root / "results").glob("*.json")}):
        metric = name.removesuffix(".json")
        if metric == "fidelity" or (metric.startswith("distances.") and not with_distances):
            continue
        known = [(run, *one) for run in runs if (one := _read(found, run, name)) is not None]
        put = _METRICS.get(metric.split(".")[0], _put_other)
        if known and _agree(found, metric, known):
            put(found, metric, known)
            for run, data, _ in known:
                found.warnings += [f"{run.name}, {metric}: {without_paths(t, [run])}" for t in data.get("warnings", [])]
    return found


def _read(found: Figures, run: Run, name: str) -> tuple[dict[str, Any], dict[str, Interval]] | None:
    """One result and its figures; None with a warning if it is none, or of other settings."""
    path = run.samples.root / "results" / name
    if not path.is_file():
        return None
    try:
        data = read_json(path)
        figures = {str(key): Interval(**value) for key, value in data["values"].items()}
        settings, n = data["settings"], data["n"]
        if not all(math.isfinite(figure.value) for figure in figures.values()):
            raise ValueError("a figure is not finite")
    except (ValueError, KeyError, TypeError, AttributeError):
        found.warnings.append(f"{run.name}: results/{name} is no result of a fastdit command and is left out")
        return None
    if settings != run.hash:
        found.warnings.append(f"{run.name}: results/{name} is of other settings ({settings}) and is left out")
        return None
    if n != len(run.samples.names):
        found.warnings.append(f"{run.name}: results/{name} is of {n} samples, not of these {len(run.samples.names)}")
    return data, figures


def _agree(found: Figures, metric: str, known: Known) -> bool:
    """Whether the runs were measured alike: with one checkpoint, against one reference, distances over one n."""
    told = {
        what: [data.get(what) for _, data, _ in known]
        for what in ("model", "features", "against", "n_reference", "vbench")
    }
    if metric.startswith("distances."):
        # results of earlier versions do not tell these two, but do tell n
        told |= {what: [data[what] for _, data, _ in known if what in data] for what in ("num", "frames")}
        # a Frechet distance falls with n, by more than what methods change
        told["n"] = [data["n"] for _, data, _ in known]
        for title in dict.fromkeys(title for *_, figures in known for title in figures):
            told[f"n of {title}"] = [figures[title].n for *_, figures in known if title in figures]
    for what, values in told.items():
        if len(texts := {str(value) for value in values}) > 1:
            shown = without_paths(", ".join(sorted(texts)))
            found.warnings.append(f"{metric} is left out, as {what} is not the same for all runs: {shown}")
            return False
    return True


def _put_vbench(found: Figures, metric: str, known: Known) -> None:
    for run, data, figures in known:
        for key, value in figures.items():
            found.put(run.name, c.vbench_column(key, data.get("engines", {}).get(key, "")), value)
    for run, _, _ in known:
        scores = aggregate.load(run.samples.root / "results" / f"{metric}.json")
        for name in aggregate.SUMS:
            if not scores.missing(name):
                found.put(run.name, c.vbench_column(name), scores.interval(name))
        partial = [f"vbench.{name}" for name in (*scores.values, *aggregate.SUMS) if scores.is_partial(name)]
        found.partial[run.name] = [key for key in partial if key in found.values[run.name]]


def _put_clip(found: Figures, metric: str, known: Known) -> None:
    for run, data, figures in known:
        for key, value in figures.items():
            found.put(run.name, c.clip_column(metric, key, str(data.get("model", ""))), value)


def _put_distances(found: Figures, metric: str, known: Known) -> None:
    """FID and KID under the names that `fastdit eval fid` gave them, without the difference to dense."""
    taken = {column.key for column in found.columns}
    for run, data, figures in known:
        for title, value in figures.items():
            kind = "kid" if title.startswith("KID") else "fd" if title.startswith(("FID", "FD")) else title
            plain = "," not in title and kind not in taken  # the first features' own distances are the plotted ones
            key = kind if plain else f"{metric}.{title}"
            engine = "" if data.get("engine", "fastdit") == "fastdit" else f" by {data['engine']}"
            found.put(run.name, c.kept_distance_column(key, kind, title + engine), value)
    one = known[0][1]
    found.notes.append(
        f"Distances of {metric.removeprefix('distances.')} features were kept by `fastdit eval fid`; they are to "
        f"{one.get('n_reference') or 'an unknown number of'} reference samples. Kernel intervals draw prompts anew and "
        "hold the reference fixed; with --ref the report also has intervals of the difference to dense."
    )


def _put_other(found: Figures, metric: str, known: Known) -> None:
    for run, _, figures in known:
        for key, value in figures.items():
            found.put(run.name, c.other_column(metric, key), value)


_METRICS: dict[str, Callable[[Figures, str, Known], None]] = {
    "vbench": _put_vbench,
    "clip": _put_clip,
    "distances": _put_distances,
}
