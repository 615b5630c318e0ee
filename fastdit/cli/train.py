"""fastdit train: fine-tune a model under a method."""

import dataclasses
import inspect
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from fastdit.training.options import TrainOptions, flag

DENSE = "dense"


def _with_options(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command, in place of `**options`, one option for each field of TrainOptions."""
    signature = inspect.signature(function)
    parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    for field in dataclasses.fields(TrainOptions):
        help = field.metadata["help"]
        if choices := field.metadata["choices"]:
            help = f"{' | '.join(choices)}: {help}"
        option = typer.Option(flag(field.name), help=help, show_default=field.default is not None)
        kind: Any = Annotated.__class_getitem__((field.type, option))  # type: ignore[attr-defined]
        parameters.append(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=kind)
        )
    function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {p.name: p.annotation for p in parameters}
    return function


@_with_options
def train(
    method: Annotated[
        str, typer.Argument(metavar="METHOD", help="METHOD:option=value,... ; dense: none, a plain fine-tune")
    ],
    *,
    model: Annotated[str, typer.Option("--model", help="diffusers folder, Hub id, or a bundled fastdit/... model")],
    data: Annotated[
        Path, typer.Option("--data", help="folder of pictures with captions or classes, of videos, or an npz")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="folder of the run; one that holds this run already is gone on with")
    ],
    cache: Annotated[
        Path | None, typer.Option("--cache", help="folder for encoded samples; OUTPUT/latents if not given")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto or cpu; `accelerate launch` sees to several")] = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="it is an error if OUTPUT holds no checkpoint yet")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="print the result alone")] = False,
    **options: Any,
) -> None:
    """Fine-tune a model under a method, and write what loads it: an adapter, a LoRA, or (dense) a whole pipeline.

    Stop it with Ctrl-C or kill, and the same command goes on from there.
    """
    wanted = TrainOptions(**options)
    chosen = _method(method)
    if device not in ("auto", "cpu"):
        raise ValueError(f"--device {device}: use auto or cpu; CUDA_VISIBLE_DEVICES picks a GPU")
    if not data.exists():
        raise ValueError(f"--data {data} does not exist: give a folder or an npz file")
    about = {
        "METHOD": DENSE if chosen is None else chosen.to_dict(), "--model": model, "--data": str(data.resolve()),
    }  # fmt: skip
    from fastdit.training import checkpoints, curves

    curves.check_extra()
    checkpoints.check_same_run(output, {**about, "options": wanted.to_dict()})
    if resume and not checkpoints.steps_saved(output):
        raise ValueError(f"--resume: {output} holds no checkpoint to go on from, leave it out to begin a run")

    import diffusers
    import transformers

    from fastdit.pipelines.loading import load_pipeline, locate
    from fastdit.training.data import open_samples
    from fastdit.training.session import Session, new_accelerator
    from fastdit.training.trainee import Trainee

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    accelerator = new_accelerator(wanted, device)
    talks = accelerator.is_main_process and not quiet
    pipe = load_pipeline(locate(model))
    trainee = Trainee(pipe, chosen, wanted)
    with accelerator.main_process_first(), _counting(talks) as counting, _encoders_on(pipe, accelerator.device):
        samples = open_samples(
            pipe, data, cache or output / "latents", progress=counting, only=wanted.only, size=wanted.size,
            frames=wanted.frames, guidance=wanted.guidance, skip_unreadable=wanted.skip_unreadable,
            text_drop=wanted.text_drop,
        )  # fmt: skip
    with _showing(wanted, talks, accelerator.num_processes) as show:
        session = Session(trainee, samples, output, accelerator, about, show)
        result = session.run()
    _tell(session, result, output)


@contextmanager
def _encoders_on(pipe: Any, device: Any) -> Iterator[None]:
    """Within, everything but the transformer is on the device."""
    import torch

    models = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    encoders = [model for model in models if model is not pipe.transformer]
    for model in encoders:
        model.to(device)
    yield
    for model in encoders:
        model.to("cpu")


def _method(text: str) -> Any:
    from fastdit.methods.base import Method

    return None if text == DENSE else Method.parse(text)


def _tell(session: Any, result: Any, output: Path) -> None:
    """Say what became of the run; after a signal the exit code is the shell's for it."""
    if not session.main:
        return
    if result is None:
        typer.echo(f"stopped and saved at step {session.step}: the same command goes on from there")
        raise typer.Exit(128 + (session.stopped_by or 0))
    folder, line = result
    typer.echo(f"{folder}  step {session.step}, curves in {output / 'curves.png'}")
    typer.echo(line)


@contextmanager
def _counting(on: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar for what is encoded, shown once there is something."""
    from fastdit.cli.eval.bar import bar

    with bar("samples") as progress:
        yield lambda what, done, total: progress(done, total) if on else None


@contextmanager
def _showing(
    options: TrainOptions, on: bool, processes: int
) -> Iterator[Callable[[int, float, Mapping[str, float]], None]]:
    """A bar with loss, share, speed and time left; where stderr is no terminal, a line a minute."""
    if not on:
        yield lambda step, progress, values: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), console=console,
        transient=True, refresh_per_second=2,
    )  # fmt: skip
    task = bar.add_task("", total=1.0)
    first: list[
        tuple[int, float, float]
    ] = []  # step, progress and time at the first call, to know the speed of this part
    told = smooth = 0.0

    def show(step: int, progress: float, values: Mapping[str, float]) -> None:
        nonlocal told, smooth
        now = time.monotonic()
        if not first:
            first.append((step, progress, now))
            smooth = values["data"]
            for text in options.warnings(processes) if "target" in values else ():
                typer.echo(f"warning: {text}", err=True)
            if console.is_terminal:
                bar.start()
        smooth += (values["data"] - smooth) * 0.05
        if now - told < (0.5 if console.is_terminal else 60) and progress < 1:
            return
        told = now
        text = _line(options, step, progress, smooth, values, *first[0], now)
        if console.is_terminal:
            bar.update(task, completed=progress, description=text)
        else:
            print(text, file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        if bar.live.is_started:
            bar.stop()


def _line(
    options: TrainOptions, step: int, progress: float, loss: float, values: Mapping[str, float], first_step: int,
    first_progress: float, began: float, now: float,
) -> str:  # fmt: skip
    total = f"/{options.last_step}" if options.last_step else ""
    share = f"  share {values['share']:.3f} (to {values['target']:.3f})" if "share" in values else ""
    passed = max(now - began, 1e-9)
    text = f"step {step}{total}  loss {loss:.4f}{share}"
    if step == first_step:
        return text
    left = passed * (1 - progress) / max(progress - first_progress, 1e-9)
    minutes, seconds = divmod(round(left), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{text}  {(step - first_step) / passed:.2f} steps/s  {hours}:{minutes:02d}:{seconds:02d} left"
