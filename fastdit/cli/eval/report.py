"""fastdit eval report: one table of speed and quality for several runs, as a page, Markdown and JSON."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from fastdit.cli import options as o


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUNS...", help="run folders, or folders that hold runs")],
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="FOLDER", help="gets report.html, .md, .json and the plots")
    ],
    dense: Annotated[
        str | None,
        typer.Option("--dense", metavar="NAME_OR_FOLDER", help="the reference run (default: the one without methods)"),
    ] = None,
    no_dense: Annotated[bool, typer.Option("--no-dense", help="a table without speed-up and fidelity")] = False,
    ref: Annotated[
        Path | None,
        typer.Option("--ref", help="reference for FID and KID: folder, run, npz, statistics, or fastdit/..."),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            "--features", help="inception (the default), inception-tf, efficientnet-lite0 (works offline) or clip"
        ),
    ] = None,
    inception: Annotated[Path | None, typer.Option("--inception", help="Inception's weights file")] = None,
    resize: Annotated[
        str | None, typer.Option("--resize", help="of inception: clean (the default) or legacy_tensorflow")
    ] = None,
    clip: Annotated[str | None, typer.Option("--clip", metavar="ID_OR_PATH", help="CLIP checkpoint")] = None,
    lpips: Annotated[
        str | None, typer.Option("--lpips", metavar="alex|vgg", help="also LPIPS, with this trunk")
    ] = None,
    lpips_weights: Annotated[
        Path | None,
        typer.Option("--lpips-weights", help="the trunk's file, or its folder (default: torch hub's cache)"),
    ] = None,
    strips: Annotated[int, typer.Option("--strips", min=0, max=50, help="samples shown of every run")] = 6,
    title: Annotated[str | None, typer.Option("--title", help="heading of the page")] = None,
    workers: Annotated[int, typer.Option("--workers", min=0, help="processes that read pictures for --ref")] = 2,
    device: o.DeviceOption = "auto",
) -> None:
    """Speed, MACs and quality of several runs in one table with 95 % intervals, plots and sample strips.

    Seconds, speed-up and MACs come from the manifests; fidelity is to the dense run; with --ref there are FID and KID.
    What eval clip, eval fid and eval vbench kept in the runs' folders is shown too. The page needs no other file.
    """
    _check(out, ref, features, {"--inception": inception, "--resize": resize, "--clip": clip}, lpips, lpips_weights)

    from fastdit.evaluation import perceptual
    from fastdit.evaluation.report.files import write_report
    from fastdit.evaluation.report.rows import gather

    target = o.device_and_dtype(device, "float32")[0]
    distance = perceptual.lpips(lpips, lpips_weights, target) if lpips else None
    with _progress() as progress:
        reference = None
        if ref is not None:
            options = {"inception": inception, "resize": resize, "clip": clip}
            reference = _reference(ref, features or "inception", options, target, workers, progress)
        gathered = gather(
            runs,
            dense=dense,
            no_dense=no_dense,
            reference=reference,
            perceptual=distance,
            describe=describe,
            title=title,
            command=command_line(),
            progress=progress,
        )
        progress("writing", 0, 0)
        written = write_report(gathered, out, strips)
    show(gathered.report)
    for path in written:
        typer.echo(str(path))


def _check(
    out: Path, ref: Path | None, features: str | None, network: dict[str, Any], lpips: str | None, weights: Path | None
) -> None:
    """Options that need another one, packages, and the output folder, before any work."""
    from fastdit.evaluation.extras import require

    if weights and not lpips:
        raise ValueError("--lpips-weights needs --lpips alex or --lpips vgg, whose trunk the file holds")
    for option, value in {"--features": features, **network}.items():
        if value is not None and ref is None:
            raise ValueError(f"{option} needs --ref, the pictures or statistics that distances are taken to")
    if out.exists() and not out.is_dir():
        raise ValueError(f"-o {out} is a file: give a folder for the page, the tables and the plots")
    if not os.access(next(folder for folder in (out, *out.absolute().parents) if folder.exists()), os.W_OK):
        raise ValueError(f"-o {out} is not writable")
    for module in ("jinja2", "matplotlib"):
        require(module, "a report")


def _reference(
    path: Path,
    features: str,
    options: dict[str, Any],
    device: str,
    workers: int,
    progress: Callable[[str, int, int], None],
) -> Any:
    from functools import partial

    from fastdit.evaluation.distribution import open_reference
    from fastdit.evaluation.features.base import open_extractor
    from fastdit.evaluation.report.rows import Reference
    from fastdit.evaluation.report.runs import published

    extractor = open_extractor(features, **options)
    told = partial(progress, "features of the reference")
    statistics, warnings = open_reference(
        o.reference_from(path), extractor, device=device, workers=workers, frames="middle", progress=told
    )
    return Reference(statistics, extractor, device, workers, tuple(warnings), published(path.as_posix()))


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """Gives `progress(what, done, total)`: one bar on stderr that says what is being done, from the first call on."""
    from rich.console import Console
    from rich.progress import Progress

    bar = Progress(console=Console(stderr=True), transient=True)
    task = bar.add_task("", total=None)

    def progress(what: str, done: int, total: int) -> None:
        if not bar.live.is_started:  # bad input is found before, and leaves one line alone
            bar.start()
        bar.update(task, description=what, completed=done, total=total or None)

    try:
        yield progress
    finally:
        if bar.live.is_started:
            bar.stop()


def describe(methods: Sequence[dict[str, Any]]) -> str:
    """Methods as one would type them after -m: the first option, on which most depends, and those not at default."""
    import dataclasses

    from fastdit.evaluation.report.runs import describe_methods
    from fastdit.methods.base import Method

    texts = []
    for data in methods:
        try:
            method = Method.from_dict(data)
        except ValueError:  # a method of another version, or a user's own
            texts.append(describe_methods([data]))
            continue
        told = [
            f"{field.name}={_text(getattr(method, field.name))}"
            for number, field in enumerate(dataclasses.fields(method))
            if number == 0 or getattr(method, field.name) != field.default
        ]
        options = ",".join(told)
        texts.append(f"{method.name}{':' if options else ''}{options}")
    return " + ".join(texts) or "dense"


def _text(value: Any) -> str:
    """An option's value as -m reads it."""
    if isinstance(value, bool):
        return str(value).lower()
    return ":".join(f"{part:g}" for part in value) if isinstance(value, tuple) else str(value)


def command_line() -> str:
    """This command as it may be published: of an absolute path only its last part."""
    import shlex
    import sys

    def short(word: str) -> str:
        option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        return f"{option}{equals}{Path(value).name if Path(value).is_absolute() else value}"

    return shlex.join(["fastdit", *map(short, sys.argv[1:])])


def show(report: Any) -> None:
    """The table, then the warnings."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(soft_wrap=True)
    each = max(1, (console.width - 30) // 18)  # runs side by side, so that no figure is cut
    for start in range(0, len(report.rows), each):
        rows = report.rows[start : start + each]
        table = Table("", *(escape(row.name) for row in rows), title=escape(f"{report.title}, {report.n_text}"))
        for column in report.columns:
            cells = ["\n".join(filter(None, (*row.text(column), row.over(column)))) for row in rows]
            table.add_row(escape(column.heading), *cells)
        console.print(table)
    for text in report.footnotes:
        console.print(escape(text), highlight=False)
    for text in report.warnings:
        console.print("[yellow]warning:[/]", escape(text), highlight=False)
