"""fastdit eval clip: do the samples fit their prompts?"""

from pathlib import Path
from typing import Annotated

import typer

from fastdit.cli import options as o


def clip(
    samples: Annotated[Path, typer.Argument(metavar="SAMPLES", help="a run's folder, whose manifest has the prompts")],
    model: Annotated[
        str, typer.Option("--model", metavar="ID_OR_PATH", help="CLIP checkpoint; state it beside the figure")
    ] = "openai/clip-vit-large-patch14",
    frames: Annotated[int, typer.Option("--frames", min=1, help="frames looked at of a video, spread evenly")] = 8,
    batch: Annotated[int, typer.Option("--batch", min=1, help="pictures at once")] = 32,
    workers: Annotated[int, typer.Option("--workers", min=0, help="processes that read and resize")] = 2,
    device: o.DeviceOption = "auto",
    json: Annotated[Path | None, typer.Option("--json", metavar="OUT", help="the scores as JSON, per sample")] = None,
) -> None:
    """CLIP score: 100 * cosine of picture and prompt features, mean with a 95 % interval over prompts.

    Hessel et al. (2021) with weight 1 instead of 2.5 and in percent, as torchmetrics has it. The result is kept in
    SAMPLES/results/clip.json.
    """
    if json and not json.parent.is_dir():
        raise ValueError(f"--json {json}: folder {json.parent} does not exist, make it first")

    from rich.console import Console
    from rich.markup import escape

    from fastdit.cli.eval.bar import bar
    from fastdit.core.files import write_json
    from fastdit.evaluation.clip_score import clip_score
    from fastdit.evaluation.features.clip import Clip
    from fastdit.evaluation.samples import Samples, keep_result

    target = o.device_and_dtype(device, "float32")[0]
    opened = Samples.open(samples)
    if not opened.records:
        raise ValueError(f"{samples} has no manifest, so no prompts: `fastdit eval generate` writes one")
    try:
        network = Clip(model)
    except ValueError as error:
        raise ValueError(f"--model {error}") from error
    with bar("CLIP") as progress:
        result = clip_score(
            opened, network, batch_size=batch, workers=workers, device=target, frames=frames, progress=progress
        )
    warnings = [*opened.warnings, *result.warnings]
    data = {
        "metric": "clip",
        "model": network.identity,
        "n": result.score.n,
        "values": {"clip": result.score.to_dict()},
        "warnings": warnings,
        "samples": [{"name": name, "clip": value} for name, value in result.samples.items()],
    }
    written = [json, keep_result(opened, "clip", data)]  # first: a line that fails to print must not cost them
    if json:
        write_json(json, data)
    console = Console(soft_wrap=True)
    line = f"CLIP score ({network.title}): {result.score.text(2)}, {result.score.n} samples"
    console.print(escape(line), highlight=False)
    for text in warnings:
        console.print("[yellow]warning:[/]", escape(text), highlight=False)
    for path in filter(None, written):
        typer.echo(str(path))
