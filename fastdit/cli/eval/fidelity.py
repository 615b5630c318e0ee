"""fastdit eval fidelity: how far accelerated samples are from the dense ones of the same noise."""

from pathlib import Path
from typing import Annotated, Any

import typer

from fastdit.cli import options as o


def fidelity(
    dense: Annotated[Path, typer.Argument(metavar="DENSE", help="run folder, folder of files, or one file")],
    fast: Annotated[Path, typer.Argument(metavar="FAST", help="the same samples, accelerated")],
    lpips: Annotated[
        str | None, typer.Option("--lpips", metavar="alex|vgg", help="also LPIPS, with this trunk")
    ] = None,
    lpips_weights: Annotated[
        Path | None,
        typer.Option("--lpips-weights", help="the trunk's file, or its folder [default: torch hub's cache]"),
    ] = None,
    device: o.DeviceOption = "auto",
    per_sample: Annotated[bool, typer.Option("--per-sample", help="a line for every sample as well")] = False,
    json: Annotated[Path | None, typer.Option("--json", metavar="OUT", help="all of it, per sample and frame")] = None,
) -> None:
    """PSNR, SSIM and LPIPS of FAST against DENSE, with sharpness and motion of both.

    Runs of `fastdit eval generate` are paired by their manifests, folders by file names, and raw frames are compared.
    Intervals: 95 %, bootstrap over prompts. The result of a run is kept in FAST/results/fidelity.json.
    """
    if lpips_weights and not lpips:
        raise ValueError("--lpips-weights needs --lpips alex or --lpips vgg, whose trunk the file holds")
    if json and not json.parent.is_dir():
        raise ValueError(f"--json {json}: folder {json.parent} does not exist, make it first")

    from fastdit.cli.eval.bar import bar
    from fastdit.core.files import write_json
    from fastdit.evaluation import perceptual
    from fastdit.evaluation.comparison import compare
    from fastdit.evaluation.samples import Samples, keep_result

    sets = Samples.open(dense), Samples.open(fast)
    distance = None
    if lpips:
        distance = perceptual.lpips(lpips, lpips_weights, o.device_and_dtype(device, "float32")[0])
    with bar("comparing") as progress:
        result = compare(*sets, distance, progress)
    against = sets[0].settings["hash"] if sets[0].settings else str(dense)
    data = result.to_dict() | {"against": against}
    written = [json, keep_result(sets[1], "fidelity", data)]  # first: a table that fails to print must not cost them
    if json:
        write_json(json, data)
    show(result, per_sample)
    for path in filter(None, written):
        typer.echo(str(path))


def show(result: Any, per_sample: bool) -> None:
    """The figures as a table, then the warnings."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(soft_wrap=True)
    name = result.perceptual.name if result.perceptual else ""
    rows = {
        "psnr": ("PSNR, dB (identical frames count 100)", 2),
        "ssim": ("SSIM", 4),
        **({result.perceptual.key: (name, 4)} if result.perceptual else {}),
        "sharpness_dense": ("sharpness, dense (variance of the Laplacian)", 1),
        "sharpness_fast": ("sharpness, accelerated", 1),
        "sharpness_ratio": ("sharpness, accelerated / dense", 3),
        "motion_dense": ("motion, dense (frame difference of 255)", 2),
        "motion_fast": ("motion, accelerated", 2),
        "motion_ratio": ("motion, accelerated / dense", 3),
    }
    table = Table("", "mean (95 % interval)", "n", title="accelerated against dense")
    for key, (label, digits) in rows.items():
        if key in result.values:
            table.add_row(escape(label), result.values[key].text(digits), str(result.values[key].n))
    table.add_row("identical frames", f"{result.identical} of {result.frames}", str(len(result.samples)))
    console.print(table)
    if per_sample:
        console.print(sample_table(result.samples, name))
    for text in result.warnings:
        console.print("[yellow]warning:[/]", escape(text), highlight=False)


def sample_table(samples: Any, name: str) -> Any:
    """One line a sample: means over its frames."""
    from rich.markup import escape
    from rich.table import Table

    perceptual = [escape(name)] if name else []
    table = Table("sample", "frames", "identical", "PSNR", "SSIM", *perceptual, "sharpness", "motion")
    for pair in samples:
        distances = [f"{pair.psnr.mean():.2f}", f"{pair.ssim.mean():.4f}"]
        if pair.perceptual is not None:
            distances.append(f"{pair.perceptual.mean():.4f}")
        moved = "" if pair.motion is None else "{:.2f} -> {:.2f}".format(*pair.motion)
        sharp = "{:.1f} -> {:.1f}".format(*pair.sharpness)
        table.add_row(escape(pair.name), str(len(pair.psnr)), str(pair.identical), *distances, sharp, moved)
    return table
