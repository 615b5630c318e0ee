"""fastdit convert: checkpoints as the methods' authors published them, turned into folders that load in one line."""

from pathlib import Path
from typing import Annotated, Any

import typer

CheckpointArgument = Annotated[
    Path, typer.Argument(metavar="CKPT", help="the published file (torch's format, or .safetensors)")
]
OutArgument = Annotated[Path, typer.Argument(metavar="OUT", help="the folder to write; new or empty")]
HeadsOption = Annotated[
    int | None, typer.Option("--num-heads", min=1, help="attention heads, where neither routers nor the width tell")
]
VaeOption = Annotated[
    str | None, typer.Option("--vae", help="id or folder of the VAE to put in; none: give one when loading")
]
SchedulerOption = Annotated[
    str | None, typer.Option("--scheduler", help="id or folder of a scheduler; none: DDIM as DiT was trained")
]
LabelsOption = Annotated[
    Path | None, typer.Option("--labels", metavar="FILE", help="names of the classes, one a line, synonyms with commas")
]
ChannelsOption = Annotated[
    int | None,
    typer.Option(
        "--guidance-channels", min=1, help="guide the first latent channels only (the authors: 3); none: all of them"
    ),
]

app = typer.Typer(help="Turn a published checkpoint into a diffusers folder with its method on.", no_args_is_help=True)


@app.command()
def dydit(
    checkpoint: CheckpointArgument,
    out: OutArgument,
    num_heads: HeadsOption = None,
    vae: VaeOption = None,
    scheduler: SchedulerOption = None,
    labels: LabelsOption = None,
    guidance_channels: ChannelsOption = None,
) -> None:
    """Convert a checkpoint of DyDiT (DyDiT-S, B, XL)."""
    given = {"num_heads": num_heads, "vae": vae, "scheduler": scheduler, "labels": labels}
    _convert("dydit", checkpoint, out, {**given, "guidance_channels": guidance_channels})


@app.command()
def flexdit(
    checkpoint: CheckpointArgument,
    out: OutArgument,
    num_heads: HeadsOption = None,
    sparse_grid: Annotated[
        int, typer.Option("--sparse-grid", min=1, help="side of the sparse token grid that it was trained with")
    ] = 8,
    vae: VaeOption = None,
    scheduler: SchedulerOption = None,
    labels: LabelsOption = None,
    guidance_channels: ChannelsOption = None,
) -> None:
    """Convert a checkpoint of FlexDiT, alias SparseDiT (XL at 256 and 512)."""
    given = {"num_heads": num_heads, "vae": vae, "scheduler": scheduler, "labels": labels}
    _convert("flexdit", checkpoint, out, {**given, "guidance_channels": guidance_channels, "sparse_grid": sparse_grid})


def _convert(name: str, checkpoint: Path, out: Path, options: dict[str, Any]) -> None:
    from fastdit.pipelines.convert import convert, summary

    converted = convert(name, checkpoint, out, **options)
    typer.echo(f"{out}: {summary(converted)}; {name} is on, VAE {options['vae'] or 'none (give one when loading)'}")
