"""Peak memory of a forward's activations, found on the meta device: nothing is computed."""

import weakref
from collections import Counter
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from fastdit.core.macs import CountMacs


class _Watch(TorchDispatchMode):
    """Follows the memory of every tensor that an operation makes, until nothing refers to it any more."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.known = known  # storages that are no activations
        self.users: Counter[int] = Counter()
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if torch.is_tensor(tensor):
                self._follow(tensor)
        return result

    def _follow(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        if not self.users[key]:
            self.now += size
            self.peak = max(self.peak, self.now)
        self.users[key] += 1
        weakref.finalize(tensor, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.users[key] -= 1
        if not self.users[key]:
            del self.users[key]
            self.now -= size


def peak_activations(skeleton: nn.Module, inputs: dict[str, Any], dtype: torch.dtype) -> int:
    """Bytes of activations at the peak of one forward of a model on the meta device, all in `dtype`.

    What kernels use inside themselves is not seen; attention is taken to keep no scores, as the fused kernels do.
    """
    given = {
        name: value.to("meta", torch.float32 if value.is_floating_point() else value.dtype)
        if torch.is_tensor(value)
        else value
        for name, value in inputs.items()
    }
    known = {t.untyped_storage()._cdata for t in (*skeleton.parameters(), *skeleton.buffers())}
    with torch.no_grad(), torch.device("meta"), _Watch(known) as watch, CountMacs():  # which keeps no scores
        skeleton(**given)
    return watch.peak * dtype.itemsize // torch.float32.itemsize
