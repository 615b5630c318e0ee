"""From run folders to a report: finds the runs, measures what is to be measured, and puts the figures into rows."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

from fastdit.evaluation.features.base import Extractor
from fastdit.evaluation.features.extract import kept_features
from fastdit.evaluation.frechet import Statistics
from fastdit.evaluation.intervals import Interval
from fastdit.evaluation.perceptual import Perceptual
from fastdit.evaluation.report import columns as c
from fastdit.evaluation.report import notes
from fastdit.evaluation.report.kept import kept_results
from fastdit.evaluation.report.quality import (
    Fidelity,
    Figures,
    Rows,
    distances,
    fidelity,
    fidelity_columns,
)
from fastdit.evaluation.report.runs import (
    Describe,
    Run,
    choose_dense,
    common,
    describe_methods,
    differences,
    environments,
    find_runs,
    published,
    shared_settings,
    without_paths,
)
from fastdit.evaluation.report.speed import Speed, speed
from fastdit.evaluation.report.table import Report, Row, same_n

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Reference:
    """What distances are taken to, the network whose features they are of, and where that runs."""

    statistics: Statistics
    extractor: Extractor
    device: str = "cpu"
    workers: int = 2
    warnings: tuple[str, ...] = ()
    source: str = ""  # what it is of: a name, not a path


@dataclass(frozen=True)
class Gathered:
    """A report, the runs behind it (cut to their common samples) and the PSNR of each sample, by run and index."""

    report: Report
    runs: list[Run]
    psnr: dict[str, dict[int, float]]


def gather(
    folders: Sequence[Path],
    *,
    dense: str | None = None,
    no_dense: bool = False,
    reference: Reference | None = None,
    perceptual: Perceptual | None = None,
    describe: Describe = describe_methods,
    title: str | None = None,
    command: str | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Gathered:
    """Measure the runs in these folders; `progress(what, done, total)` is called as it goes on.

    ValueError if there is no dense run to compare with, if prompts or seeds differ, or if the runs share no sample.
    """
    runs, base, warnings = _runs(folders, dense, no_dense)
    compared: dict[str, Fidelity] = {}
    for run in runs if base else []:
        if base and run is not base:
            compared[run.name] = fidelity(base, run, perceptual, partial(progress, f"{run.name} against {base.name}"))
    speeds = {run.name: speed(base.records if base and run is not base else None, run.records) for run in runs}
    measured = _distances(runs, base, reference, progress) if reference else Figures()
    kept = kept_results(runs, with_distances=reference is None)
    rows = [
        Row(
            name=run.name,
            method=describe(run.methods),
            settings=run.hash,
            dense=run is base,
            n=len(run.samples.names),
            values=_speed_values(run, base, speeds[run.name])
            | (compared[run.name].values if run.name in compared else {})
            | measured.values.get(run.name, {})
            | kept.values.get(run.name, {}),
            in_turns=speeds[run.name].in_turns,
            partial=kept.partial.get(run.name, []),
        )
        for run in runs
    ]
    for run in runs:
        own = [*speeds[run.name].warnings, *(compared[run.name].warnings if run.name in compared else [])]
        warnings += [f"{run.name}: {text}" for text in own]
    facts, differing = environments(runs)
    present = {key for row in rows for key in row.values}
    columns = [column for column in (c.SECONDS, c.SPEEDUP, c.MACS, c.MACS_RATIO) if column.key in present]
    columns += [*fidelity_columns(list(compared.values())), *measured.columns, *kept.columns]
    report = Report(
        title=title or f"{published(str(runs[0].settings.get('model', 'Runs')))}: speed and quality",
        columns=columns,
        rows=rows,
        n=rows[0].n,
        warnings=[*warnings, *differing, *measured.warnings, *kept.warnings],
        notes=notes.notes(runs, base, [*measured.notes, *kept.notes], same_n(rows, columns)),
        environment=facts,
        settings={run.name: published(run.settings) for run in runs},
        made=time.strftime("%Y-%m-%d"),
        fastdit=version("fastdit"),
        command=command,
        facts=shared_settings(runs),
    )
    return Gathered(report, runs, {name: one.psnr for name, one in compared.items()})


def _runs(folders: Sequence[Path], dense: str | None, no_dense: bool) -> tuple[list[Run], Run | None, list[str]]:
    """The runs cut to common samples, the dense one first and then by falling MACs; the dense one; warnings."""
    if dense is not None and no_dense:
        raise ValueError("give either --dense or --no-dense, not both")
    if dense is not None and Path(dense, "settings.json").is_file():
        folders = [Path(dense), *folders]  # the reference need not stand among the runs
    found = find_runs(folders)
    base = choose_dense(found, dense, no_dense)
    runs, warnings = common(sorted(found, key=lambda run: (run is not base, -(_macs(run, "executed") or 0))))
    if base is None:
        return runs, None, warnings
    for run in runs[1:]:
        more = differences(runs[0], run)
        warnings += [f"{run.name}: not only the methods differ from {base.name}, {text}" for text in more]
    return runs, runs[0], warnings


def _macs(run: Run, which: str) -> float | None:
    """Mean MACs a sample, "dense" or "executed"; None if they were not counted."""
    records = list(run.samples.records.values())
    total = sum(getattr(record, f"macs_{which}") for record in records)
    return total / len(records) if total else None


def _speed_values(run: Run, base: Run | None, timed: Speed) -> dict[str, Interval]:
    """Seconds, speed-up and MACs, as far as they are known; the dense run's ratios are 1."""
    n, executed = len(run.samples.names), _macs(run, "executed")
    # without a dense run there is still what each pipeline would have executed without its methods
    full = _macs(base, "executed") if base else _macs(run, "dense")
    values = {
        "seconds": timed.seconds,
        "speedup": Interval(1.0, None, None, n) if run is base and timed.seconds else timed.speedup,
        "macs": Interval(executed, None, None, n) if executed else None,
        "macs_ratio": Interval(full / executed, None, None, n) if full and executed else None,
    }
    return {key: value for key, value in values.items() if value is not None}


def _distances(runs: Sequence[Run], base: Run | None, reference: Reference, progress: Progress) -> Figures:
    """Features of every run (kept beside it) and their distances to the reference."""
    extractor = reference.extractor
    rows, said = {}, []
    for run in runs:
        found = kept_features(
            run.whole, extractor, device=reference.device, workers=reference.workers, frames="middle",
            progress=partial(progress, f"{extractor.title} features of {run.name}"),
        )  # fmt: skip
        said += [f"{run.name}: {without_paths(text, [run])}" for text in found.warnings]
        rows[run.name] = Rows(found.values, [run.whole.records[name].index for name in found.names])
    groups = {record.index: (record.prompt, record.label) for record in runs[0].samples.records.values()}
    names = extractor.label("FD"), extractor.label("KID")
    figures = distances(rows, groups, reference.statistics, names, base.name if base else None, reference.source)
    figures.warnings[:0] = [*(without_paths(text) for text in reference.warnings), *said]
    return figures
