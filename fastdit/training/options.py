"""The options of a training run: one frozen dataclass, from which `fastdit train` makes its command line."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PARAMETERS = ("full", "routers", "lora", "td-lora")
MAY_CHANGE = ("steps", "minutes", "save_every", "keep")  # between the parts of one run
DEFAULT_STEPS = 10_000


def _option(
    default: Any, help: str, *, least: float | None = None, most: float | None = None, above: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:  # fmt: skip
    """A field with its advice, and what its values are held to: `least <= value <= most`, `value > above`."""
    return dataclasses.field(
        default=default, metadata={"help": help, "least": least, "most": most, "above": above, "choices": choices}
    )


@dataclass(frozen=True)
class TrainOptions:
    """How to train; ValueError names an option as it stands on the command line."""

    steps: int | None = _option(None, f"optimiser steps in all; {DEFAULT_STEPS} unless --minutes ends the run", least=1)
    minutes: float | None = _option(None, "end after this much training time in all, also before --steps", above=0)
    batch: int = _option(32, "samples a step, over all processes; the more, the steadier are the routers", least=1)
    accumulate: int = _option(1, "parts in which each process works through its share of a batch: less memory", least=1)
    parameters: str = _option("full", "what is trained; routers: the method's own parameters", choices=PARAMETERS)
    lora_rank: int = _option(16, "rank of lora and td-lora", least=1)
    lora_targets: str = _option(
        "to_q,to_k,to_v,to_out.0", "linears of the blocks that get one, by the ends of their names"
    )
    td_ups: int = _option(4, "td-lora: up matrices, mixed by the timestep", least=2)
    init: str | None = _option(None, "folder or Hub id of an adapter whose weights are the start")

    target: float | None = _option(None, "share of the routable work to end at (0.5 if not given)", above=0, most=1)
    hold: int = _option(100, "steps before the target begins to fall from 1", least=0)
    warmup: int = _option(1000, "steps over which it falls, linearly", least=0)
    target_weight: float = _option(2.0, "weight of (share - target)^2 in the loss", least=0)
    complete_steps: int | None = _option(
        None, "steps in which the complete model, all gates open, learns beside (twice the time); 15 % if not given",
        least=0,
    )  # fmt: skip
    distill: float = _option(0.0, "weight of the distance to the dense base model's prediction", least=0)
    times: str = _option("stratified", "how times are drawn", choices=("stratified", "logit-normal"))
    strata: int = _option(4, "equal parts of [0, 1] that each batch has times from in turn", least=1)
    min_snr: float | None = _option(
        None, "gamma of min-SNR weighting, 0: none; if not given 5 for flexdit on models that predict noise, else none",
        least=0,
    )  # fmt: skip

    lr: float = _option(1e-4, "learning rate of AdamW", above=0)
    router_lr: float = _option(
        1.0,
        "factor on it for the method's own parameters; 10 in short runs, as all gates are wide open at first",
        above=0,
    )
    lr_warmup: int = _option(100, "steps over which the learning rate rises from 0", least=0)
    cooldown: float = _option(
        0.0, "share of the run at its end over which the learning rate falls to 0", least=0, most=1
    )
    cooldown_shape: str = _option("linear", "how it falls", choices=("linear", "cosine"))
    weight_decay: float = _option(0.0, "weight decay of AdamW", least=0)
    clip: float = _option(1.0, "largest norm of all gradients; longer ones are scaled down", above=0)
    ema: float = _option(0.9999, "decay of the averaged weights, which are what is written at the end", least=0, most=1)
    precision: str = _option("no", "mixed precision; weights stay float32", choices=("no", "bf16", "fp16"))
    gradient_checkpointing: bool = _option(False, "recompute the blocks in the backward pass: less memory, more time")
    compile: bool = _option(False, "compile the transformer blocks one by one")
    seed: int = _option(0, "of the data's order, noise, times and gates", least=0)

    only: Path | None = _option(None, "a file of captions, one a line: train on the samples with these alone")
    size: int | None = _option(None, "side of pictures in pixels; the model's own if not given", least=1)
    frames: int | None = _option(None, "frames of a video; the model's own number if not given", least=1)
    guidance: float = _option(1.0, "guidance scale that models with embedded guidance are shown", least=0)
    skip_unreadable: bool = _option(False, "leave files out that cannot be read, with a warning, instead of stopping")
    text_drop: float = _option(0.1, "share of samples that are shown without text or class", least=0, most=1)
    validate: int = _option(0, "samples for a validation loss at fixed noise and times; 0: none", least=0)
    validate_every: int = _option(500, "steps between two validations", least=1)
    hold_out: bool = _option(False, "keep the samples of --validate out of training")

    save_every: str = _option("10m", "steps between two checkpoints, or minutes with an m behind: 500, 10m")
    keep: int = _option(2, "checkpoints to keep, the newest ones", least=1)
    log_every: int = _option(10, "steps that one point of the curves is the mean of", least=1)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None or field.default is not None:
                _check(flag(field.name), value, field)
        self.saving()
        if not self.targets:
            raise ValueError("--lora-targets names no linear: give ends of names such as to_q,to_v")
        if self.hold_out and not self.validate:
            raise ValueError("--hold-out keeps the samples of --validate out of training: give --validate N too")

    @property
    def targets(self) -> list[str]:
        """The ends of names that --lora-targets gives."""
        return [part.strip() for part in self.lora_targets.split(",") if part.strip()]

    @property
    def goal(self) -> float:
        """The target, or its default."""
        return 0.5 if self.target is None else self.target

    @property
    def last_step(self) -> int | None:
        """The number of steps, None where time alone ends the run."""
        return DEFAULT_STEPS if self.steps is None and self.minutes is None else self.steps

    def saving(self) -> tuple[int | None, float | None]:
        """(steps, seconds) between two checkpoints, one of them None."""
        text = self.save_every.strip()
        try:
            if text.endswith("m"):
                minutes = float(text[:-1])
                if math.isfinite(minutes) and minutes > 0:
                    return None, 60 * minutes
            elif int(text) >= 1:
                return int(text), None
        except ValueError:
            pass
        raise ValueError(f"--save-every must be a number of steps or of minutes such as 500 or 10m, got {text!r}")

    def progress(self, step: int, seconds: float) -> float:
        """The share of the run that is done, in [0, 1], by steps or time, whichever ends it first."""
        by_steps = step / self.last_step if self.last_step else 0.0
        by_time = seconds / (60 * self.minutes) if self.minutes else 0.0
        return min(1.0, max(by_steps, by_time))

    def target_at(self, step: int) -> float:
        """The target of a step: 1 for `hold` steps, then linearly down over `warmup` steps (DyDiT's lambda)."""
        passed = step - self.hold
        return 1 + (self.goal - 1) * min(1.0, max(0.0, passed / self.warmup if self.warmup else float(passed >= 0)))

    def complete_at(self, step: int, progress: float) -> bool:
        """Whether the complete model learns in a step."""
        return progress < 0.15 if self.complete_steps is None else step < self.complete_steps

    def rate_at(self, step: int, progress: float) -> float:
        """The factor on the learning rate in a step."""
        rise = min(1.0, (step + 1) / self.lr_warmup) if self.lr_warmup else 1.0
        left = min(1.0, (1 - progress) / self.cooldown) if self.cooldown else 1.0
        return rise * (left if self.cooldown_shape == "linear" else 0.5 - 0.5 * math.cos(math.pi * left))

    def warnings(self, processes: int = 1) -> list[str]:
        """What is allowed and probably not meant, where a run steers to a target."""
        found = []
        end = self.hold + self.warmup
        if self.last_step is not None and end >= self.last_step:
            found.append(
                f"the target falls to {self.goal:g} only at step {end} (--hold + --warmup), and the run ends at step "
                f"{self.last_step}: it will not be reached"
            )
        part = self.batch // (processes * self.accumulate)
        if part < self.strata and part < self.batch:
            found.append(
                f"each part of a step has {part} samples, fewer than --strata {self.strata}, and each is held to "
                "the target by itself, so gates come to depend less on the time: give a larger --batch or fewer parts"
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """All options, ready for JSON."""
        return {name: str(v) if isinstance(v, Path) else v for name, v in dataclasses.asdict(self).items()}


def flag(name: str) -> str:
    """A field as an option of the command line: save_every -> --save-every."""
    return "--" + name.replace("_", "-")


def _check(option: str, value: Any, field: dataclasses.Field) -> None:
    about = field.metadata
    if about["choices"]:
        if value not in about["choices"]:
            raise ValueError(f"{option} must be one of {', '.join(about['choices'])}, got {value!r}")
        return
    bounds = [about["least"], about["most"], about["above"]]
    if all(bound is None for bound in bounds):
        return
    whole = field.type in (int, int | None)
    number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    least, most, above = bounds
    inside = number and (least is None or value >= least) and (most is None or value <= most)
    if not inside or (above is not None and value <= above):
        words = [f"above {above:g}" if above is not None else f"at least {least:g}"]
        words += [f"at most {most:g}"] if most is not None else []
        kind = "a whole number" if whole else "a number"
        raise ValueError(f"{option} must be {kind} {' and '.join(words)}, got {value!r}")
