"""Replacing the one scaled-dot-product attention call inside a host's processor."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class SwapAttention(TorchFunctionMode):
    """While open, `F.scaled_dot_product_attention` is answered by `replacement`, and the calls are counted."""

    def __init__(self, replacement: Callable[..., Tensor]) -> None:
        super().__init__()
        self.replacement, self.calls = replacement, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.calls += 1
            return self.replacement(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


@torch.compiler.disable  # a compiled graph would hold the replacement and meet the open mode too: replaced twice
def call_swapped(
    original: Callable[..., Any],
    arguments: dict[str, Any],
    replacement: Callable[..., Tensor],
    describe: Callable[[], str],
) -> Any:
    """`original(**arguments)` with its one attention call answered by `replacement`; RuntimeError if it is not one."""
    with SwapAttention(replacement) as swap:
        result = original(**arguments)
    if swap.calls != 1:
        raise RuntimeError(
            f"{describe()} made {swap.calls} scaled_dot_product_attention calls where one is expected: choose the "
            "native backend (transformer.set_attention_backend('native')) for methods inside the attention call"
        )
    return result
