"""The processor wrapper: the one place where fastdit bends an attention call (seam 3).

It keeps the host's own processor and calls it. Before the call it may reduce tokens and rotary rows; around the call it
may replace the single scaled-dot-product call that the original makes; after it, it restores the tokens. Projections,
norms, rotary embedding and text handling stay the host's own.
"""

import functools
import inspect
from typing import Any

import torch

from fastdit.attention.reduced import Attention, attend, attend_each
from fastdit.attention.swap import call_swapped
from fastdit.attention.tokens import TokenStep
from fastdit.models.base import Rotary


class ProcessorWrapper:
    """Calls the original processor; `tokens` and `kernel` are this forward's orders, both None to pass through.

    `tokens` is one step for all samples, or a tuple with one for each where they reduce to unequal lengths.
    A call on reduced tokens keeps the host's own kernel: the reduced tokens stand on no grid that a mask could know.
    """

    names: tuple[str, ...] = ()  # the original's positional argument names after the attention module

    def __init__(self, original: Any, rotary: Rotary | None) -> None:
        self.original, self.rotary = original, rotary
        self.tokens: TokenStep | tuple[TokenStep | None, ...] | None = None
        self.kernel: Attention | None = None  # stands in for the scaled-dot-product call inside the original
        self.queries: Attention | None = (
            None  # the same with some queries only, where no kernel and no tokens are given
        )

    def run(self, attn: Any, args: tuple, kwargs: dict) -> Any:
        kernel = self.kernel or self.queries
        if self.tokens is None and kernel is None:
            return self.original(attn, *args, **kwargs)
        arguments = {**dict(zip(self.names, args, strict=False)), **kwargs}
        original = functools.partial(self.original, attn)
        if isinstance(self.tokens, tuple):
            return attend_each(original, arguments, self.tokens, self.rotary, self.describe)
        if self.tokens is not None:
            return attend(original, arguments, self.tokens, self.rotary, self.describe)
        assert kernel is not None
        return call_swapped(original, arguments, kernel, self.describe)

    def describe(self) -> str:
        backend = getattr(self.original, "_attention_backend", None)
        return f"{type(self.original).__name__} with attention backend {getattr(backend, 'value', backend) or 'native'}"

    # diffusers writes these two onto the installed processor; they belong to the original.
    @property
    def _attention_backend(self) -> Any:
        return self.original._attention_backend

    @_attention_backend.setter
    def _attention_backend(self, value: Any) -> None:
        self.original._attention_backend = value

    @property
    def _parallel_config(self) -> Any:
        return self.original._parallel_config

    @_parallel_config.setter
    def _parallel_config(self, value: Any) -> None:
        self.original._parallel_config = value


@functools.cache
def _wrapper_class(original: Any) -> type[ProcessorWrapper]:
    """A wrapper whose `__call__` shows the original's signature: hosts filter keyword arguments by it."""
    signature = inspect.signature(original.__call__)
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = tuple(name for name, p in signature.parameters.items() if p.kind in positional)[2:]

    def call(self: ProcessorWrapper, attn: Any, *args: Any, **kwargs: Any) -> Any:
        return self.run(attn, args, kwargs)

    call.__signature__ = signature  # type: ignore[attr-defined]
    return type(f"Fast{original.__name__}", (ProcessorWrapper,), {"__call__": call, "names": names})


def wrap(original: Any, rotary: Rotary | None) -> ProcessorWrapper:
    """A wrapper around a processor; ValueError for processors that are modules with weights of their own."""
    if isinstance(original, torch.nn.Module):
        raise ValueError(
            f"{type(original).__name__} holds weights (an IP-Adapter): unload the adapter before accelerating"
        )
    return _wrapper_class(type(original))(original, rotary)  # type: ignore[arg-type]
