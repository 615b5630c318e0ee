"""A routed block: its layers, its routing of tokens, and what they are told for a forward."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastdit.core.layout import TokenLayout
from fastdit.core.ledger import PatchLedger
from fastdit.methods.dydit.tokens import BlockTap, StreamTap, TokenGate, TokenRouting
from fastdit.methods.dydit.width import BlockWidth, HeadsOfNorm, Slot, at, routed_layers
from fastdit.methods.dydit.work import BlockWork
from fastdit.methods.runtime import Host
from fastdit.models.base import BlockGroup
from fastdit.ops.gates import group_count


@dataclass(eq=False)
class RoutedBlock:
    """One block of the host; `gates` are those of heads (B, H) and channels (B, G) in the training form."""

    name: str
    block: nn.Module
    group: BlockGroup
    width: BlockWidth
    routing: TokenRouting
    embedding: int
    taps_text: bool
    shares: tuple[float, float] = (1.0, 1.0)
    by_queries: bool = True  # attention ran from the queries of tokens that were let in
    by_projection: bool = True  # and their queries alone were projected
    installed: list[Slot] = field(default_factory=list)
    gates: tuple[Tensor, ...] = field(default=())

    @property
    def parallel(self) -> bool:
        return self.group.parallel

    @property
    def heads(self) -> int:
        return self.width.heads

    @property
    def groups(self) -> int:
        return self.width.groups

    def install(self, ledger: PatchLedger, width: bool, tokens: bool) -> None:
        """Stand in for the forwards of the routed layers, through the ledger."""
        group, routing, name = self.group, self.routing, self.name
        for slot in self.width.slots:
            if width or slot.routing is not None:
                self.install_slot(slot, ledger)
        for norm, stand_in in zip(("norm_q", "norm_k"), self.width.norms):
            module = at(at(self.block, group.attention), norm)
            ledger.set_attribute(module, "forward", stand_in, f"{name}.{group.attention}.{norm}.forward")
        ledger.record(f"{name}.{group.attention}.heads", self.reset)
        if not tokens:
            return
        if self.parallel or self.taps_text:
            tap = BlockTap(self.block, routing, group.hidden_states, decides=self.parallel)
            ledger.set_attribute(self.block, "forward", tap, f"{name}.forward")
        if not self.parallel:
            assert group.feed_forward and group.feed_forward_norm
            norm, feed_forward = at(self.block, group.feed_forward_norm), at(self.block, group.feed_forward)
            ledger.set_attribute(norm, "forward", StreamTap(norm, routing), f"{name}.{group.feed_forward_norm}.forward")
            ledger.set_attribute(
                feed_forward, "forward", TokenGate(feed_forward, routing), f"{name}.{group.feed_forward}.forward"
            )

    def install_slot(self, slot: Slot, ledger: PatchLedger) -> None:
        """Let a slot stand for its layer's forward."""
        ledger.set_attribute(slot.layer, "forward", slot, f"{slot.path}.forward")
        self.installed.append(slot)

    def reset(self) -> None:
        """As the host has it, with nothing decided."""
        self.width.open()
        self.routing.mode = "all"
        self.routing.forget()
        self.gates, self.shares = (), (1.0, 1.0)

    def prepare(self, form: str, keep: int, tied: bool, layout: TokenLayout) -> None:
        """What the routing is to do in the next forward."""
        routing, self.gates = self.routing, ()
        routing.forget()
        routing.keep, routing.tied = keep, tied
        routing.mode = {"train": "train", "mask": "mask", "open": "all"}.get(form, "top" if keep else "rows")  # type: ignore[assignment]
        text = layout.text_length if self.parallel else 0
        routing.before, routing.behind = (text, 0) if layout.text == "first" else (0, text)

    def check(self) -> None:
        """RuntimeError where layers to be cut were exchanged, fused or wrapped since they were attached."""
        for slot in self.installed:
            path = slot.path.removeprefix(self.name + ".")
            if at(self.block, path) is not slot.layer:
                raise RuntimeError(
                    f"dydit cuts {slot.path}, which was exchanged since (a LoRA does this): fuse it and "
                    "unload it, then call set_methods(...) again"
                )

    def work(self, layout: TokenLayout, whole_qk: bool) -> BlockWork:
        joint = self.parallel or at(self.block, f"{self.group.attention}.add_q_proj") is not None
        text = layout.text_length if joint else 0
        return BlockWork(layout.tokens, text, self.width.width, self.width.channels, self.parallel, whole_qk)

    def spared(self, work: BlockWork) -> int:
        """MACs of tokens that have passed, which were counted before."""
        routing, (heads, channels) = self.routing, self.shares
        if not routing.passed:
            return 0
        if not self.parallel:
            return round(routing.passed * 2 * work.width * work.channels * channels)
        projections = 1 + self.by_projection  # output, and queries
        linear = projections * work.width**2 * heads + 2 * work.width * work.channels * channels
        attention = 2 * routing.length * work.width * heads
        rows = routing.passed - routing.padded if routing.queries is not None and self.by_queries else 0
        return round(routing.passed * linear + rows * attention)


