"""What both training examples share: the Muon optimiser, averaged weights, a schedule, saving whole or not at all."""

import contextlib
import copy
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal by Newton-Schulz iterations (Jordan et al., 2024), for weights as (out, in) matrices."""

    def __init__(self, params, lr: float, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                shapes.setdefault(p.shape, []).append(p)
            for params in shapes.values():
                gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
                gradients = torch.stack([g.flatten(1) for g in gradients])  # (M, out, in)
                state = self.state[params[0]]
                average = state.setdefault("momentum", torch.zeros_like(gradients))
                average.lerp_(gradients, 1 - group["momentum"])
                update = orthogonal(gradients.lerp(average, group["momentum"]))
                scale = 0.2 * max(update.shape[-2:]) ** 0.5  # the RMS of an Adam step
                for p, u in zip(params, update, strict=True):
                    p.add_(u.view_as(p), alpha=-group["lr"] * scale)


def orthogonal(x: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Roughly the nearest semi-orthogonal matrix of each (M, out, in): a quintic Newton-Schulz iteration."""
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


def optimizers(blocks: nn.Module, weights: list[nn.Parameter], lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the large layers of `blocks`, AdamW for the rest of `weights`."""
    matrices = [p for p in blocks.parameters() if p.ndim >= 2 and min(p.flatten(1).shape) >= 32]
    known = {id(p) for p in matrices}
    rest = [p for p in weights if id(p) not in known]
    return [
        Muon([{"params": matrices, "peak": lr}], lr=lr),
        torch.optim.AdamW([{"params": rest, "peak": lr}], lr=lr, betas=(0.9, 0.99), weight_decay=0.0),
    ]


class Schedule:
    """Warm up for 100 steps, hold, cool down to 2 % before the end; kill or Ctrl-C starts the cool-down at once."""

    def __init__(self, minutes: float, cool_minutes: float):
        self.cool = 60 * cool_minutes
        self.start = time.monotonic()
        self.end = self.start + 60 * minutes
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.finish())

    def finish(self) -> None:
        self.end = min(self.end, time.monotonic() + self.cool)
        print(f"cooling down: {self.end - time.monotonic():.0f} s are left", flush=True)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    @property
    def over(self) -> bool:
        return time.monotonic() >= self.end

    def factor(self, step: int) -> float:
        return min(1.0, (step + 1) / 100) * min(1.0, max(0.02, (self.end - time.monotonic()) / self.cool))


class Average:
    """Exponential moving average of weights; `swapped` puts it in their place for a while."""

    def __init__(self, weights: list[nn.Parameter], decay: float):
        self.weights, self.decay, self.count = weights, decay, 0
        self.values = [w.detach().clone() for w in weights]

    @torch.no_grad()
    def update(self) -> None:
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        torch._foreach_lerp_(self.values, self.weights, 1 - decay)

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        live = [w.detach().clone() for w in self.weights]
        with torch.no_grad():
            torch._foreach_copy_(self.weights, self.values)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.weights, live)


def save(pipe: Any, to: Path, training: dict[str, Any], prompts: list[str] | None = None) -> None:
    """Write a pipeline in bf16 with `training.json`, whole or not at all; other files of the folder stay in it."""
    temporary, old = (to.with_name(f".{to.name}.{os.getpid()}.{what}") for what in ("new", "old"))
    copy.deepcopy(pipe).to(torch.bfloat16).save_pretrained(temporary)  # a copy: rotary tables would come back rounded
    for file in temporary.glob("**/*.json"):  # leave out where it was trained
        config = json.loads(file.read_text())
        if config.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(config, indent=2) + "\n")
    (temporary / "training.json").write_text(json.dumps(training) + "\n")
    if prompts:
        (temporary / "prompts.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    if to.exists():
        for file in to.iterdir():
            if file.is_file() and not (temporary / file.name).exists():
                shutil.copy2(file, temporary)
        to.rename(old)
    temporary.rename(to)
    shutil.rmtree(old, ignore_errors=True)
