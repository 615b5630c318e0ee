"""DyDiT at work on one transformer: tables of gates by timestep, sliced weights, and what every forward really did."""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastdit.core.layout import TokenLayout
from fastdit.core.ledger import PatchLedger
from fastdit.core.report import MethodReport
from fastdit.methods.dydit.blocks import RoutedBlock, routed_blocks
from fastdit.methods.dydit.config import DyDiT
from fastdit.methods.dydit.routers import Routers, close_at_random
from fastdit.methods.dydit.tokens import attend_from
from fastdit.methods.dydit.width import Gates, Slices, Slot
from fastdit.methods.guidance import GuidedChannels
from fastdit.methods.lora import LowRank
from fastdit.methods.runtime import Forward, Host
from fastdit.ops.gates import gumbel_gates, open_gates, share_of_rows, with_first_open

Form = Literal["open", "train", "mask", "slice"]
MEMORY = 0.99  # of the running means of shares while training


@dataclass(frozen=True)
class DyDiTPlan:
    """Gates of heads and channels of each block; `keep` tokens of each sample in each block, 0: the router says."""

    form: Form
    heads: tuple[Gates, ...] = ()
    channels: tuple[Gates, ...] = ()
    keep: tuple[int, ...] = ()
    tied: bool = False
    timestep: float | None = None


