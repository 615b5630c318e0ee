"""RadialAttention at work on one transformer."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fastdit.attention.backends.base import BACKENDS, Choice
from fastdit.attention.kernel import SparseKernel
from fastdit.attention.sparse import choose_backend
from fastdit.core.layout import TokenLayout
from fastdit.core.ledger import PatchLedger
from fastdit.core.report import MethodReport
from fastdit.methods.radial_attention.config import RadialAttention
from fastdit.methods.radial_attention.mask import PUBLISHED, Geometry, geometry_of, mask_of, order_of
from fastdit.methods.runtime import Forward, Host

FEW_TOKENS = 4096  # below, a sparse call costs about as much as the dense one
KEPT = 8  # geometries whose masks are kept


@dataclass(frozen=True)
class RadialPlan:
    """Run the sparse layers of one forward with the mask of this geometry."""

    geometry: Geometry


@dataclass
class RadialRuntime:
    """Decides which forwards are sparse, makes their masks, and hands the wrappers their kernel."""

    method: RadialAttention
    host: Host
    report: MethodReport = field(default_factory=MethodReport)

    def __post_init__(self) -> None:
        depth, first = len(self.host.blocks()), self.method.dense_layers
        if first >= depth:
            raise ValueError(
                f"dense_layers={first} leaves no layer of this {self.host.label} with {depth} sparse: give less"
            )
        here = not any(parameter.is_meta for parameter in self.host.module.parameters())
        for name, own in (("backend", "auto"), ("dense_backend", "host")):
            backend = getattr(self.method, name)
            if here and backend != own and (absent := BACKENDS[backend].missing()):
                raise ValueError(f"{name}={backend!r} {absent}; or take {name}={own!r}")
        self.layers = range(first, depth)
        self.report.layers = len(self.layers)
        self.kernels: dict[Geometry, SparseKernel] = {}
        self.dense_kernels: dict[int, SparseKernel] = {}  # by number of tokens
        self.start()

    @property
    def uses_attention(self) -> bool:
        return True

    def install(self, ledger: PatchLedger) -> None:
        """Nothing beyond the wrappers."""

    def start(self) -> None:
        for wrapper in self.host.wrappers:
            wrapper.kernel = None
        for kernel in (*self.kernels.values(), *self.dense_kernels.values()):
            kernel.forget()

    def sparse_at(self, step: int, steps: int, noise: float) -> bool:
        """Whether a step is sparse, by its index among `steps`, or outside a run (-1) by its noise."""
        method, (low, high) = self.method, self.method.noise
        if not low <= noise <= high:
            return False
        if step < 0:
            if method.dense_steps is not None or method.dense_end:
                raise ValueError(
                    "dense_steps and dense_end count the steps of a pipeline's run, and this transformer is called "
                    "outside of one: give dense_share or a range of noise"
                )
            return method.dense_share < 1 and noise <= noise_after(method.dense_share, self.host.family.flow_shift)
        first = method.dense_steps
        if first is None:
            first = max(1, round(method.dense_share * steps)) if method.dense_share else 0
        return first <= step < steps - method.dense_end

    def reduces(self, layout: TokenLayout, noise: float) -> frozenset[int]:
        return frozenset()

    def acts(self, layout: TokenLayout, noises: Sequence[float], reduced: Sequence[frozenset[int]] = ()) -> str | None:
        self.report.cautions.clear()
        if self.method.dense_backend != "host":
            return None
        steps = len(noises)
        sparse = [step for step, noise in enumerate(noises) if self.sparse_at(step, steps, noise)]
        if not sparse:
            return (
                f"all {steps} steps of this run are dense (dense_share {self.method.dense_share:g}, dense_steps "
                f"{self.method.dense_steps}, dense_end {self.method.dense_end}): take more steps or fewer dense ones"
            )
        geometry = geometry_of(self.method, layout)
        kernel = self.kernel(geometry)
        if bool(kernel.mask.all()):
            return f"the mask keeps all pairs of {layout.frames} frames of {layout.height * layout.width} tokens"
        free = [step for step in sparse if not reduced or set(self.layers) - reduced[step]]
        if not free:
            return "tokens are merged in every call that would be sparse: narrow the noise or layers of the merging"
        self.caution(kernel, len(free), steps)
        return None

    def caution(self, kernel: SparseKernel, sparse: int, steps: int) -> None:
        """Tell beforehand of a run that is too small or too short to gain."""
        if kernel.tokens < FEW_TOKENS:
            self.report.cautions.append(
                f"{self.method.name}: {kernel.tokens} tokens are few, sparse attention gains no time below about "
                f"{FEW_TOKENS}; take a longer or larger video for speed"
            )
        if sparse * 2 < steps:
            self.report.cautions.append(
                f"{self.method.name}: only {sparse} of {steps} steps are sparse, so little can be gained; take more "
                "steps, or fewer dense ones"
            )

    def check_backend(self, kernel: SparseKernel, forward: Forward) -> None:
        """ValueError where the backends asked for cannot run here; at the first forward, be it sparse or not."""
        if forward.device is None:
            return
        attention: Any = self.host.family.attentions(self.host.module)[0][1]
        channels = attention.inner_dim // attention.heads if hasattr(attention, "inner_dim") else 64
        like = torch.empty((), device=forward.device, dtype=forward.dtype).expand(1, kernel.tokens, 1, channels)
        for asked in filter(None, (kernel, self.dense_kernel(kernel.tokens))):
            choice = choose_backend(like, asked.mask, block_size=asked.block_size, backend=asked.backend)
            if choice.backend.name == "sdpa" and forward.device.type == "cuda" and forward.dtype != torch.float32:
                self.report.cautions.append(
                    f"{self.method.name}: the portable kernel computes {forward.dtype} on CUDA in float32 and may be "
                    f"slower than dense attention ({choice.reason}); install flashinfer or triton"
                )

    def plan(self, forward: Forward) -> RadialPlan | None:
        geometry = geometry_of(self.method, forward.layout)
        if forward.step_index <= 0 and not self.method.neutral:
            self.check_backend(self.kernel(geometry), forward)
        if not self.sparse_at(forward.step_index, forward.num_steps, forward.noise):
            return None
        return None if bool(self.kernel(geometry).mask.all()) else RadialPlan(geometry)

    def apply(self, plan: RadialPlan | None, forward: Forward) -> None:
        sparse = self.kernel(plan.geometry) if plan is not None else None
        dense = self.dense_kernel(forward.layout.tokens + forward.layout.text_length)
        for asked in filter(None, (sparse, dense)):
            asked.forget()
        for index, wrapper in enumerate(self.host.wrappers):
            kernel = sparse if sparse is not None and index in self.layers else dense
            wrapper.kernel = None if index in self.host.reduced else kernel

    def book(self, plan: RadialPlan | None, forward: Forward) -> float:
        sparse = len(set(self.layers) - self.host.reduced) if plan is not None else 0
        density = self.kernel(plan.geometry).density if plan is not None else 1.0
        mean = (sparse * density + len(self.layers) - sparse) / len(self.layers)
        self.report.book(len(self.layers), mean)
        if plan is not None:
            self.note(plan.geometry)
        return mean

    def kernel(self, geometry: Geometry) -> SparseKernel:
        """The kernel of a geometry, made when first asked for."""
        if geometry not in self.kernels:
            while len(self.kernels) >= KEPT:
                del self.kernels[next(iter(self.kernels))]
            mask, order = mask_of(self.method, geometry), order_of(self.method, geometry)
            self.kernels[geometry] = SparseKernel(
                mask, geometry.block_size, geometry.layout.tokens + geometry.layout.text_length,
                self.method.backend, order, self._chosen,
            )  # fmt: skip
        return self.kernels[geometry]

    def dense_kernel(self, tokens: int) -> SparseKernel | None:
        """The kernel of dense calls, if it is not the host's own."""
        if self.method.dense_backend == "host":
            return None
        if tokens not in self.dense_kernels:
            mask = torch.ones(1, 1, dtype=torch.bool)
            self.dense_kernels[tokens] = SparseKernel(mask, tokens, tokens, self.method.dense_backend)
        return self.dense_kernels[tokens]

    def note(self, geometry: Geometry) -> None:
        """Tell in the report which mask runs."""
        tokens = geometry.layout.height * geometry.layout.width
        small = f", unit {geometry.unit} for frames of {tokens} tokens" if geometry.unit != PUBLISHED else ""
        dense = "" if self.method.dense_backend == "host" else f"; dense calls by {self.method.dense_backend}"
        density = self.kernel(geometry).density
        self.report.note = f"mask of density {density:.3f}, blocks of {geometry.block_size}{small}{dense}"

    def _chosen(self, choice: Choice) -> None:
        self.report.backend = f"{choice.backend.name} (sparse)"


def noise_after(share: float, flow_shift: float) -> float:
    """The flow noise at which a `share` of a run's steps is over, on a schedule with this shift."""
    left = 1 - share
    return flow_shift * left / (1 + (flow_shift - 1) * left)
