"""DyDiT at work on one transformer: gates by timestep, sliced weights, gathered tokens, and what was really done."""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastdit.core.layout import TokenLayout
from fastdit.core.ledger import PatchLedger
from fastdit.core.report import MethodReport
from fastdit.methods.dydit.account import Account
from fastdit.methods.dydit.blocks import RoutedBlock, routed_blocks
from fastdit.methods.dydit.config import DyDiT
from fastdit.methods.dydit.plan import DyDiTPlan, GateTables
from fastdit.methods.dydit.routers import Routers, close_at_random
from fastdit.methods.dydit.slices import Slices, sliced_weights
from fastdit.methods.dydit.tokens import attend_from
from fastdit.methods.dydit.width import Slot
from fastdit.methods.guidance import GuidedChannels
from fastdit.methods.lora import LowRank
from fastdit.methods.runtime import Forward, Host
from fastdit.ops.gates import gumbel_gates, open_gates, share_of_rows, with_first_open

OPEN = DyDiTPlan("open")
ALL_OPEN = "every gate was open: its routers are hardly trained"


class DyDiTRuntime:
    """Decides gates by the timestep, hands them to the blocks' layers, and settles what tokens have passed."""

    def __init__(self, method: DyDiT, host: Host) -> None:
        self.method, self.host = method, host
        self.report = MethodReport(layers=len(host.blocks()))
        self.on_meta = next(host.module.parameters()).is_meta
        adapter = method.adapter()
        shape = adapter.structure if adapter else {"width": "dynamic_width" in host.family.offers, "tokens": True}
        self.width: bool = shape["width"] and method.route != "tokens"
        self.tokens: bool = shape["tokens"] and method.route != "width"
        self._check(shape)
        self.blocks: list[RoutedBlock] = routed_blocks(host, self.width, self.tokens)
        if method not in host.kept:
            host.kept[method] = self._new_routers(adapter, shape)
        self.routers: Routers = host.kept[method]
        self.untouched = method.neutral and not host.kept.get("touched")
        self.low_rank = LowRank(adapter.lora_state()) if adapter is not None and adapter.kind == "lora" else None
        self.tables = GateTables(host, self.blocks, self.routers)
        self.account = Account(self.blocks, shape.get("shares"))
        self.guidance = GuidedChannels(method.guidance_channels)
        self.slices = Slices(method.slice_memory * 2**30)
        self.plan_done: DyDiTPlan = OPEN
        self.forced_open = False
        for block, routers in zip(self.blocks, self.routers.blocks, strict=True):
            router: Any = routers.tokens if self.tokens else None
            block.routing.router = copy.deepcopy(router).to("meta") if self.on_meta and router is not None else router

    def _new_routers(self, adapter: Any, shape: dict[str, Any]) -> Routers:
        """The routers of a checkpoint, or untrained ones, which are always the same."""
        width, tokens = (self.width, self.tokens) if adapter is None else (shape["width"], shape["tokens"])
        sizes = [(b.embedding, b.heads, b.groups) if width else (b.embedding, 0, 0) for b in self.blocks]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            routers = Routers(sizes, tokens, self.host.family.text_routing)
        if adapter is None:
            close_at_random(routers, self.method.heads, self.method.channels)
        elif not self.on_meta:
            _load(routers, adapter.own_state(), str(self.method.checkpoint))
        return routers

    def _check(self, shape: dict[str, Any]) -> None:
        """ValueError for options that a checkpoint has no routers for."""
        method, lacks = self.method, f"checkpoint {self.method.checkpoint} routes no"
        if method.route in ("all", "width") and not shape["width"]:
            raise ValueError(f"route={method.route}: {lacks} width: leave it out")
        if method.route in ("all", "tokens") and not shape["tokens"]:
            raise ValueError(f"route={method.route}: {lacks} tokens: leave it out")
        if not self.tokens and (method.capacity is not None or method.tie_guidance):
            option = "tie_guidance" if method.capacity is None else "capacity"
            raise ValueError(f"{option} is about tokens, and {lacks} tokens: leave it out")
        if method.capacity == "trained" and not shape.get("shares"):
            raise ValueError(f"capacity=trained: checkpoint {method.checkpoint} holds no shares: give a number")

    @property
    def module(self) -> Routers:
        """The routers; whoever takes them may change them."""
        self.untouched, self.host.kept["touched"] = False, True
        return self.routers

    @property
    def uses_attention(self) -> bool:
        return self.tokens and any(block.parallel for block in self.blocks)

    def install(self, ledger: PatchLedger) -> None:
        for block in self.blocks:
            block.install(ledger, self.width, self.tokens)
        if self.low_rank is not None:
            self._install_low_rank(self.low_rank, ledger)
        self.guidance.install(self.host, ledger)
        ledger.record("what DyDiT leaves in wrappers", self.start)

    def _install_low_rank(self, low_rank: LowRank, ledger: PatchLedger) -> None:
        """Slots for the layers that only a low-rank change touches."""
        known = {slot.path for block in self.blocks for slot in block.width.slots}
        for path in sorted(set(low_rank.paths) - known):
            home = next((block for block in self.blocks if path.startswith(block.name + ".")), None)
            if home is None:
                raise ValueError(
                    f"checkpoint {self.method.checkpoint} changes {path}, which is in no block of this model"
                )
            slot = Slot(self.host.module.get_submodule(path), "whole", path)
            home.width.slots.append(slot)
            home.install_slot(slot, ledger)

    def start(self) -> None:
        for block in self.blocks:
            block.reset()
        self.slices.clear()
        self.tables.known.clear()
        self.plan_done = OPEN
        self.guidance.start()
        for wrapper in self.host.wrappers:
            wrapper.queries = None

    def reduces(self, layout: TokenLayout, noise: float) -> frozenset[int]:
        return frozenset()

    def acts(self, layout: TokenLayout, noises: Sequence[float], reduced: Sequence[frozenset[int]] = ()) -> str | None:
        self.report.cautions.clear()
        if self.method.checkpoint is None and not self.method.neutral:
            self.report.cautions.append(
                f"{self.method.name}: its routers are untrained and leave parts out at random: for measuring speed, "
                "the result is wrong"
            )
        return None

    # --- before a forward ---------------------------------------------------------------------------------------

    def plan(self, forward: Forward) -> DyDiTPlan:
        if forward.training and not self.forced_open:
            return DyDiTPlan("train")
        if self.forced_open or self.untouched:  # routers as they were made open all gates: nobody has to ask them
            return OPEN
        tied = self.method.tie_guidance and forward.guided
        keep = self._kept(forward.layout.tokens)
        if forward.timestep is None or forward.timestep.is_meta:  # a prediction from the config alone
            running = self.account.running
            return DyDiTPlan("slice", *self.tables.expected(running), keep or self._expected(forward.layout.tokens))
        by_time = self.low_rank is not None and self.low_rank.by_time
        times = forward.timestep.tolist()
        if any(time != times[0] for time in times):
            if by_time:
                raise ValueError(
                    "low-rank changes that follow the timestep are folded into the weights, so all samples of a batch "
                    "must share their timestep: call the transformer once for each"
                )
            return DyDiTPlan("mask", keep=keep, tied=tied)
        for block in self.blocks:
            block.check()
        return DyDiTPlan("slice", *self.tables.at(times[0]), keep, tied, times[0] if by_time else None)

    def _kept(self, tokens: int) -> tuple[int, ...]:
        """Tokens of each block at a fixed share; () where the router decides."""
        capacity = self.method.tokens if self.method.tokens < 1 else self.method.capacity
        if not self.tokens or capacity is None:
            return ()
        if not isinstance(capacity, str):
            return (share_of_rows(capacity, tokens),) * len(self.blocks)
        assert self.account.running is not None
        return tuple(share_of_rows(float(share), tokens) for share in self.account.running[:, 2])

    def _expected(self, tokens: int) -> tuple[int, ...]:
        """Tokens of each block as they were at the end of training; () where nothing is known."""
        if self.account.running is None or not self.tokens:
            return ()
        return tuple(max(1, round(float(share) * tokens)) for share in self.account.running[:, 2])

    def apply(self, plan: DyDiTPlan | None, forward: Forward) -> None:
        plan = plan or OPEN
        if not self.on_meta and forward.device is not None:
            self.routers.to(forward.device)
        self.guidance.guided = forward.guided
        native = self.report.backend in ("", "native")
        for block, wrapper in zip(self.blocks, self.host.wrappers, strict=False):
            routed = block.parallel and native and plan.form == "slice" and self.tokens
            wrapper.queries = attend_from(block.routing) if routed else None
        for index, block in enumerate(self.blocks):
            block.prepare(plan.form, plan.keep[index] if plan.keep else 0, plan.tied, forward.layout)
        if plan.form in ("train", "mask"):
            self.tables.known.clear()  # what is trained decides otherwise the next time
            self._mask(plan, forward)
        else:
            self._slice(plan, forward)
        self.plan_done = plan

    def _mask(self, plan: DyDiTPlan, forward: Forward) -> None:
        """Gates of each sample by its own timestep, multiplied; a plain LoRA is folded all the same."""
        self._slice(OPEN, forward)
        if not self.width or forward.timestep is None or self.on_meta:
            return
        embedding = self.host.family.time_embedding(self.host.module, forward.timestep, forward.dtype)  # (B, C)
        decide: Callable[[Tensor], Tensor] = gumbel_gates if plan.form == "train" else open_gates
        for block, routers in zip(self.blocks, self.routers.blocks, strict=True):
            gates = []
            for router in (routers.heads, routers.channels):
                logits = router(embedding.to(next(router.parameters())))  # type: ignore[operator,union-attr]
                gates.append(with_first_open(decide(logits).to(logits.dtype)).to(forward.device))
            block.gates = gates[0], gates[1]
            block.width.mask(*gates)

    def _slice(self, plan: DyDiTPlan, forward: Forward) -> None:
        device = torch.device("meta") if self.on_meta else forward.device or torch.device("cpu")
        follows = plan.timestep is not None and not self.on_meta
        embedding = self.tables.embedding(plan.timestep) if follows and plan.timestep is not None else None
        low_rank = None if self.on_meta or (plan.form == "open" and self._by_time) else self.low_rank
        for index, block in enumerate(self.blocks):
            routed = self.width and plan.form == "slice"
            heads = plan.heads[index] if routed else (True,) * block.heads
            channels = plan.channels[index] if routed else (True,) * block.groups
            block.shares = sum(heads) / len(heads), sum(channels) / len(channels)
            key = heads, channels, plan.timestep
            weight_of = sliced_weights(self.slices, low_rank, embedding, key, forward.dtype, device)
            block.width.slice(heads, channels, weight_of, device)

    @property
    def _by_time(self) -> bool:
        return self.low_rank is not None and self.low_rank.by_time

    # --- after it ------------------------------------------------------------------------------------------------

    def book(self, plan: DyDiTPlan, forward: Forward) -> float:
        density = self.account.begin(plan, forward.layout, self.host.family.norm_over_heads)
        self.report.book(len(self.blocks), density)
        if plan.form == "slice":
            heads, channels = (sum(b.shares[i] for b in self.blocks) / len(self.blocks) for i in (0, 1))
            self.report.note = f"last step: {heads:.0%} of heads, {channels:.0%} of channels"
        return density

    def settle(self) -> tuple[int, float]:
        """Tokens that pass by were counted as if they had not, where the router decides which ones do."""
        wrappers = self.host.wrappers
        for index, block in enumerate(self.blocks):  # what stood in for attention, or saw fewer tokens, had its own way
            block.by_queries = bool(wrappers) and wrappers[index].kernel is None and wrappers[index].tokens is None
            block.by_projection = not wrappers or wrappers[index].tokens is None
        spared, density, tokens = self.account.settle(self.plan_done)
        opened = density == 1 and self.plan_done.form == "slice" and not self.report.density_below(1)
        if opened or self.report.reason == ALL_OPEN:  # a later step may close some; other reasons are not ours
            self.report.reason = ALL_OPEN if opened else ""
        self.report.correct(len(self.blocks), density - self.account.planned)
        if tokens is not None:
            self.report.note += f", {tokens:.0%} of tokens"
        return spared, density

    # --- training ------------------------------------------------------------------------------------------------

    def structure(self) -> dict[str, Any]:
        running = self.account.running
        shares = None if running is None else [[round(float(share), 4) for share in row] for row in running]
        sizes = {"heads": [block.heads for block in self.blocks], "groups": [block.groups for block in self.blocks]}
        first: Any = self.routers.blocks[0]
        routed = {"width": first.heads is not None, "tokens": first.tokens is not None}
        return {**routed, **sizes, "shares": shares}

    def executed(self) -> Tensor | None:
        return self.account.executed()

    @property
    def memory(self) -> dict[str, Tensor]:
        """What training has told besides the parameters, for its checkpoints: the running means of shares."""
        return {} if self.account.running is None else {"shares": self.account.running}

    @memory.setter
    def memory(self, values: dict[str, Tensor]) -> None:
        self.account.running = values.get("shares")

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


def _load(module: nn.Module, state: dict[str, Tensor], checkpoint: str) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        text = " ".join(str(error).split())
        raise ValueError(f"checkpoint {checkpoint} does not hold the routers of this model: {text}") from None