class DyDiTRuntime:
    """Decides gates by the timestep, hands them to the blocks' layers, and settles what tokens have passed."""

    def __init__(self, method: DyDiT, host: Host) -> None:
        self.method, self.host = method, host
        self.report = MethodReport(layers=len(host.blocks()))
        adapter = method.adapter()
        offers = host.family.offers
        self.shape = dict(adapter.structure) if adapter else {
            "width": method.route != "tokens" and "dynamic_width" in offers,
            "tokens": method.route != "width",
        }  # fmt: skip
        if method.route:
            self.shape["width"] = self.shape["width"] and method.route != "tokens"
            self.shape["tokens"] = self.shape["tokens"] and method.route != "width"
        self.blocks: list[RoutedBlock] = routed_blocks(host, self.shape)
        self.low_rank: LowRank | None = None
        if method not in host.kept:
            host.kept[method] = self._new_routers(adapter)
        self.routers: Routers = host.kept[method]
        if adapter is not None and adapter.kind == "lora":
            self.low_rank = LowRank(adapter.lora_state())
        self._bind_tokens()
        self.guidance = GuidedChannels(method.guidance_channels)
        self.slices = Slices(method.slice_memory * 2**30)
        self.tables: dict[float, tuple[tuple[Gates, ...], tuple[Gates, ...]]] = {}
        self.means: list[Tensor] = []
        self.running_means = torch.tensor(self.shape["shares"]) if self.shape.get("shares") else None  # (L, 3)
        self.plan_done: DyDiTPlan | None = None
        self.forced_open = False
        self.untouched = method.neutral and not host.kept.get("touched")

    def _new_routers(self, adapter: Any) -> Routers:
        """The routers of a checkpoint, or untrained ones, which are always the same."""
        sizes = [(b.embedding, b.heads, b.groups) if self.shape["width"] else (b.embedding, 0, 0) for b in self.blocks]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            routers = Routers(sizes, self.shape["tokens"], self.host.family.text_routing)
        if adapter is None:
            close_at_random(routers, self.method.heads, self.method.channels)
        elif not _on_meta(self.host):
            _load(routers, adapter.own_state(), str(self.method.checkpoint))
        return routers

    def _bind_tokens(self) -> None:
        """Give each block its token router; on the meta device a copy of it there."""
        meta = _on_meta(self.host)
        for block, routers in zip(self.blocks, self.routers.blocks, strict=True):
            router: Any = routers.tokens
            block.routing.router = copy.deepcopy(router).to("meta") if meta and router is not None else router

    @property
    def module(self) -> Routers:
        """The routers; whoever takes them may change them."""
        self.untouched, self.host.kept["touched"] = False, True
        return self.routers

    @property
    def uses_attention(self) -> bool:
        return any(block.parallel for block in self.blocks) and self.shape["tokens"]

    def install(self, ledger: PatchLedger) -> None:
        for block in self.blocks:
            block.install(ledger, self.shape["width"], self.shape["tokens"])
        if self.low_rank is not None:
            self._install_low_rank(ledger)
        self.guidance.install(self.host, ledger)
        ledger.record("what DyDiT leaves in wrappers", self.start)

    def _install_low_rank(self, ledger: PatchLedger) -> None:
        """Slots for the layers that only a low-rank change touches."""
        assert self.low_rank is not None
        known = {slot.path for block in self.blocks for slot in block.width.slots}
        for path in sorted(set(self.low_rank.paths) - known):
            index = next((i for i, block in enumerate(self.blocks) if path.startswith(block.name + ".")), None)
            if index is None:
                raise ValueError(f"checkpoint {self.method.checkpoint} changes {path}, which is in no block of this model")
            slot = Slot(self.host.module.get_submodule(path), "whole", path)
            self.blocks[index].width.slots.append(slot)
            ledger.set_attribute(slot.layer, "forward", slot, f"{path}.forward")

    def start(self) -> None:
        for block in self.blocks:
            block.reset()
        self.slices.clear()
        self.tables.clear()
        self.means, self.plan_done = [], None
        self.guidance.start()
        for wrapper in self.host.wrappers:
            wrapper.queries = None

    def reduces(self, layout: TokenLayout, noise: float) -> frozenset[int]:
        return frozenset()

    def acts(self, layout: TokenLayout, noises: Sequence[float], reduced: Sequence[frozenset[int]] = ()) -> str | None:
        self.report.cautions.clear()
        if self.method.checkpoint is None and not self.method.neutral:
            self.report.cautions.append(
                f"{self.method.name}: its routers are untrained and leave parts out at random: for measuring speed, the "
                "result is wrong"
            )
        return None

    def plan(self, forward: Forward) -> DyDiTPlan:
        if self.forced_open:
            return DyDiTPlan("open")
        if forward.training:
            return DyDiTPlan("train")
        if self.untouched:  # as they were made, all gates are open: nobody has to ask them
            return DyDiTPlan("open")
        tied = self.method.tie_guidance and forward.guided
        keep = self.kept(forward)
        if forward.timestep is None or forward.timestep.is_meta:  # a prediction from the config alone
            heads, channels = self.expected()
            return DyDiTPlan("slice", heads, channels, keep or self.expected_rows(forward), tied)
        times = forward.timestep.tolist()
        if any(time != times[0] for time in times):
            if self.low_rank is not None and self.low_rank.by_time:
                raise ValueError(
                    "low-rank changes that follow the timestep are folded into the weights, so all samples of a batch must "
                    "share their timestep: call the transformer once for each"
                )
            return DyDiTPlan("mask", keep=keep, tied=tied)
        self.check_layers()
        heads, channels = self.table(times[0])
        by_time = self.low_rank is not None and self.low_rank.by_time
        return DyDiTPlan("slice", heads, channels, keep, tied, times[0] if by_time else None)

    def kept(self, forward: Forward) -> tuple[int, ...]:
        """Tokens of each block at a fixed share; () where the router decides."""
        capacity = self.method.tokens if self.method.tokens < 1 else self.method.capacity
        if not self.shape["tokens"] or capacity is None:
            return ()
        shares: list[float] = [float(capacity)] * len(self.blocks) if capacity != "trained" else self.trained_shares()
        return tuple(share_of_rows(share, forward.layout.tokens) for share in shares)

    def trained_shares(self) -> list[float]:
        if self.running_means is None:
            raise ValueError(f"capacity=trained: checkpoint {self.method.checkpoint} holds no shares: give a number")
        return [float(share) for share in self.running_means[:, 2]]

    def expected(self) -> tuple[tuple[Gates, ...], tuple[Gates, ...]]:
        """Gates of a prediction: those of untrained routers, or as many as were open at the end of training."""
        if not self.shape["width"] or self.running_means is None:
            with torch.no_grad():
                return self._gates(torch.zeros(1, self.blocks[0].embedding))
        heads, channels = (
            tuple((True,) * round(float(s) * n) + (False,) * (n - round(float(s) * n)) for s, n in zip(shares, parts))
            for shares, parts in (
                (self.running_means[:, 0], [b.heads for b in self.blocks]),
                (self.running_means[:, 1], [b.groups for b in self.blocks]),
            )
        )
        return heads, channels

    def expected_rows(self, forward: Forward) -> tuple[int, ...]:
        if self.running_means is None or not self.shape["tokens"]:
            return ()
        return tuple(max(1, round(share * forward.layout.tokens)) for share in self.trained_shares())

    def table(self, timestep: float) -> tuple[tuple[Gates, ...], tuple[Gates, ...]]:
        """Gates of heads and channels of each block at a timestep, made once for each of a run's timesteps."""
        if timestep not in self.tables:
            with torch.no_grad():
                self.tables[timestep] = self._gates(self.embedding(timestep))
        return self.tables[timestep]

    def embedding(self, timestep: float) -> Tensor:
        """The embedded timestep (1, C), in float32 so that no gate flips with batch size or device."""
        dtype = next((p.dtype for p in self.host.module.parameters() if p.dtype.itemsize > 1), torch.float32)
        when = torch.tensor([timestep], dtype=torch.float32)
        return self.host.family.time_embedding(self.host.module, when, dtype).detach().float().cpu()

    def _gates(self, embedding: Tensor) -> tuple[tuple[Gates, ...], tuple[Gates, ...]]:
        def gates(router: nn.Module | None) -> Gates:
            if router is None:
                return (True,)
            weight = next(router.parameters())
            logits = router(embedding.to(weight.device, weight.dtype))
            return tuple(with_first_open(open_gates(logits))[0].tolist())

        routers = [(block.heads, block.channels) for block in self.routers.blocks]  # type: ignore[union-attr]
        return tuple(gates(r) for r, _ in routers), tuple(gates(r) for _, r in routers)

    def check_layers(self) -> None:
        """RuntimeError where something exchanged a layer that is to be sliced after it was attached."""
        for block in self.blocks:
            block.check(self.shape["width"] or self.low_rank is not None)

    def apply(self, plan: DyDiTPlan, forward: Forward) -> None:
        plan = plan or DyDiTPlan("open")
        if forward.device is not None and forward.device.type != "meta":
            self.routers.to(forward.device)
        self.guidance.guided = forward.guided
        self.means = []
        native = self.report.backend in ("", "native")
        for index, wrapper in enumerate(self.host.wrappers):
            routing = self.blocks[index].routing
            routed = self.blocks[index].parallel and native and plan.form == "slice" and self.shape["tokens"]
            wrapper.queries = attend_from(routing) if routed else None
        for index, block in enumerate(self.blocks):
            block.prepare(plan.form, plan.keep[index] if plan.keep else 0, plan.tied, forward.layout)
        if plan.form in ("train", "mask"):
            self._mask(plan, forward)
        elif plan != self.plan_done or plan.form == "open":
            self._slice(plan, forward)
        self.plan_done = plan

    def _mask(self, plan: DyDiTPlan, forward: Forward) -> None:
        """Gates of each sample by its own timestep, multiplied."""
        if not self.shape["width"] or forward.timestep is None or _on_meta(self.host):
            for block in self.blocks:
                block.width.open()
            return
        embedding = self.host.family.time_embedding(self.host.module, forward.timestep, forward.dtype)  # (B, C)
        for block, routers in zip(self.blocks, self.routers.blocks, strict=True):
            gates = []
            for router in (routers.heads, routers.channels):
                logits = router(embedding.to(next(router.parameters()).dtype))  # type: ignore[operator,union-attr]
                drawn = gumbel_gates(logits) if plan.form == "train" else open_gates(logits).to(logits.dtype)
                gates.append(with_first_open(drawn).to(forward.device))
            block.gates = gates[0], gates[1]
            block.width.mask(*gates)

    def _slice(self, plan: DyDiTPlan, forward: Forward) -> None:
        device = torch.device("meta") if _on_meta(self.host) else forward.device or torch.device("cpu")
        embedding = None if plan.timestep is None or device.type == "meta" else self.embedding(plan.timestep)
        for index, block in enumerate(self.blocks):
            heads, channels = (plan.heads[index], plan.channels[index]) if plan.heads else ((True,), (True,))
            if not self.shape["width"] or plan.form == "open":
                heads, channels = (True,) * block.heads, (True,) * block.groups
            block.shares = sum(heads) / len(heads), sum(channels) / len(channels)
            build = self._weight_of(heads, channels, embedding, plan.timestep, forward.dtype, device)
            block.width.slice(heads, channels, build if plan.form != "open" or self.low_rank else _own, device)

    def _weight_of(
        self, heads: Gates, channels: Gates, embedding: Tensor | None, timestep: float | None, dtype: torch.dtype,
        device: torch.device,
    ) -> Callable[..., Any]:  # fmt: skip
        def weight_of(slot: Slot, rows: Tensor | None, columns: Tensor | None) -> tuple[Tensor, Tensor | None] | None:
            changed = self.low_rank is not None and slot.path in self.low_rank.paths and device.type != "meta"
            if rows is None and columns is None and not changed:
                return None

            def make() -> tuple[Tensor, Tensor | None]:
                layer: Any = slot.layer
                with torch.no_grad():
                    weight, bias = layer.weight.detach(), layer.bias if layer.bias is None else layer.bias.detach()
                    if changed:
                        assert self.low_rank is not None
                        weight = weight.float() + self.low_rank.delta(slot.path, embedding).to(weight.device)
                    if rows is not None:
                        weight = weight[rows.to(weight.device)]
                        bias = bias if bias is None else bias[rows.to(bias.device)]
                    if columns is not None:
                        weight = weight[:, columns.to(weight.device)]
                    return weight.to(device, dtype), bias if bias is None else bias.to(device, dtype)

            weight = slot.layer.weight
            gates = (heads, channels) if slot.side == "both in" else heads if "heads" in slot.side else channels
            version = 0 if weight.is_inference() else weight._version  # type: ignore[union-attr,operator]
            return self.slices.get((slot.path, gates, timestep, version, weight.dtype, dtype, device), make)

        return weight_of

    def book(self, plan: DyDiTPlan, forward: Forward) -> float:
        self._work = [block.work(forward.layout, self.host.family.norm_over_heads) for block in self.blocks]
        self._booked = self.density([1.0] * len(self.blocks), plan, forward)
        self.report.book(len(self.blocks), self._booked)
        if plan is not None and plan.form == "slice":
            self.note(plan)
        return self._booked

    def density(self, tokens: list[float], plan: DyDiTPlan, forward: Forward) -> float:
        """Share of the routable work, with these shares of tokens where the plan gives no number."""
        done = whole = 0.0
        for index, (block, work) in enumerate(zip(self.blocks, self._work, strict=True)):
            heads, channels = block.shares if plan is not None and plan.form == "slice" else (1.0, 1.0)
            share = plan.keep[index] / work.tokens if plan is not None and plan.keep else tokens[index]
            done += work.macs(heads, channels, share)
            whole += work.macs(1.0, 1.0, 1.0)
        return done / whole

    def note(self, plan: DyDiTPlan) -> None:
        heads, channels = ([s for block in self.blocks for s in (block.shares[i],)] for i in (0, 1))
        self.report.note = (
            f"last step: {sum(heads) / len(heads):.0%} of heads, {sum(channels) / len(channels):.0%} of channels"
        )

    def settle(self) -> tuple[int, float]:
        """Tokens that the routers let pass were counted as if they had not; gated forwards are remembered as shares."""
        plan = self.plan_done or DyDiTPlan("open")
        if plan.form in ("train", "mask"):
            shares = self._gate_shares().detach().mean(2).cpu()  # (L, 3)
            if plan.form == "train":
                before = shares if self.running_means is None else self.running_means
                self.running_means = before.lerp(shares, 1 - MEMORY)
            return 0, self._booked
        spared, tokens = 0, []
        for block, work in zip(self.blocks, self._work, strict=True):
            routing = block.routing
            tokens.append(1 - routing.passed / routing.tokens if routing.tokens else 1.0)
            if not plan.keep:
                spared += block.spared(work)
        if plan.keep or plan.form != "slice":
            return spared, self._booked
        done = whole = 0.0
        for share, block, work in zip(tokens, self.blocks, self._work, strict=True):
            done += work.macs(*block.shares, share)
            whole += work.macs(1.0, 1.0, 1.0)
        self.report.correct(len(self.blocks), done / whole - self._booked)
        if any(block.routing.tokens for block in self.blocks):
            mean = sum(tokens) / len(tokens)
            self.report.note = f"{self.report.note.split(', tokens')[0]}, tokens {mean:.0%}"
        return spared, done / whole

    # --- training -----------------------------------------------------------------------------------------------

    def structure(self) -> dict[str, Any]:
        shares = None if self.running_means is None else [[round(float(x), 4) for x in row] for row in self.running_means]
        sizes = {"heads": [b.heads for b in self.blocks], "groups": [b.groups for b in self.blocks]}
        return {"width": self.shape["width"], "tokens": self.shape["tokens"], **sizes, "shares": shares}

    def _gate_shares(self) -> Tensor:
        """Open shares (L, 3, B) of heads, channels and tokens in the last gated forward, with gradients."""
        rows = []
        for block in self.blocks:
            gate = block.routing.gate
            like = block.gates[0] if block.gates else gate
            if like is None:
                rows.append(torch.ones(3, 1))
                continue
            ones = torch.ones(len(like), device=like.device)
            heads, channels = (g.float().mean(1) for g in block.gates) if block.gates else (ones, ones)
            tokens = ones if gate is None else _visual(gate, block).float().mean(1)
            rows.append(torch.stack([heads, channels, tokens.to(heads.device)]))
        return torch.stack(torch.broadcast_tensors(*rows))

    def executed(self) -> Tensor | None:
        """Share (B,) of the routable work in the last gated forward, with gradients. DyDiT's FLOPs-aware loss, eq. 7."""
        shares = self._gate_shares()
        done: Any = 0.0
        whole = 0.0
        for (heads, channels, tokens), work in zip(shares, self._work, strict=True):
            done = done + work.macs(heads, channels, tokens)
            whole += work.macs(1.0, 1.0, 1.0)
        return done / whole

    @property
    def memory(self) -> dict[str, Tensor]:
        """What training has told besides the parameters, for its checkpoints: the running means of shares."""
        return {} if self.running_means is None else {"shares": self.running_means}

    @memory.setter
    def memory(self, values: dict[str, Tensor]) -> None:
        self.running_means = values.get("shares")

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Within, every gate is open: complete-model supervision."""
        self.forced_open = True
        try:
            yield
        finally:
            self.forced_open = False

    def intervals(self, layout: TokenLayout) -> Sequence[tuple[float, float]]:
        return [(0.0, 1.0)]


def _visual(gate: Tensor, block: RoutedBlock) -> Tensor:
    routing = block.routing
    return gate[:, routing.before : gate.shape[1] - routing.behind]


def _own(slot: Slot, rows: Tensor | None, columns: Tensor | None) -> None:
    """The host's own weight."""


def _on_meta(host: Host) -> bool:
    return next(host.module.parameters()).is_meta


def _load(module: nn.Module, state: dict[str, Tensor], checkpoint: str) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        text = " ".join(str(error).split())
        raise ValueError(f"checkpoint {checkpoint} does not hold the routers of this model: {text}") from None
