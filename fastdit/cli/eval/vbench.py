"""fastdit eval vbench: prompts, videos, scores and the total of the VBench benchmark."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fastdit.cli import options as o
from fastdit.cli.eval.generate import OutOption, RunOption, ShardOption

app = typer.Typer(
    help="VBench: 16 dimensions of video quality, by the real vbench in an environment of its own (docs/vbench.md).",
    no_args_is_help=True,
)

DimsOption = Annotated[
    str | None, typer.Option("--dims", metavar="NAME,...", help="dimensions, or quality, semantic, all (default: all)")
]
PromptsOption = Annotated[
    Path | None,
    typer.Option("--prompts", help="VBench_full_info.json (default: $VBENCH_FULL_INFO_JSON, or the one of vbench)"),
]
PythonOption = Annotated[
    str | None, typer.Option("--python", help="the interpreter (or venv) that has vbench; its prompts count too")
]
ExtendedOption = Annotated[
    Path | None,
    typer.Option("--extended", help="longer texts to generate from, one a line in the suite's order; names stay short"),
]

MARK, NOT_WHOLE = "\N{DOUBLE DAGGER}", "videos that VBench wants are missing or damaged"


@app.command()
def prompts(
    dims: DimsOption = None,
    source: PromptsOption = None,
    python: PythonOption = None,
    extended: ExtendedOption = None,
    names: Annotated[bool, typer.Option("--names", help="file names of the videos instead of prompts")] = False,
) -> None:
    """Show what each dimension needs; with --dims its prompts, one a line."""
    from rich.console import Console
    from rich.table import Table

    from fastdit.evaluation.vbench.dimensions import DIMENSIONS
    from fastdit.evaluation.vbench.items import count_of, items_of

    suite = _suite(source, python, extended)[0]
    chosen = _dimensions(dims, suite)
    items, warnings = items_of(suite, chosen)
    if names:
        typer.echo("\n".join(f"{item.name}.mp4" for item in items))
    elif dims:
        typer.echo("\n".join(prompt.text for prompt in suite.of(chosen)))
    else:
        table = Table("dimension", "prompts", "videos", "group", "weight", "loads")
        table.columns[0].no_wrap = True
        for name in chosen:
            row = DIMENSIONS[name]
            counts = (str(len(suite.of([name]))), str(count_of(suite, name)))
            table.add_row(name, *counts, row.group, f"{row.weight:g}", row.loads)
        Console().print(table)
        typer.echo(f"{len(suite.of(chosen))} prompts, {len(items)} videos")
    _warn(warnings)


@app.command()
def generate(
    model: Annotated[str, typer.Option("--model", help="a video model: diffusers folder, Hub id, or a bundled one")],
    run: RunOption = None,
    method: o.MethodOption = None,
    recipe: o.RecipeOption = None,
    dims: DimsOption = None,
    samples: Annotated[int, typer.Option("--samples", help="videos a prompt, seeds 0, 1, ...; VBench has 5")] = 5,
    flickering_samples: Annotated[
        int | None,
        typer.Option("--flickering-samples", help="videos a prompt for temporal_flickering (default: 5 x --samples)"),
    ] = None,
    source: PromptsOption = None,
    python: PythonOption = None,
    extended: ExtendedOption = None,
    steps: o.StepsOption = None,
    guidance_scale: o.GuidanceOption = None,
    height: o.HeightOption = None,
    width: o.WidthOption = None,
    num_frames: o.FramesOption = None,
    fps: Annotated[int, typer.Option("--fps", min=1, help="frames per second of the mp4")] = 16,
    negative_prompt: o.NegativeOption = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="videos at once")] = 1,
    dtype: o.DtypeOption = "auto",
    device: o.DeviceOption = "auto",
    shard: ShardOption = None,
    out: OutOption = Path("vbench-run"),
) -> None:
    """Make the videos, named as VBench looks for them: OUT/videos/PROMPT-INDEX.mp4, seed = index.

    Stopped at any moment, the same command goes on where it was; started on several processes, they share the work.
    """

    from fastdit.cli.eval.generate import generate_runs, runs_from
    from fastdit.evaluation.vbench.items import items_of
    from fastdit.evaluation.vbench.names import folds_case

    suite = _suite(source, python, extended)[0]
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
    items, warnings = items_of(suite, _dimensions(dims, suite), samples, flickering_samples, folds_case(there))
    _check_videos(model, num_frames)
    _warn(warnings)
    call = {
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "height": height,
        "width": width,
        "num_frames": num_frames,
        "negative_prompt": negative_prompt,
    }
    runs = runs_from(run, method, recipe, out)
    generate_runs(model, runs, items, call=call, batch=batch, fps=fps, dtype=dtype, device=device, shard=shard)


@app.command()
def score(
    videos: Annotated[Path, typer.Option("--videos", help="a run of `eval vbench generate`, or its videos")],
    dims: DimsOption = None,
    python: PythonOption = None,
    source: PromptsOption = None,
    static: Annotated[
        Path | None, typer.Option("--static", help="videos that VBench's static filter kept, for temporal_flickering")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="for vbench: auto, cuda, cuda:N, cpu")] = "auto",
    timeout: Annotated[
        float | None, typer.Option("--timeout", min=1, help="seconds after which a dimension is given up")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="score anew what has been scored already")] = False,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="folder of results (default: VIDEOS/results)")] = None,
) -> None:
    """Score videos: by vbench with --python, else natively what needs no weights.

    Exit code 1: not every dimension was scored, or videos that VBench wants are missing or damaged.
    """
    from fastdit.evaluation.vbench.scoring import Scoring

    suite, engine = _suite(source, python, None)
    scoring = Scoring(
        videos, suite, out or videos / "results", engine, static, device, timeout, again,
        tell=lambda text: typer.echo(text, err=True),
    )  # fmt: skip
    outcome = scoring.score(_dimensions(dims, suite))
    _print_scores(outcome)
    _warn(outcome.to_dict()["warnings"])
    typer.echo(str(scoring.out / "vbench.json"))
    if not outcome.complete or any(name in outcome.partial for name in _dimensions(dims, suite)):
        raise typer.Exit(1)


@app.command()
def aggregate(
    results: Annotated[
        list[Path],
        typer.Argument(metavar="RESULTS...", help="runs, or vbench.json, or VBench's own *_eval_results.json"),
    ],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="also write the figures as JSON")] = None,
) -> None:
    """Normalise and weight as VBench does; a figure for which videos are missing is marked.

    Exit code 1: no Total, as dimensions are missing.
    """
    from fastdit.core.files import write_json
    from fastdit.evaluation.vbench.aggregate import SUMS, load

    loaded = {str(path): load(path) for path in dict.fromkeys(results)}
    sums = {
        name: {what: scores.interval(what) for what in SUMS if not scores.missing(what)}
        for name, scores in loaded.items()
    }
    _print_sums(loaded, sums)
    figures = {
        name: {
            "scores": dict(scores.values),
            "normalised": {each: scores.normalised(each) for each in scores.values},
            "sums": {what: interval.to_dict() for what, interval in sums[name].items()},
            "missing": scores.missing(),
            "partial": dict(scores.partial),
        }
        for name, scores in loaded.items()
    }
    if out:
        write_json(out, figures)
    for name, scores in loaded.items():
        _warn([f"{name}: {text}" for text in scores.warnings])
        if missing := scores.missing():
            typer.echo(f"{name}: no Total, {len(missing)} of 16 dimensions are missing: {', '.join(missing)}", err=True)
    if any(scores.missing() for scores in loaded.values()):
        raise typer.Exit(1)


def _suite(source: Path | None, python: str | None, extended: Path | None) -> tuple[Any, Any]:
    """The prompt suite, and the interpreter's vbench if one is named."""
    from fastdit.evaluation.vbench.runner import Engine
    from fastdit.evaluation.vbench.suite import PromptSuite

    engine = Engine.of(python) if python else None
    return PromptSuite.find(source, engine.suite if engine else None, extended), engine


