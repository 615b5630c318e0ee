"""What a backend of sparse attention is, their registry, and the choice among them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from types import ModuleType

import torch
from torch import Tensor

from fastdit.attention.cover import pack
from fastdit.core.registry import Registry


@dataclass(frozen=True, eq=False)
class SparseCall:
    """One call whose arguments have been checked: the mask is on the CPU and `lengths` has an entry per sample."""

    q: Tensor  # (B, S, H, D)
    k: Tensor  # (B, S, H, D)
    v: Tensor  # (B, S, H, D)
    mask: Tensor  # (nb, nb) bool
    block_size: int
    lengths: tuple[int, ...]  # keys from there on are never attended, queries from there on give 0

    @cached_property
    def packed(self) -> bytes:
        """The mask's bits, a key for whatever is computed from it."""
        return pack(self.mask.numpy())

    @property
    def padded(self) -> bool:
        """Whether any sample ends before the sequence does."""
        return min(self.lengths) < self.q.shape[1]

    @property
    def differentiable(self) -> bool:
        """Whether the result has to carry a gradient."""
        return torch.is_grad_enabled() and any(x.requires_grad for x in (self.q, self.k, self.v))

    @property
    def beyond(self) -> Tensor:
        """Which tokens are padding, bool (B, S)."""
        tokens = torch.arange(self.q.shape[1], device=self.q.device)
        return tokens >= torch.tensor(self.lengths, device=self.q.device)[:, None]

    def without_padding(self) -> SparseCall:
        """The same call with zeros for padded tokens: a kernel may multiply what it masks, and 0 times NaN is NaN."""
        if not self.padded:
            return self
        beyond = self.beyond[:, :, None, None]
        return replace(self, **{name: getattr(self, name).masked_fill(beyond, 0) for name in "qkv"})


@dataclass(frozen=True)
class Backend:
    """One way to compute a call; the functions answer in one line, or None where nothing stands against it."""

    name: str
    summary: str
    attend: Callable[[SparseCall], Tensor]  # -> (B, S, H, D)
    missing: Callable[[], str | None]  # why it cannot run on this machine
    refuses: Callable[[SparseCall], str | None]  # why it cannot take this call
    # How much "auto" wants it for a call (0: only by name; the highest wins), and the reason.
    suits: Callable[[SparseCall], tuple[int, str]]


@dataclass(frozen=True)
class Choice:
    """The backend of a call, and why."""

    backend: Backend
    reason: str


BACKENDS: Registry[Backend] = Registry("attention backend")


def choose(name: str, call: SparseCall) -> Choice:
    """The backend called `name`, or for "auto" the one that suits best; ValueError if it cannot take the call."""
    if name != "auto":
        backend = BACKENDS[name]
        against = _against(backend, call)
        if against:
            raise ValueError(f"attention backend {name!r} {against}; or choose backend='auto'")
        return Choice(backend, "asked for by name")
    fit, passed = [], []
    for other, backend in BACKENDS.items():
        wanted, reason = backend.suits(call)
        if wanted:
            against = _against(backend, call)
            if against:
                passed.append(f"{other} {against}")
            else:
                fit.append((wanted, other, reason))
    wanted, best, reason = max(fit)
    return Choice(BACKENDS[best], "; ".join([reason, *passed]))


def _against(backend: Backend, call: SparseCall) -> str | None:
    return backend.refuses(call) or absent(backend)


@cache  # each failed import searches the whole path again
def absent(backend: Backend) -> str | None:
    """Why a backend cannot run on this machine, found out once per process; None if it can."""
    return backend.missing()


def load(module: str, extra: str = "") -> ModuleType:
    """An optional library; ImportError in one line that says which extra installs it, or why it does not load."""
    package = module.split(".")[0]
    try:
        return importlib.import_module(module)
    except Exception as error:  # a wheel built for another torch may raise anything
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            raise ImportError(f'needs {package}: pip install "fastdit[{extra or package}]"') from error
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise ImportError(
            f"needs {package}, which does not load here ({type(error).__name__}: {first[:120]})"
        ) from error


def needs_cuda(call: SparseCall) -> str | None:
    """The reason against a CUDA backend for tensors elsewhere."""
    device = call.q.device.type
    return None if device == "cuda" else f"runs on CUDA and the tensors are on {device}: move them"
