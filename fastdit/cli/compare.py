"""fastdit compare: the dense and the accelerated model from the same noise, side by side."""

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

    from fastdit.cli.measure import in_turns
    from fastdit.cli.output import check_kind, check_output, print_report, print_timing, save_picture
    from fastdit.evaluation.fidelity import psnr, ssim

    check_output(output)
    pipe = o.load(model, o.recipe_from(method, recipe), device, dtype)
    if o.makes_videos(pipe):
        raise ValueError(
            f"compare shows pictures, and {type(pipe).__name__} makes videos: generate one, and one more with "
            "-m token_merging:density=1, which is dense"
        )
    check_kind(output, videos=False)
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

    def run() -> Any:
        asked = o.prompt_arguments(pipe, prompts)
        return np.asarray(pipe(**asked, **given, generator=o.generators(seed, len(prompts)), output_type="np").images)

    timing = in_turns(pipe, run, repeats)
    (dense, _), (fast, fast_report) = timing.dense[0], timing.fast[0]
    seconds = dict(zip(("dense", "accelerated"), timing.seconds, strict=True))
    print_timing(timing)
    table = Table("prompt", "PSNR", "SSIM", title="accelerated against dense")
    for prompt, a, b in zip(prompts, dense, fast, strict=True):
        table.add_row(prompt, f"{psnr(a, b):.1f} dB", f"{ssim(a, b):.3f}")
    Console().print(table)
    print_report(fast_report)
    settings = o.settings(pipe, model, given) | {"prompts": prompts, "seed": seed, "median_seconds": seconds}
    save_picture(side_by_side(dense, fast, prompts, seconds), output, settings)
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
