"""fastdit generate: pictures or videos from prompts."""

from pathlib import Path
from typing import Annotated, Any

import typer

from fastdit.cli import options as o
from fastdit.cli import video as v


def generate(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="text; a class name or id for DiT")],
    model: o.ModelOption = o.DEFAULT_MODEL,
    method: o.MethodOption = None,
    recipe: o.RecipeOption = None,
    steps: o.StepsOption = None,
    guidance_scale: o.GuidanceOption = None,
    seed: o.SeedOption = 0,
    height: o.HeightOption = None,
    width: o.WidthOption = None,
    num_images: Annotated[int, typer.Option("--num-images", min=1, help="pictures or videos per prompt")] = 1,
    num_frames: o.FramesOption = None,
    fps: v.FpsOption = 16,
    negative_prompt: o.NegativeOption = None,
    image: v.ImageOption = None,
    lora: Annotated[str | None, typer.Option("--lora", metavar="PATH[:SCALE]")] = None,
    offload: Annotated[
        str, typer.Option("--offload", metavar="none|model", help="model: only the part at work stays on the device")
    ] = "none",
    dtype: o.DtypeOption = "auto",
    device: o.DeviceOption = "auto",
    compile: Annotated[bool, typer.Option("--compile", help="compile the transformer blocks one by one")] = False,
    batch: Annotated[int, typer.Option("--batch", min=1, help="pictures at once; videos go one by one")] = 4,
    measure: Annotated[bool, typer.Option("--measure", help="also time the dense model, in turns")] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="file to write (out.png, out.mp4); several get numbers")
    ] = None,
) -> None:
    """Generate pictures or videos. Without -m and --recipe the recipe that ships beside the model is used."""
    from fastdit.cli import output as out
    from fastdit.cli.measure import in_turns

    out.check_output(output or Path("out.png"))
    first_frame = v.first_frame(image)
    pipe = o.load(model, o.recipe_from(method, recipe), device, dtype, offload, lora)
    videos = o.makes_videos(pipe)
    output = output or Path("out.mp4" if videos else "out.png")
    out.check_kind(output, videos)
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
    if compile:
        _compile_blocks(pipe)

    wanted = [prompt for prompt in prompts for _ in range(num_images)]
    size = 1 if videos else batch

    def run(start: int) -> Any:
        part = wanted[start : start + size]
        more = {"negative_prompt": [negative_prompt] * len(part)} if negative_prompt else {}
        asked = o.prompt_arguments(pipe, part)
        return pipe(**{**given, **more}, **asked, generator=o.generators(seed + start, len(part)))

    for start in range(0, len(wanted), size):
        made = run(start)
        for index, result in enumerate(made.frames if videos else made.images, start):
            path = out.numbered(output, index, len(wanted))
            more = {"prompt": wanted[index], "seed": seed + index, "lora": lora}
            settings = o.settings(pipe, model, given) | more
            if videos:
                out.save_video(result, path, fps, settings)
            else:
                out.save_picture(result, path, settings)
            typer.echo(f"{path}  {wanted[index]!r}, seed {seed + index}")
        out.print_report(pipe.report)
    if measure:
        out.print_timing(in_turns(pipe, [lambda: run(0)], repeats=3))


def _compile_blocks(pipe: Any) -> None:
    from fastdit.models.base import family_of
    from fastdit.pipelines.hosts import transformers_of

    for transformer in transformers_of(pipe).values():
        for _, block, _ in family_of(transformer).blocks(transformer):
            block.compile()