def routed_blocks(host: Host, width: bool, tokens: bool) -> list[RoutedBlock]:
    """The blocks of a host; ValueError where a layer cannot be routed."""
    found = []
    family = host.family
    for name, block, group in host.blocks():
        attention: Any = at(block, group.attention)
        if group.feed_forward is None and not group.parallel:
            raise ValueError(f"{name}: family {family.name} names no feed-forward layer to route")
        routing = TokenRouting(None)
        slots = routed_layers(block, name, group, routing if tokens else None, family.norm_over_heads)
        before, behind = mlp_layers(block, group)
        if width:
            _check_sliceable(name, block, group, attention, slots, before, behind)
        cut_norms = ("norm_q", "norm_k") if family.norm_over_heads and width else ()
        norms = [HeadsOfNorm(at(attention, norm)) for norm in cut_norms]
        heads, channels = attention.heads, before.out_features
        sized = BlockWidth(
            attention, heads, group_count(heads, channels), before.in_features, channels, slots, norms
        )  # fmt: skip
        found.append(RoutedBlock(name, block, group, sized, routing, before.in_features, family.text_routing))
    return found


def mlp_layers(block: nn.Module, group: BlockGroup) -> tuple[Any, Any]:
    """The two linear layers of a block's MLP; in a parallel block the second is over attention's result too."""
    paths = (
        ("proj_mlp", "proj_out")
        if group.parallel
        else (f"{group.feed_forward}.net.0.proj", f"{group.feed_forward}.net.2")
    )
    return at(block, paths[0]), at(block, paths[1])


def _check_sliceable(
    name: str, block: nn.Module, group: BlockGroup, attention: Any, slots: list[Any], before: Any, behind: Any
) -> None:
    """ValueError for layers whose weights cannot be cut: quantised, fused, wrapped, gated or chunked."""
    if getattr(attention, "fused_projections", False):
        raise ValueError(f"dydit cuts single projections, and those of {name} are fused: call unfuse_qkv_projections()")
    if getattr(block, "_chunk_size", None) is not None:
        raise ValueError(
            f"dydit routes whole sequences, and {name} runs its feed-forward layer in chunks: switch it off"
        )
    for slot in slots:
        layer = slot.layer
        if hasattr(layer, "base_layer"):
            if not slot.layer.training:
                raise ValueError(f"dydit cuts weights, and {slot.path} is wrapped by a LoRA: fuse it and unload it")
        elif type(layer.weight) not in (nn.Parameter, torch.Tensor) or not layer.weight.is_floating_point():
            raise ValueError(f"dydit cuts weights, and {slot.path} is quantised: load the model unquantised")
    if before is not None and behind is not None and not group.parallel and before.out_features != behind.in_features:
        raise ValueError(f"dydit: the feed-forward layer of {name} is gated, whose channels cannot be cut in groups")
