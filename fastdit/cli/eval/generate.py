"""fastdit eval generate: samples of a model with and without methods, resumable, on one process or many."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from fastdit.cli import options as o

RunOption = Annotated[
    list[str] | None,
    typer.Option(
        "--run",
        metavar="[NAME=]dense|METHOD[+METHOD]|FILE.json",
        help="one of several runs that take turns batch by batch in this process; each gets the folder OUT/NAME",
    ),
]
OutOption = Annotated[Path, typer.Option("-o", "--out", help="the run's folder; an unfinished one is gone on with")]
ProtocolOption = Annotated[str | None, typer.Option("--protocol", help="imagenet-50k or coco-30k: N, batch, labels")]
NumOption = Annotated[
    int | None, typer.Option("--num", min=1, help="samples; prompts go round [default: one each]", show_default=False)
]
BatchOption = Annotated[
    int | None, typer.Option("--batch", min=1, help="samples at once [default: 8, videos 1]", show_default=False)
]
ShardOption = Annotated[
    str | None,
    typer.Option("--shard", metavar="I/N", help="make part I of N (0/4 to 3/4); `accelerate launch` sets it by itself"),
]


def generate(
    prompts: Annotated[
        Path | None,
        typer.Argument(metavar="[PROMPTS]", help="file of prompts or classes, one a line, or .json/.jsonl; "
                       "a bundled model has its own"),
    ] = None,
    model: o.ModelOption = o.DEFAULT_MODEL,
    run: RunOption = None,
    method: o.MethodOption = None,
    recipe: o.RecipeOption = None,
    protocol: ProtocolOption = None,
    num: NumOption = None,
    batch: BatchOption = None,
    seed: Annotated[int, typer.Option("--seed", help="sample i has seed + i, in every run")] = 0,
    steps: o.StepsOption = None,
    guidance_scale: o.GuidanceOption = None,
    height: o.HeightOption = None,
    width: o.WidthOption = None,
    num_frames: o.FramesOption = None,
    fps: Annotated[int, typer.Option("--fps", min=1, help="frames per second of the mp4")] = 16,
    negative_prompt: o.NegativeOption = None,
    dtype: o.DtypeOption = "auto",
    device: o.DeviceOption = "auto",
    shard: ShardOption = None,
    out: OutOption = Path("samples"),
) -> None:  # fmt: skip
    """Generate the samples of an evaluation: the same seeds, and so the same noise, for every run.

    Pictures are PNG; videos raw npy and mp4. Stopped at any moment, the same command goes on where it was.
    """
    items, size = items_from(prompts, protocol, model, num, seed)
    call = {
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "height": height,
        "width": width,
        "num_frames": num_frames,
        "negative_prompt": negative_prompt,
    }
    generate_runs(
        model, runs_from(run, method, recipe, out), items, call=call, batch=batch or size, fps=fps, dtype=dtype,
        device=device, shard=shard,
    )  # fmt: skip
    if not run:
        typer.echo(str(out))


def items_from(
    prompts: Path | None, protocol: str | None, model: str, num: int | None, seed: int
) -> tuple[Any, int | None]:
    """The items of the options and the protocol's batch, if there is one."""
    from fastdit import zoo
    from fastdit.evaluation.protocols import PROTOCOLS, class_items, items_of, read_prompts

    chosen = PROTOCOLS[protocol] if protocol else None
    wanted = num or (chosen.num if chosen else None)
    size = chosen.batch if chosen else None
    if chosen and chosen.classes and prompts is None:
        return class_items(chosen.classes, wanted or chosen.num, seed), size
    if prompts is not None:
        texts, seeds = read_prompts(prompts)
    elif model.startswith("fastdit/") and not chosen:
        texts, seeds = zoo.prompts(model), None
    else:
        raise ValueError(f"PROMPTS: {protocol or model} needs a file of prompts, one a line")
    if chosen and len(texts) < (wanted or 0):
        raise ValueError(f"{prompts} has {len(texts)} prompts and {protocol} takes {wanted}: give --num {len(texts)}")
    return items_of(texts, wanted, seed, seeds), size


