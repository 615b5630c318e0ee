"""fastdit eval pack: samples as the npz that ADM's evaluator reads."""

from pathlib import Path
from typing import Annotated

import typer


def pack(
    samples: Annotated[Path, typer.Argument(metavar="SAMPLES", help="a run's folder, or a folder of pictures")],
    out: Annotated[Path, typer.Argument(metavar="OUT.npz", help="the file to write")],
    num: Annotated[int | None, typer.Option("--num", min=1, help="only the first N samples")] = None,
) -> None:
    """Write pictures as one npz (arr_0, uint8 N x H x W x 3), for guided-diffusion's evaluator and others like it."""
    if not out.parent.is_dir():
        raise ValueError(f"{out}: folder {out.parent} does not exist, make it first")

    from fastdit.cli.eval.bar import bar
    from fastdit.evaluation.adm import pack as write
    from fastdit.evaluation.samples import Samples

    opened = Samples.open(samples)
    with bar("packing") as progress:
        count, height, width, _ = write(opened, out, num, progress)
    for text in opened.warnings:
        typer.echo(f"warning: {text}", err=True)
    typer.echo(f"{out}: {count} pictures of {width} x {height}")
