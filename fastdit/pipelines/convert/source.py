"""An authors' checkpoint as it lies on the disk: read safely, taken tensor by tensor, one error for all its faults."""

import argparse
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SHOWN = 3  # names of each fault in an error


class Source:
    """Tensors of a checkpoint by name. `take` them all, then `finish`: nothing may be missing, misshapen or left."""

    def __init__(self, tensors: dict[str, Tensor], label: str) -> None:
        self.tensors, self.label = tensors, label
        self.left = dict.fromkeys(tensors)  # in the file's order
        self.missing: list[str] = []
        self.misshapen: list[str] = []

    @classmethod
    def open(cls, path: Path) -> "Source":
        """Read a .safetensors file, or else torch's own format without any code in it; ValueError if it is neither."""
        if not path.is_file():
            raise ValueError(f"checkpoint {path} does not exist: give the file that the authors published")
        data = _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
        if isinstance(data, dict):  # the average first: it is what the authors sample from
            data = next((data[key] for key in ("ema", "model") if isinstance(data.get(key), dict)), data)
        if not isinstance(data, dict) or not all(isinstance(value, Tensor) for value in data.values()) or not data:
            raise ValueError(f"{path} holds no state dict, neither bare nor under 'ema' or 'model'")
        return cls({str(name): value for name, value in data.items()}, str(path))

    def shape(self, name: str, dimensions: int) -> tuple[int, ...]:
        """The shape of a tensor that everything else is judged by; ValueError if it is not there or of other form."""
        tensor = self.tensors.get(name)
        if tensor is None:
            raise ValueError(f"{self.label} lacks {name}, so it is no checkpoint in DiT's layout")
        if tensor.ndim != dimensions:
            raise ValueError(f"{self.label}: {name} must have {dimensions} dimensions, got shape {tuple(tensor.shape)}")
        return tuple(tensor.shape)

    def take(self, name: str, *shape: int) -> Tensor:
        """The tensor as float32; faults are kept for `finish`, and zeros stand for it meanwhile."""
        self.left.pop(name, None)
        tensor = self.tensors.get(name)
        if tensor is None:
            self.missing.append(name)
        elif tuple(tensor.shape) != shape:
            self.misshapen.append(f"{name} {tuple(tensor.shape)} instead of {shape}")
        else:
            return tensor.float()
        return torch.zeros(1).expand(shape)

    def linear(self, name: str, rows: int, columns: int) -> dict[str, Tensor]:
        """Weight (rows, columns) and bias (rows) of a layer, by these two words."""
        return {"weight": self.take(f"{name}.weight", rows, columns), "bias": self.take(f"{name}.bias", rows)}

    def count(self, prefix: str) -> int:
        """How many numbered entries `prefix.0`, `prefix.1`, ... there are; ValueError where a number is left out."""
        found = {int(match[1]) for name in self.tensors if (match := re.match(rf"{re.escape(prefix)}\.(\d+)\.", name))}
        if found != set(range(len(found))):
            absent = min(set(range(len(found))) - found)
            raise ValueError(f"{self.label} lacks {prefix}.{absent}, while {prefix}.{max(found)} is there")
        return len(found)

    @property
    def sound(self) -> bool:
        """Whether all that was taken so far was there as expected."""
        return not self.missing and not self.misshapen

    def finish(self, title: str) -> None:
        """ValueError that lists what was missing, misshapen and never taken."""
        faults = [("missing", self.missing), ("of another shape", self.misshapen), ("unknown", list(self.left))]
        texts = [f"{kind}: {_listed(names)}" for kind, names in faults if names]
        if texts:
            raise ValueError(f"{self.label} is no {title} checkpoint as published; {'; '.join(texts)}")


def _safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # the library's own class says too little to be caught by name
        raise ValueError(f"checkpoint {path} cannot be read: {error}") from error


def _torch(path: Path) -> Any:
    try:
        # beside weights and the optimizer's state the authors' training keeps its command line, a plain object
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"checkpoint {path} is damaged or holds more than tensors and plain values, which could run code: save its "
            "state dict alone with torch.save(...)"
        ) from error
    except (RuntimeError, EOFError, KeyError, AttributeError, ValueError, OSError) as error:
        raise ValueError(f"checkpoint {path} cannot be read: {str(error).strip().splitlines()[0]}") from error


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
