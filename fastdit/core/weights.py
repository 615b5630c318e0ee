"""Which weights these are: a hash that is cheap to take and does not hang on how they are held."""

import hashlib
from collections.abc import Iterable
from operator import itemgetter

import torch
from torch import Tensor, nn

SAMPLES = 64  # values of each tensor


def weights_hash(model: nn.Module) -> str:
    """Hash of a model's parameters: names, shapes and values spread over each, as bfloat16.

    Equal for one file read in float32 and in bfloat16. Low-rank adapters that peft put into the model do not count.
    """
    model = getattr(model, "_orig_mod", model)
    return tensors_hash((plain_name(name), value) for name, value in model.named_parameters() if not _of_peft(name))


def tensors_hash(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Hash of named tensors, whatever their order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=itemgetter(0)):
        flat = tensor.detach().reshape(-1)
        # an odd stride, as an even one may meet the same column of a matrix each time
        samples = flat[:: flat.numel() // SAMPLES | 1].to("cpu", torch.bfloat16)
        digest.update(f"{name} {tuple(tensor.shape)} ".encode())
        digest.update(samples.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def plain_name(name: str) -> str:
    """A parameter's or module's name without what peft puts between."""
    return ".".join(part for part in name.split(".") if part != "base_layer")


def _of_peft(name: str) -> bool:
    return any(part.startswith("lora_") for part in name.split("."))