def runs_from(
    runs: list[str] | None, method: list[str] | None, recipe: Path | None, out: Path
) -> list[tuple[str, Path, Any]]:
    """(name, folder, recipe) of every run; without --run there is one, in OUT itself."""
    from fastdit.pipelines.recipes import Recipe

    if not runs:
        name = "+".join(method) if method else recipe.stem if recipe else "default"
        return [(name, out, o.recipe_from(method, recipe))]
    if method or recipe:
        raise ValueError("give either --run or -m/--recipe: a --run names its methods itself")
    found = []
    for text in runs:
        name, equals, rest = text.partition("=")
        if not equals or ":" in name:  # the sign is one of a method's own options
            name, rest = "", text
        if rest == "dense":
            chosen = Recipe(())
        elif rest.endswith(".json"):
            chosen = o.recipe_from(None, Path(rest))
        else:
            chosen = o.recipe_from(rest.split("+"), None)
        if name and not re.fullmatch(r"[\w.+-]*\w[\w.+-]*", name):
            raise ValueError(f"--run {text}: the name {name!r} becomes a folder, use letters, digits, '-' and '_'")
        name = name or re.sub(r"[^A-Za-z0-9.]+", "-", rest).strip("-.")
        found.append((name, out / name, chosen))
    names = [name for name, _, _ in found]
    if doubled := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"--run: two runs are named {sorted(doubled)[0]}; give one a name: other={runs[-1]}")
    return found


def generate_runs(
    model: str,
    runs: list[tuple[str, Path, Any]],
    items: Any,
    *,
    call: dict[str, Any],
    batch: int | None = None,
    fps: int = 16,
    dtype: str = "auto",
    device: str = "auto",
    shard: str | None = None,
) -> None:
    """Load the model once and make the items for every (name, folder, recipe), in turns, with a progress bar."""
    from fastdit.cli.eval.drawing import check_items, drawers
    from fastdit.evaluation.generate import Shard
    from fastdit.evaluation.generate import generate as make
    from fastdit.pipelines.recipes import Recipe

    part = shard_from(shard) if shard else Shard.of_launch()
    for _, folder, _ in runs:
        check_folder(folder)
    beside = any(recipe is None for _, _, recipe in runs)  # somebody wants the recipe that ships with the model
    pipe = o.load(model, None if beside else Recipe(runs[0][2].methods), device_of_rank(device), dtype)
    videos = o.makes_videos(pipe)
    check_items(pipe, items)
    ready = drawers(pipe, model, runs, call, fps)
    with progress_bar(part) as progress:
        made = make(ready, items, batch=batch or (1 if videos else 8), shard=part, fps=fps, progress=progress)
    for run in ready:
        typer.echo(f"{run.folder}: {len(items)} samples, {run.name}" if part.world == 1 else
                   f"{run.folder}: part {part.rank} of {part.world}, {run.name}")  # fmt: skip
    if not made:
        typer.echo("everything was there already")


def check_folder(folder: Path) -> None:
    """ValueError, before any weights are loaded, for a folder that cannot be made or written."""
    import os

    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"-o {folder}: {there} is a file, give a folder")
    if not os.access(there, os.W_OK):
        raise ValueError(f"-o {folder}: {there} is not writable")


def shard_from(text: str) -> Any:
    """`1/4` as a Shard; ValueError names the option."""
    from fastdit.evaluation.generate import Shard

    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise ValueError(f"--shard {text}: write it as I/N with I from 0 to N - 1, for instance 0/4")
    return Shard(int(match[1]), int(match[2]))


def device_of_rank(device: str) -> str:
    """The device that this process of a launch takes: processes of one machine go round its CUDA devices."""
    import os

    import torch

    if device in ("auto", "cuda") and torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        return f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    return device


def progress_bar(part: Any) -> Any:
    """A context manager that gives `progress(done, total)`: a bar with the time left, on the first process only."""
    import contextlib

    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    @contextlib.contextmanager
    def shown() -> Any:
        columns = (TextColumn("samples"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"))
        # batches take long, so the speed is taken over the last hour
        bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), speed_estimate_period=3600,
                       disable=part.rank > 0)  # fmt: skip
        task = bar.add_task("samples", total=None)

        def progress(done: int, total: int) -> None:
            if not bar.live.is_started:  # bad input is found before, and leaves one line alone
                bar.start()
            bar.update(task, completed=done, total=total)

        try:
            yield progress
        finally:
            bar.stop()

    return shown()