def _dimensions(dims: str | None, suite: Any) -> list[str]:
    from fastdit.evaluation.vbench.dimensions import parse

    chosen = parse(dims) if dims else suite.dimensions
    suite.of(chosen)
    return chosen


def _check_videos(model: str, num_frames: int | None) -> None:
    """ValueError, before any weights are loaded, for a model that makes pictures."""
    import inspect

    import diffusers

    from fastdit.pipelines.loading import locate

    if num_frames is not None and num_frames < 2:
        raise ValueError(f"--num-frames {num_frames}: VBench scores videos, of at least two frames")
    name = diffusers.DiffusionPipeline.load_config(locate(model)).get("_class_name")
    made_by = getattr(diffusers, str(name), None)
    if made_by and not {"num_frames", "video_length"} & set(inspect.signature(made_by.__call__).parameters):
        raise ValueError(f"--model {model}: {name} makes pictures, and VBench scores videos")


def _print_scores(outcome: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("dimension", "score (95 % interval)", "videos", "by")
    for name, score in outcome.ordered().items():
        mark = MARK if name in outcome.partial else ""
        table.add_row(name, score.interval.text(4) + mark, f"{score.n} of {score.wanted}", score.engine)
    if outcome.scores:
        Console().print(table)
    if outcome.partial:
        typer.echo(f"{MARK} {NOT_WHOLE}")
    for name, reason in outcome.failed.items():
        typer.echo(f"{name} failed: {reason}")
    reasons: dict[str, list[str]] = {}
    for name, reason in outcome.skipped.items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        typer.echo(f"skipped: {reason}: {', '.join(names)}")


def _print_sums(loaded: dict[str, Any], sums: dict[str, Any]) -> None:
    """Percent, as VBench's leaderboard prints them: a column a run."""
    from rich.console import Console
    from rich.table import Table

    from fastdit.evaluation.vbench.dimensions import DIMENSIONS

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.2f}"

    table = Table("dimension", "weight", *loaded, title="VBench, percent (in brackets normalised)")
    for name, row in DIMENSIONS.items():
        cells = [
            f"{percent(scores.values[name])} ({percent(scores.normalised(name))}){_mark(scores, name)}"
            if name in scores.values
            else "-"
            for scores in loaded.values()
        ]
        table.add_row(name, f"{row.weight:g}", *cells)
    table.add_section()
    for what, weight in (("quality", "4"), ("semantic", "1"), ("total", "")):
        shown = [
            _with_interval(sums[name][what]) + _mark(scores, what) if what in sums[name] else "-"
            for name, scores in loaded.items()
        ]
        table.add_row(what.capitalize(), weight, *shown)
    Console().print(table)
    for name, scores in loaded.items():
        if scores.partial:
            listed = ", ".join(f"{each} {count}" for each, count in scores.partial.items())
            typer.echo(f"{MARK} {NOT_WHOLE}; {name}: {listed}")


def _mark(scores: Any, name: str) -> str:
    return MARK if scores.is_partial(name) else ""


def _with_interval(interval: Any) -> str:
    if interval.low is None:
        return f"{100 * interval.value:.2f}"
    return f"{100 * interval.value:.2f} ({100 * interval.low:.2f} to {100 * interval.high:.2f})"


def _warn(texts: Sequence[str]) -> None:
    for text in texts:
        typer.echo(f"warning: {text}", err=True)
