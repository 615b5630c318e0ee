"""fastdit compare: the dense and the accelerated model from the same noise, side by side."""

import functools
from pathlib import Path
from typing import Annotated, Any

import typer

from fastdit.cli import options as o
from fastdit.cli import video as v


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
    num_frames: o.FramesOption = None,
    fps: v.FpsOption = 16,
    negative_prompt: o.NegativeOption = None,
    image: v.ImageOption = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="timed runs of each, alternating")] = 3,
    dtype: o.DtypeOption = "auto",
    device: o.DeviceOption = "auto",
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="the side-by-side picture or video [default: compare.png, compare.mp4]"),
    ] = None,
) -> None:
    """Run dense and accelerated alternately from the same noise; show both, seconds, MACs, PSNR and SSIM.

    Beside a video clip.mp4, clip-frames.png shows some frames of each.
    """
    from fastdit.cli import output as out
    from fastdit.cli.measure import in_turns
    from fastdit.cli.side_by_side import side_by_side, strip
    from fastdit.evaluation.fidelity import WINDOW
    from fastdit.evaluation.frames import write_picture
    from fastdit.evaluation.generate import to_uint8

    out.check_output(output or Path("compare.png"))
    first_frame = v.first_frame(image)
    pipe = o.load(model, o.recipe_from(method, recipe), device, dtype)
    videos = o.makes_videos(pipe)
    output = output or Path("compare.mp4" if videos else "compare.png")
    out.check_kind(output, videos)
    if not pipe.methods:
        raise ValueError("there is nothing to compare: give a method with -m or a recipe")
    given = o.call_arguments(
        pipe,
        {
            "num_inference_steps": steps,
            "guidance_scale": guidance_scale,
            "height": height,
            "width": width,
            "num_frames": num_frames,
            "negative_prompt": negative_prompt,
            "image": first_frame,
        },
    )
    v.check_num_frames(pipe, given)
    for name in ("height", "width"):
        if given.get(name, WINDOW) < WINDOW:
            raise ValueError(f"--{name} {given[name]}: SSIM needs at least {WINDOW} pixels")
    run = functools.partial(_samples, pipe, given, seed)
    parts = [[prompt] for prompt in prompts] if videos else [prompts]  # videos one by one: they fill the memory
    timing = in_turns(pipe, [functools.partial(run, start, part) for start, part in enumerate(parts)], repeats)
    dense, fast = ([sample for made in side for sample in made] for side in zip(*timing.made, strict=True))
    out.print_timing(timing)
    titles = _print_fidelity(dense, fast, prompts)
    out.print_report(timing.reports[0][1])

    seconds = dict(zip(("dense", "accelerated"), timing.seconds, strict=True))
    settings = o.settings(pipe, model, given) | {"prompts": prompts, "seed": seed, "median_seconds": seconds}
    if videos:
        out.save_video(side_by_side(dense, fast, prompts, seconds), output, fps, settings)
        typer.echo(str(output))
        output = output.with_name(f"{output.stem}-frames.png")
        sheet = strip(dense, fast, titles)
    else:
        dense, fast = ([to_uint8(picture)[None] for picture in side] for side in (dense, fast))  # of one frame each
        sheet = side_by_side(dense, fast, prompts, seconds)[0]
    write_picture(output, sheet, settings)
    typer.echo(str(output))


def _samples(pipe: Any, given: dict[str, Any], seed: int, start: int, prompts: list[str]) -> Any:
    """Pictures (B, H, W, 3) as floats in [0, 1], videos (B, T, H, W, 3) as uint8; the first has the seed + start."""
    import numpy as np

    from fastdit.evaluation.generate import to_uint8

    if "negative_prompt" in given:
        given = {**given, "negative_prompt": [given["negative_prompt"]] * len(prompts)}
    asked = o.prompt_arguments(pipe, prompts)
    made = pipe(**asked, **given, generator=o.generators(seed + start, len(prompts)), output_type="np")
    return to_uint8(made.frames) if o.makes_videos(pipe) else np.asarray(made.images)


def _print_fidelity(dense: list[Any], fast: list[Any], prompts: list[str]) -> list[str]:
    """A table of PSNR and SSIM, for videos their means over the frames; figures with their prompts are returned."""
    from rich.console import Console
    from rich.table import Table

    from fastdit.evaluation.fidelity import psnr, ssim

    over = f", mean of {len(dense[0])} frames" if dense[0].ndim == 4 else ""
    table = Table("prompt", "PSNR", "SSIM", title=f"accelerated against dense{over}")
    titles = []
    for prompt, a, b in zip(prompts, dense, fast, strict=True):
        figures = f"{psnr(a, b):.1f} dB", f"{ssim(a, b):.3f}"
        table.add_row(prompt, *figures)
        titles.append(f"PSNR {figures[0]}, SSIM {figures[1]}: {prompt}")
    Console().print(table)
    return titles
