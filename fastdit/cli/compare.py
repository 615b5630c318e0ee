"""fastdit compare: the dense and the accelerated model from the same noise, side by side."""

import statistics
from pathlib import Path
from typing import Annotated, Any

import typer

from fastdit.cli import options as o


def compare(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="text; a class name or id for DiT")],
    model: o.ModelOption = o.DEFAULT_MODEL,
    method: o.MethodOption = None,
    recipe: o.RecipeOption = None,
    steps: o.StepsOption = None,
    guidance_scale: o.GuidanceOption = None,
    seed: o.SeedOption = 0,
    height: o.HeightOption = None,
    width: o.WidthOption = None,
    negative_prompt: o.NegativeOption = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="timed runs of each, alternating")] = 3,
    dtype: o.DtypeOption = "auto",
    device: o.DeviceOption = "auto",
    output: Annotated[Path, typer.Option("-o", "--output", help="the side-by-side picture")] = Path("compare.png"),
) -> None:
    """Run dense and accelerated alternately from the same noise; show pictures, seconds, MACs, PSNR and SSIM."""
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from fastdit.cli.output import check_output, print_report, save_picture
    from fastdit.core.report import human
    from fastdit.evaluation.fidelity import psnr, ssim

    check_output(output)
    pipe = o.load(model, o.recipe_from(method, recipe), device, dtype)
    if o.makes_videos(pipe):
        raise ValueError(f"compare shows pictures, and {type(pipe).__name__} makes videos: use generate twice")
    if not pipe.methods:
        raise ValueError("there is nothing to compare: give a method with -m or a recipe")
    given = o.call_arguments(
        pipe,
        {
            "num_inference_steps": steps,
            "guidance_scale": guidance_scale,
            "height": height,
            "width": width,
            "negative_prompt": [negative_prompt] * len(prompts) if negative_prompt else None,
        },
    )

    def run() -> tuple[Any, Any]:
        images = pipe(
            **o.prompt_arguments(pipe, prompts), **given, generator=o.generators(seed, len(prompts)), output_type="np"
        ).images
        return np.asarray(images), pipe.report

    pipe.set_progress_bar_config(desc="warm-up")
    run()
    with pipe.dense():
        run()
    runs: dict[str, list[Any]] = {"dense": [], "accelerated": []}
    for repeat in range(repeats):
        pipe.set_progress_bar_config(desc=f"pair {repeat + 1} of {repeats}")
        with pipe.dense():
            runs["dense"].append(run())
        runs["accelerated"].append(run())

    seconds = {name: statistics.median(report.seconds for _, report in done) for name, done in runs.items()}
    ratios = [d[1].seconds / a[1].seconds for d, a in zip(runs["dense"], runs["accelerated"], strict=True)]
    (dense, _), (fast, fast_report) = runs["dense"][0], runs["accelerated"][0]
    ratio = f"{seconds['dense'] / seconds['accelerated']:.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"
    rows = [
        ("seconds, median", f"{seconds['dense']:.2f}", f"{seconds['accelerated']:.2f}", ratio),
        ("MACs, transformer", human(fast_report.macs_dense), human(fast_report.macs_executed),
         f"{fast_report.macs_dense / fast_report.macs_executed:.2f}x"),
    ]  # fmt: skip
    table = Table("", "dense", "accelerated", "ratio")
    for row in rows:
        table.add_row(*row)
    for prompt, a, b in zip(prompts, dense, fast, strict=True):
        table.add_row(f"{prompt!r}: PSNR, SSIM", "", f"{psnr(a, b):.1f} dB, {ssim(a, b):.3f}", "")
    Console().print(table)
    print_report(fast_report)
    save_picture(side_by_side(dense, fast, prompts, seconds), output, {"model": model, "seconds": seconds})
    typer.echo(str(output))


def side_by_side(dense: Any, fast: Any, prompts: list[str], seconds: dict[str, float], least: int = 256) -> Any:
    """One row a prompt, dense left and accelerated right; small pictures are enlarged by whole pixels."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    scale = max(1, -(-least // dense.shape[1]))
    height, width = dense.shape[1] * scale, dense.shape[2] * scale
    margin, title = 12, 28
    font = ImageFont.load_default(14)
    sheet = Image.new("RGB", (2 * width + 3 * margin, len(prompts) * (height + title + margin) + title), "white")
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(("dense", "accelerated")):
        draw.text((margin + column * (width + margin), 8), f"{name}, {seconds[name]:.2f} s", "black", font)
    for row, (prompt, *pair) in enumerate(zip(prompts, dense, fast, strict=True)):
        top = title + row * (height + title + margin)
        draw.text((margin, top + height + 6), prompt, "black", font)
        for column, picture in enumerate(pair):
            image = Image.fromarray((picture.clip(0, 1) * 255).round().astype(np.uint8))
            image = image.resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(image, (margin + column * (width + margin), top))
    return sheet
