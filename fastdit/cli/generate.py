"""fastdit generate: pictures or videos from prompts."""

from pathlib import Path
from typing import Annotated, Any

import typer

from fastdit.cli import options as o


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
    num_images: Annotated[int, typer.Option("--num-images", min=1, help="pictures per prompt")] = 1,
    num_frames: o.FramesOption = None,
    fps: Annotated[int, typer.Option("--fps", min=1, help="frames per second of a video")] = 16,
    negative_prompt: o.NegativeOption = None,
    image: Annotated[Path | None, typer.Option("--image", help="first frame for image-to-video models")] = None,
    lora: Annotated[str | None, typer.Option("--lora", metavar="PATH[:SCALE]")] = None,
    offload: Annotated[
        str, typer.Option("--offload", metavar="none|model", help="model: only the part at work stays on the device")
    ] = "none",
    dtype: o.DtypeOption = "auto",
    device: o.DeviceOption = "auto",
    compile: Annotated[bool, typer.Option("--compile", help="compile the transformer blocks one by one")] = False,
    output: Annotated[Path, typer.Option("-o", "--output", help="file to write; several get numbers")] = Path(
        "out.png"
    ),
) -> None:
    """Generate pictures or videos. Without -m and --recipe the recipe that ships beside the model is used."""
    from fastdit.cli.output import check_output, numbered, print_report, save_picture, save_video

    check_output(output)
    if image is not None and not image.is_file():
        raise ValueError(f"--image {image} does not exist")
    pipe = o.load(model, o.recipe_from(method, recipe), device, dtype, offload, lora)
    given = o.call_arguments(
        pipe,
        {
            "num_inference_steps": steps,
            "guidance_scale": guidance_scale,
            "height": height,
            "width": width,
            "num_frames": num_frames,
            "negative_prompt": negative_prompt,
            "image": _picture(image),
        },
    )
    if compile:
        _compile_blocks(pipe)

    wanted = [prompt for prompt in prompts for _ in range(num_images)]
    batches = [[prompt] for prompt in wanted] if o.makes_videos(pipe) else [wanted]
    done = 0
    for batch in batches:
        asked = o.prompt_arguments(pipe, batch)
        if "negative_prompt" in given and isinstance(asked.get("prompt"), list):
            given["negative_prompt"] = [negative_prompt] * len(batch)
        out = pipe(**asked, **given, generator=o.generators(seed + done, len(batch)))
        results = out.images if hasattr(out, "images") else out.frames
        for index, result in enumerate(results):
            path = numbered(output, done + index, len(wanted))
            if hasattr(out, "images"):
                save_picture(result, path, _settings(pipe, model, batch[index], seed + done + index, given))
            else:
                save_video(result, path, fps)
            typer.echo(f"{path}  {batch[index]!r}, seed {seed + done + index}")
        done += len(batch)
        print_report(pipe.report)


def _picture(path: Path | None) -> Any:
    if path is None:
        return None
    from PIL import Image

    return Image.open(path).convert("RGB")


def _compile_blocks(pipe: Any) -> None:
    from fastdit.models.base import family_of
    from fastdit.pipelines.engine import transformers_of

    for transformer in transformers_of(pipe).values():
        for _, block, _ in family_of(transformer).blocks(transformer):
            block.compile()


def _settings(pipe: Any, model: str, prompt: str, seed: int, given: dict[str, Any]) -> dict[str, Any]:
    import diffusers
    import torch

    import fastdit

    plain = {name: value for name, value in given.items() if isinstance(value, (int, float, str))}
    return {
        "model": model,
        "prompt": prompt,
        "seed": seed,
        "methods": [method.to_dict() for method in pipe.methods],
        "call": {**pipe.call_defaults, **plain},
        "seconds": round(pipe.report.seconds, 3),
        "macs": {"dense": pipe.report.macs_dense, "executed": pipe.report.macs_executed},
        "versions": {"fastdit": fastdit.__version__, "diffusers": diffusers.__version__, "torch": torch.__version__},
    }
