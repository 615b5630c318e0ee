"""A training run: one loop over optimiser steps on accelerate, for one process or many."""

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from fastdit.training import checkpoints, results, target
from fastdit.training.average import Average
from fastdit.training.batches import Batches, Order
from fastdit.training.curves import Curves, read_rows
from fastdit.training.data import Samples
from fastdit.training.options import TrainOptions
from fastdit.training.stopping import Stopping
from fastdit.training.times import flow_shift_of
from fastdit.training.trainee import Trainee
from fastdit.training.validation import Validation

Show = Callable[[int, float, Mapping[str, float]], None]  # step, share of the run that is done, values


def new_accelerator(options: TrainOptions, device: str = "auto") -> Any:
    """accelerate's Accelerator for a run; ValueError where a batch cannot be divided among the processes."""
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # a run before this one, in the same process, may have had another precision
    # routers have no part in some steps, so not every parameter has a gradient; no buffer changes while training
    parallel = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
    accelerator = Accelerator(mixed_precision=options.precision, cpu=device == "cpu", kwargs_handlers=[parallel])
    parts = accelerator.num_processes * options.accumulate
    if options.batch % parts:
        raise ValueError(
            f"--batch {options.batch} is not divisible by {accelerator.num_processes} processes times --accumulate "
            f"{options.accumulate}: give a multiple of {parts}"
        )
    return accelerator


