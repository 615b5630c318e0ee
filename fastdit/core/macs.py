"""Counting multiply-accumulates (MACs; FLOPs are twice that): formulas, and a count of a whole forward without work.

The dense count of a transformer is taken once per input shape by running a skeleton of it on the meta device; whoever
accelerates books the difference it makes, with its true sparsity and the cost of its own matching and routing.
"""

import copy
import math
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def linear_macs(rows: int, in_features: int, out_features: int) -> int:
    """MACs of a linear layer on `rows` rows."""
    return rows * in_features * out_features


def attention_macs(queries: int, keys: int, width: int) -> int:
    """MACs of scores and weighted sum of one sample, `width` = heads x head_dim: 2 * Q * K * width."""
    return 2 * queries * keys * width


_counter: ContextVar["CountMacs | None"] = ContextVar("counter", default=None)


def book_macs(macs: int) -> None:
    """Add work to the count that is open, if any: for kernels whose operations are not seen, such as sparse ones."""
    counter = _counter.get()
    if counter is not None:
        counter.total += macs


class CountMacs(TorchFunctionMode):
    """Within this mode `total` grows by the MACs of linear layers, convolutions, matrix products and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __enter__(self) -> "CountMacs":
        self._token = _counter.set(self)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        _counter.reset(self._token)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            query = args[0] if args else kwargs["query"]
            key = args[1] if len(args) > 1 else kwargs["key"]
            value = args[2] if len(args) > 2 else kwargs["value"]
            self.total += math.prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        if func is torch.nonzero and args[0].is_meta:  # which entries is unknown: count as if all
            return torch.empty(args[0].numel(), args[0].ndim, dtype=torch.long, device="meta")
        result = func(*args, **kwargs)
        if func is F.linear:
            self.total += math.prod(result.shape) * args[0].shape[-1]
        elif func in (F.conv2d, F.conv3d, F.conv1d, torch.conv2d, torch.conv3d, torch.conv1d):
            self.total += math.prod(result.shape) * math.prod(args[1].shape[1:])
        elif func in (torch.matmul, torch.bmm, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.bmm):
            self.total += math.prod(result.shape) * args[0].shape[-1]
        return result


def skeleton_of(model: nn.Module) -> nn.Module:
    """A copy of a model's structure on the meta device: built from its config where it has one, else copied."""
    model = getattr(model, "_orig_mod", model)
    if hasattr(model, "from_config"):
        with torch.device("meta"):
            return type(model).from_config(model.config).eval()  # type: ignore[union-attr]
    memo = {
        id(t): nn.Parameter(t.detach().to("meta"), requires_grad=False) if isinstance(t, nn.Parameter) else t.to("meta")
        for t in [*model.parameters(), *model.buffers()]
    }
    return copy.deepcopy(model, memo).eval()


def forward_macs(skeleton: nn.Module, args: tuple, kwargs: dict) -> int:
    """MACs of one dense forward of a meta-device skeleton on inputs of these shapes."""
    with torch.no_grad(), torch.device("meta"), CountMacs() as counter:
        skeleton(*_to_meta(args), **_to_meta(kwargs))
    return counter.total


def signature_of(args: tuple, kwargs: dict) -> tuple:
    """A hashable key of the shapes in a call's arguments."""

    def key(value: Any) -> Any:
        if torch.is_tensor(value):
            return tuple(value.shape), value.dtype
        if isinstance(value, dict):
            return tuple((k, key(v)) for k, v in value.items())
        if isinstance(value, (list, tuple)):
            return tuple(key(v) for v in value)
        return value if isinstance(value, (int, float, str, bool, type(None))) else type(value)

    return key(args), key(kwargs)


def _to_meta(value: Any) -> Any:
    if torch.is_tensor(value):
        floating = torch.float32 if value.is_floating_point() else value.dtype
        return torch.empty(value.shape, dtype=floating, device="meta")
    if isinstance(value, dict):
        return {k: _to_meta(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_to_meta(v) for v in value)
    return value
