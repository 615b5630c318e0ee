"""What a converter is: one entry for each method whose authors published weights, registered beside its reading."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from fastdit.core.registry import Registry
from fastdit.methods.base import Method
from fastdit.pipelines.convert.shared import Geometry
from fastdit.pipelines.convert.source import Source


@dataclass(frozen=True)
class Converted:
    """A checkpoint under our names: the transformer for diffusers, and the method with its own parameters."""

    geometry: Geometry
    state: dict[str, Tensor]  # of diffusers' DiTTransformer2DModel
    method: Method  # with the options that its structure needs, and no checkpoint
    own_state: dict[str, Tensor]


@dataclass(frozen=True)
class Converter:
    """`read(source, num_heads, **options)` takes every tensor; `marks` are parts of names that no other method has."""

    title: str
    marks: tuple[str, ...]
    read: Callable[..., Converted]

    def recognises(self, source: Source) -> bool:
        return any(mark in name for name in source.tensors for mark in self.marks)


CONVERTERS: Registry[Converter] = Registry("converter")
FOREIGN = {"transformer_blocks.": "a diffusers transformer", "blocks.0.attn.qkv.": "a plain DiT"}


def check_kind(source: Source, converter: Converter) -> None:
    """ValueError that says whose checkpoint this is instead."""
    if converter.recognises(source):
        return
    for name, other in CONVERTERS.items():
        if other.recognises(source):
            raise ValueError(
                f"{source.label} is a checkpoint of {other.title} and not of {converter.title}: use `fastdit convert "
                f"{name}`"
            )
    for mark, what in FOREIGN.items():
        if any(name.startswith(mark) for name in source.tensors):
            raise ValueError(
                f"{source.label} is {what} and not a checkpoint of {converter.title}: it has no {_marks(converter)}"
            )
    first = next(iter(source.tensors))
    raise ValueError(
        f"{source.label} is no checkpoint of {converter.title}: it has no {_marks(converter)}, but {first}"
    )


def _marks(converter: Converter) -> str:
    return " or ".join(converter.marks)
