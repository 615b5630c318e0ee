"""Options that several commands share, and how they become a pipeline."""

from pathlib import Path
from typing import Annotated, Any

import typer

DEFAULT_MODEL = "fastdit/emoji-image"

ModelOption = Annotated[str, typer.Option("--model", help="diffusers folder, Hub id, or a bundled fastdit/... model")]
MethodOption = Annotated[
    list[str] | None, typer.Option("-m", "--method", help="METHOD:option=value,... ; may be given several times")
]
RecipeOption = Annotated[
    Path | None, typer.Option("--recipe", help="a recipe: a JSON file, or a name that `fastdit methods` lists")
]
StepsOption = Annotated[int | None, typer.Option("--steps", min=1, help="number of inference steps")]
GuidanceOption = Annotated[float | None, typer.Option("--guidance-scale")]
SeedOption = Annotated[int, typer.Option("--seed", help="seed of the first picture; the next ones count up")]
HeightOption = Annotated[int | None, typer.Option("--height", min=1, help="pixels")]
WidthOption = Annotated[int | None, typer.Option("--width", min=1, help="pixels")]
FramesOption = Annotated[int | None, typer.Option("--num-frames", min=1, help="frames of a video")]
NegativeOption = Annotated[str | None, typer.Option("--negative-prompt")]
DtypeOption = Annotated[
    str, typer.Option("--dtype", help="auto (bfloat16 on CUDA, else float32), float32, bfloat16, float16")
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, mps")]


def recipe_from(methods: list[str] | None, recipe: Path | None) -> Any:
    """The recipe of the command line: -m options, a file, or None for the one beside the model."""
    from fastdit.methods.base import Method
    from fastdit.pipelines.recipes import Recipe

    if methods and recipe:
        raise ValueError("give either -m or --recipe, not both: a recipe is a saved list of methods")
    if recipe:
        return Recipe.load(recipe)
    if methods:
        return Recipe(tuple(Method.parse(text) for text in methods))
    return None


def device_and_dtype(device: str, dtype: str) -> tuple[str, Any]:
    """Resolve `auto`, and refuse what this machine or torch does not have."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no CUDA device here; use --device cpu")
    if device.split(":")[0] not in ("cpu", "cuda", "mps"):
        raise ValueError(f"--device {device}: use auto, cpu, cuda, cuda:N or mps")
    if device == "mps" and not torch.backends.mps.is_available():
        raise ValueError("--device mps: torch finds no Apple GPU here; use --device cpu")
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype == "auto":
        return device, torch.bfloat16 if device.startswith("cuda") else torch.float32
    if dtype not in known:
        raise ValueError(f"--dtype {dtype}: use auto, {', '.join(known)}")
    return device, known[dtype]


def load(model: str, recipe: Any, device: str, dtype: str, offload: str = "none", lora: str | None = None) -> Any:
    """A pipeline with its methods, on its device, without the loaders' progress bars."""
    if offload not in ("none", "model"):
        raise ValueError(f"--offload {offload}: use none or model")
    device, torch_dtype = device_and_dtype(device, dtype)

    import diffusers
    import transformers

    from fastdit.pipelines import FastDiTPipeline

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    pipe = FastDiTPipeline.from_pretrained(model, recipe, dtype=torch_dtype)
    if lora:
        _load_lora(pipe, lora)
    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.to(device)
    return pipe


def _load_lora(pipe: Any, text: str) -> None:
    path, _, scale = text.rpartition(":")
    try:
        weight = float(scale) if path else 1.0
    except ValueError:
        path, weight = text, 1.0
    path = path or text
    if not hasattr(pipe, "load_lora_weights"):
        raise ValueError(f"--lora: {type(pipe).__name__} loads no LoRA in diffusers")
    pipe.load_lora_weights(path, adapter_name="user")
    pipe.set_adapters(["user"], [weight])


def call_arguments(pipe: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The given options as arguments of this pipeline's call; one it does not know is an error that names it."""
    import inspect

    from fastdit.models.base import family_of

    known = inspect.signature(type(pipe).__call__).parameters
    given = {name: value for name, value in given.items() if value is not None}
    if "video_length" in known and "num_frames" in given:
        given["video_length"] = given.pop("num_frames")  # Latte's word for it
    if "negative_prompt" in given and family_of(first_transformer(pipe)).guidance == "embedded":
        raise ValueError("--negative-prompt: this model's guidance is embedded, a negative prompt would do nothing")
    for name, parameter in list(known.items())[1:]:
        required = parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        if required and name not in ("prompt", "class_labels", *given):
            raise ValueError(f"--{name.replace('_', '-')}: {type(pipe).__name__} needs it")
    for name in given:
        if name not in known:
            raise ValueError(f"--{name.replace('_', '-')}: {type(pipe).__name__} does not take it")
    return given


def first_transformer(pipe: Any) -> Any:
    """Any of the pipeline's transformers: they are of one family."""
    from fastdit.pipelines.hosts import transformers_of

    return next(iter(transformers_of(pipe).values()))


def settings(pipe: Any, model: str, given: dict[str, Any]) -> dict[str, Any]:
    """What a picture's metadata says about how it was made."""
    import diffusers
    import torch

    import fastdit

    plain = {name: value for name, value in given.items() if isinstance(value, (int, float, str, list))}
    return {
        "model": model,
        "methods": [method.to_dict() for method in pipe.methods],
        "call": {**pipe.call_defaults, **plain},
        "dtype": str(pipe.dtype).removeprefix("torch."),
        "seconds": round(pipe.report.seconds, 3),
        "macs": {"dense": pipe.report.macs_dense, "executed": pipe.report.macs_executed},
        "versions": {"fastdit": fastdit.__version__, "diffusers": diffusers.__version__, "torch": torch.__version__},
    }


def makes_videos(pipe: Any) -> bool:
    """Whether the pipeline's call takes a number of frames."""
    import inspect

    return bool({"num_frames", "video_length"} & set(inspect.signature(type(pipe).__call__).parameters))


def prompt_arguments(pipe: Any, prompts: list[str]) -> dict[str, Any]:
    """Prompts as the pipeline takes them: text, or class ids for a class-conditional model."""
    import inspect

    if "class_labels" not in inspect.signature(type(pipe).__call__).parameters:
        return {"prompt": prompts}
    return {"class_labels": [class_id(pipe, prompt) for prompt in prompts]}


def class_id(pipe: Any, prompt: str) -> int:
    """The class of an id or a name; of a list of synonyms ("tench, Tinca tinca") the first known one counts."""
    import difflib

    names = {name.lower(): number for name, number in (getattr(pipe, "labels", None) or {}).items()}
    count = pipe.transformer.config.num_embeds_ada_norm
    if prompt.strip().isdigit():
        if int(prompt) >= count:
            raise ValueError(f"PROMPT {prompt}: this model has classes 0 to {count - 1}")
        return int(prompt)
    for word in (prompt, *prompt.split(",")):
        if word.strip().lower() in names:
            return names[word.strip().lower()]
    close = difflib.get_close_matches(prompt.lower(), names, n=3)
    hint = f"; close ones: {', '.join(close)}" if close else ""
    raise ValueError(f"PROMPT {prompt!r} is no class of this model: give a class id (0 to {count - 1}) or name{hint}")


def generators(seed: int, count: int) -> list[Any]:
    """One CPU generator a picture, so that each is the same alone and in a batch."""
    import torch

    return [torch.Generator("cpu").manual_seed(seed + index) for index in range(count)]


def reference_from(path: Path) -> Path:
    """A reference to measure against: a path, or a bundled model's name, which stands for its training pictures."""
    from fastdit import zoo

    return path if path.exists() or path.parts[:1] != ("fastdit",) else zoo.reference(path.as_posix())