class Session:
    """Trains on samples and keeps everything about the run in the folder `out`.

    `about` says what the run is, besides its options, by the words of the command line.
    """

    def __init__(
        self, trainee: Trainee, samples: Samples, out: Path, accelerator: Any, about: Mapping[str, Any],
        show: Show = lambda step, progress, values: None,
    ) -> None:  # fmt: skip
        options = trainee.options
        self.options, self.out, self.accelerator, self.show = options, out, accelerator, show
        self.run_is = {**about, "options": options.to_dict()}
        checkpoints.check_same_run(out, self.run_is)
        self.step, self.seconds = 0, 0.0
        self.stopped_by: int | None = None
        trainee.ready(samples, accelerator.device)
        self.trainee, self.learner, self.trained = trainee, trainee.learner, trainee.trained
        self.average = Average(self.trained, options.ema)
        self.prepared, self.optimizer = accelerator.prepare(self.learner, self._optimizer())
        self._lay_out(samples)

    def _optimizer(self) -> torch.optim.Optimizer:
        """AdamW in two groups, the model's own parameters and the method's, each with the peak of its rate."""
        options = self.options
        own = [p for name, p in self.trained.items() if name.startswith("method.")]
        rest = [p for name, p in self.trained.items() if not name.startswith("method.")]
        groups = [{"params": rest, "peak": options.lr}, {"params": own, "peak": options.lr * options.router_lr}]
        return torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=options.lr, weight_decay=options.weight_decay,
            fused=self.accelerator.device.type in ("cpu", "cuda"),
        )  # fmt: skip

    def _lay_out(self, samples: Samples) -> None:
        """Which samples, noise and times a step sees, and what is validated."""
        options, accelerator = self.options, self.accelerator
        tokens, intervals = self.trainee.lay_out(samples)
        held = Validation.choose(len(samples), options.validate)
        kept = sorted(set(range(len(samples))) - set(held)) if options.hold_out else range(len(samples))
        if not len(kept):
            raise ValueError(f"--validate {options.validate} with --hold-out leaves none of {len(samples)} samples")
        self.batches = Batches(
            samples, Order(kept, options.seed), self.trainee.objective, options, intervals,
            flow_shift_of(self.trainee.pipe.scheduler, tokens), accelerator.device, accelerator.process_index,
            accelerator.num_processes,
        )  # fmt: skip
        self.validation = Validation(
            samples, held, self.learner, self.trainee.engine, accelerator, intervals, self.batches.size
        )

    # --- the loop ---------------------------------------------------------------------------------------------------

    def run(self) -> results.Result | None:
        """Train to the end, or until a signal comes (None); RuntimeError where the loss is no number any more."""
        with torch.random.fork_rng(), Stopping() as stopping:
            self._begin()
            try:
                while not self._over():
                    values = self._one_step(stopping)
                    self._after_step(values)
                    if self.stopped:
                        break
                self.save()
                if self.stopped:
                    self.stopped_by = stopping.signal
                    return None
                return self._finish()
            finally:
                if self.curves is not None:
                    self.curves.close()

    def _begin(self) -> None:
        saved = checkpoints.steps_saved(self.out)
        if saved:
            self._load(saved[-1])
        if self.main:
            checkpoints.begin(self.out, self.run_is)
        self.accelerator.wait_for_everyone()
        self.curves = Curves(self.out, self.step) if self.main else None
        self.learner.train()
        self.stopped = False
        self.window: dict[str, list[float]] = {}
        self.began = time.monotonic() - self.seconds
        self.saved = self.step, self.seconds
        if not self.step and self.options.validate:
            self._enter(self.validation.measure())

    @property
    def main(self) -> bool:
        return self.accelerator.is_main_process

    def _over(self) -> bool:
        return self.options.progress(self.step, self.seconds) >= 1

    def _one_step(self, stopping: Stopping) -> dict[str, float]:
        options, step = self.options, self.step
        progress = options.progress(step, self.seconds)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * options.rate_at(step, progress)
        values = self._gradients(step, progress)
        values |= {"stop": float(stopping.signal is not None), "seconds": time.monotonic() - self.began}
        values = self._agreed(values)
        self.stopped, self.seconds = values.pop("stop") > 0, values.pop("seconds")
        self._check_finite(values)
        norm = self._clip()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update()
        self.step += 1
        if "share" in values:
            values["target"] = options.target_at(step)
        return {**values, "norm": norm, "lr": self.optimizer.param_groups[0]["lr"]}

    def _gradients(self, step: int, progress: float) -> dict[str, float]:
        """Accumulate the gradients of one step; returns the means of the loss's parts on this process."""
        options, accelerator = self.options, self.accelerator
        steered_to = options.target_at(step)
        sums: dict[str, torch.Tensor] = {}
        for part in range(options.accumulate):
            batch, conditions_again = self.batches.take(step, part)
            if self.trainee.can_complete and options.complete_at(step, progress):
                with accelerator.no_sync(self.prepared), self.trainee.runtime.opened():
                    parts = self.prepared({**batch, "conditions": conditions_again()})
                    accelerator.backward(parts["loss"] / options.accumulate)
                sums["complete"] = sums.get("complete", 0) + parts["data"]
            last = part == options.accumulate - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(self.prepared):
                parts = self.prepared(batch, steered_to)
                accelerator.backward(parts["loss"] / options.accumulate)
            for name, value in parts.items():
                sums[name] = sums.get(name, 0) + value.detach()
        mean = torch.stack([value.float() for value in sums.values()]) / options.accumulate
        values = dict(zip(sums, mean.tolist(), strict=True))
        report = self.trainee.engine.report
        if "share" not in values:  # gates under training only mask: all their MACs are executed
            values["executed"] = report.macs_executed / max(1, report.macs_dense)
        self.trainee.engine.renew_report()
        return values

    def _clip(self) -> float:
        """Scale gradients that are too long down; returns the norm that they had."""
        self.accelerator.unscale_gradients()
        gradients = [p.grad for p in self.trained.values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        length = float(norm)
        if self.accelerator.scaler is None:  # with one, a step whose gradients overflow is left out
            self._check_finite({"norm of the gradients": length})
        if length > self.options.clip:
            torch.nn.utils.clip_grads_with_norm_(self.trained.values(), self.options.clip, norm)
        return length

    def _agreed(self, values: dict[str, float]) -> dict[str, float]:
        """The mean of values over all processes, so that all decide alike."""
        if self.accelerator.num_processes == 1:
            return values
        mine = torch.tensor(list(values.values()), device=self.accelerator.device)
        return dict(zip(values, self.accelerator.reduce(mine, "mean").tolist(), strict=True))

    def _check_finite(self, values: Mapping[str, float]) -> None:
        wrong = [f"{name} {value}" for name, value in values.items() if not math.isfinite(value)]
        if wrong:
            saved = checkpoints.steps_saved(self.out)
            last = f"the last good checkpoint is {checkpoints.folder_of(self.out, saved[-1])}" if saved else (
                f"no checkpoint had been written yet (--save-every {self.options.save_every}): nothing of it is kept"
            )  # fmt: skip
            raise RuntimeError(
                f"training stopped at step {self.step + 1}: {', '.join(wrong)}; {last}; try a smaller --lr "
                f"(now {self.options.lr:g}) or --clip, or --precision no, in another folder"
            )

    # --- what happens between steps ---------------------------------------------------------------------------------

    def _after_step(self, values: dict[str, float]) -> None:
        options, progress = self.options, self.options.progress(self.step, self.seconds)
        self.show(self.step, progress, values)
        for name, value in values.items():
            self.window.setdefault(name, []).append(value)
        if self.step % options.log_every == 0 or progress >= 1 or self.stopped:
            means = {name: sum(found) / len(found) for name, found in self.window.items()}
            self._enter({**means, "seconds": self.seconds})
            self.window.clear()
        if options.validate and (self.step % options.validate_every == 0 or progress >= 1):
            with self.average.swapped():
                self._enter(self.validation.measure())
        steps, seconds = options.saving()
        due = self.step - self.saved[0] >= steps if steps else self.seconds - self.saved[1] >= (seconds or 0)
        if due and progress < 1 and not self.stopped:
            self.save()

    def _enter(self, values: Mapping[str, float]) -> None:
        if self.curves is not None:
            self.curves.add(self.step, **values)

    def save(self) -> None:
        """Write a checkpoint of this step, and draw the curves."""
        self.saved = self.step, self.seconds
        if self.main:
            optimizer = self.optimizer.optimizer.state
            moments = {
                f"{kind}.{name}": value for name, p in self.trained.items() for kind, value in optimizer[p].items()
            }
            memory = getattr(self.trainee.runtime, "memory", {})
            tensors: checkpoints.Tensors = {
                "weights": self.trained, "average": self.average.values, "optimizer": moments, "memory": memory,
            }  # fmt: skip
            scaler = None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict()
            state = {"seconds": self.seconds, "averaged": self.average.count, "scaler": scaler}
            checkpoints.save(self.out, self.step, tensors, state, self.options.keep)
            assert self.curves is not None
            self.curves.draw()
        self.accelerator.wait_for_everyone()

    @torch.no_grad()
    def _load(self, step: int) -> None:
        tensors, state = checkpoints.load(self.out, step)
        for name, parameter in self.trained.items():
            parameter.copy_(tensors["weights"][name])
        self.average.load(tensors["average"], state["averaged"])
        moments = self.optimizer.optimizer.state
        for key, value in tensors["optimizer"].items():
            kind, _, name = key.partition(".")
            parameter = self.trained[name]
            stays = kind == "step" and not self.optimizer.param_groups[0]["fused"]  # torch wants it there
            moments[parameter][kind] = value if stays else value.to(parameter.device)
        if state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if "memory" in tensors:
            self.trainee.runtime.memory = tensors["memory"]
        self.step, self.seconds = step, state["seconds"]

    def _finish(self) -> results.Result | None:
        """Write what the run was for, with the averaged weights."""
        if not self.main:
            return None
        share = target.reached(read_rows(self.out))
        if share is not None and (text := target.missed(share, self.options)):
            warnings.warn(text, stacklevel=2)
        with self.average.swapped():
            return self.trainee.write(self.out, self.run_is["--model"], self._story(share))

    def _story(self, share: float | None) -> dict[str, Any]:
        """How it was trained, for people: options that are not the defaults, and no paths."""
        plain = TrainOptions().to_dict()
        given = {name: value for name, value in self.options.to_dict().items() if value != plain[name]}
        given |= {name: Path(str(given[name])).name for name in ("only", "init") if name in given}
        reached = {} if share is None else {"share": round(share, 3), "target": self.options.goal}
        return {"steps": self.step, "minutes": round(self.seconds / 60, 1), **reached, "options": given}
