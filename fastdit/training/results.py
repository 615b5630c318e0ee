"""What a run leaves behind: an adapter, a diffusers LoRA, or a whole pipeline, and the line that loads it."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastdit.core.files import write_folder
from fastdit.methods.adapter import write_adapter
from fastdit.methods.base import Method
from fastdit.methods.trained import TrainedRuntime

Result = tuple[Path, str]  # the folder, and a line of Python that loads it


def write_method(
    out: Path, model: str, method: Method, runtime: TrainedRuntime, transformer: nn.Module, **about: Any
) -> Result:
    """Write the adapter of a trained method; `about` goes to `write_adapter`."""
    folder = out / "adapter"
    write_adapter(
        folder, method=method.name, structure=runtime.structure(), transformer=transformer,
        own_state=runtime.module.state_dict(), **about,
    )  # fmt: skip
    made = f'{type(method).__name__}(checkpoint="{folder}")'
    return folder, f'FastDiTPipeline.from_pretrained("{model}", methods=[{made}])'


def write_lora(out: Path, pipe: Any, transformer: nn.Module) -> Result:
    """Write pytorch_lora_weights.safetensors; a pipeline that diffusers loads none into is written whole, with it."""
    if not hasattr(pipe, "save_lora_weights"):
        return write_pipeline(out, pipe, merged(transformer))
    from peft import get_peft_model_state_dict

    layers = {name: value.float() for name, value in get_peft_model_state_dict(transformer).items()}
    folder = write_folder(out / "lora", lambda path: pipe.save_lora_weights(path, transformer_lora_layers=layers))
    return folder, f'pipe.load_lora_weights("{folder}")'


def write_pipeline(out: Path, pipe: Any, transformer: nn.Module) -> Result:
    """Write the pipeline as a diffusers folder, its transformer in bfloat16."""

    def write(path: Path) -> None:
        half = nn.Module.to(copy.deepcopy(transformer), "cpu", torch.bfloat16)  # diffusers' own warns of every cast
        type(pipe)(**{**pipe.components, "transformer": half}).save_pretrained(path)
        for file in path.rglob("config.json"):  # leave out where it was trained
            config = json.loads(file.read_text(encoding="utf-8"))
            if config.pop("_name_or_path", None) is not None:
                file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    folder = write_folder(out / "pipeline", write)
    return folder, f'FastDiTPipeline.from_pretrained("{folder}", methods=[])'


def merged(transformer: nn.Module) -> nn.Module:
    """A copy with its peft layers folded into the weights."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    whole = copy.deepcopy(transformer)
    for name, module in list(whole.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, attribute = name.rpartition(".")
            setattr(whole.get_submodule(parent), attribute, module.get_base_layer())
    whole.__dict__.pop("peft_config", None)
    return whole
