"""What is trained: a transformer under its method, ready for gradients, and what is written of it in the end."""

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastdit.core.ledger import PatchLedger
from fastdit.methods.adapter import bring_time_frequency, describe_base
from fastdit.methods.base import Method
from fastdit.methods.trained import TrainedMethod
from fastdit.models.base import family_of
from fastdit.pipelines.engine import Engine
from fastdit.training import results
from fastdit.training.data import Samples
from fastdit.training.learner import Learner
from fastdit.training.objectives import objective_of, weighting_of
from fastdit.training.options import TrainOptions
from fastdit.training.parameters import PARAMETERS
from fastdit.training.starting import equal_plans, read_start, start_from


class Trainee:
    """A pipeline's transformer with a method (None: dense) attached, as a Learner; ValueError for what does not fit.

    `trained` are the parameters under training by name; those of the method itself begin with "method.".
    """

    def __init__(self, pipe: Any, method: Method | None, options: TrainOptions) -> None:
        if method is not None and method.stage in ("load", "step"):
            raise ValueError(f"{method.name} does not change what the model computes in a step: nothing to train for")
        if isinstance(method, TrainedMethod):
            _check_options(method)
        if getattr(pipe, "transformer_2", None) is not None:
            raise ValueError(f"{type(pipe).__name__} has two transformers: training takes pipelines with one")
        self.pipe, self.method, self.options = pipe, method, options
        self.transformer: nn.Module = pipe.transformer
        self.family = family_of(self.transformer)
        self.objective = objective_of(pipe, self.transformer, self.family, options.min_snr or 5.0)
        self.parameters = PARAMETERS[options.parameters]
        self.ledger = PatchLedger()
        self.base = describe_base(self.transformer)  # before anything changes it
        teacher = copy.deepcopy(self.transformer).eval().requires_grad_(False) if options.distill else None
        with torch.random.fork_rng():
            torch.manual_seed(options.seed)
            self._attach()
        if options.gradient_checkpointing:
            self.transformer.enable_gradient_checkpointing()
        if options.compile:
            for _, block, _ in self.family.blocks(self.transformer):
                block.compile()
        self.learner = Learner(
            self.transformer, self.family, self.objective, options, self.runtime, self.changes, teacher,
            weighting=weighting_of(options.min_snr, None if method is None else method.name, self.objective),
        )  # fmt: skip
        self.trained = {name: p for name, p in self.learner.named_parameters() if p.requires_grad}
        if not self.trained:
            raise ValueError("--parameters routers: there are none without a trained method; use full or lora")
        gateless = self._gateless()
        if options.target is not None and gateless is not None:
            raise ValueError("--target: only a method that routes (dydit) can be steered to one, leave it out")
        self.can_complete = self._can_complete(gateless)

    def _attach(self) -> None:
        """Prepare what is trained, and attach the method; from an adapter's weights where --init names one."""
        options, transformer, method = self.options, self.transformer, self.method
        self.start = read_start(options.init, method, transformer, self.parameters) if options.init else None
        transformer.train()
        self.changes = self.parameters.prepare(transformer, self.family, options, self.ledger)
        self.engine = Engine(transformer, [] if method is None else [method])
        attached = self.engine.attached[0]
        found: Any = attached.runtimes[0] if attached.runtimes else None
        self.runtime: Any = found if hasattr(found, "executed") else None
        self.untrained: Any = None if self.runtime is not None else found
        if self.start is not None:
            bring_time_frequency(self.start, attached.host, self.ledger)
            assert self.runtime is not None
            start_from(self.start, self.runtime, self.parameters, transformer, self.changes)

    def _gateless(self) -> str | None:
        """Why there are no gates, to be opened or to be steered; None where there are some."""
        if self.runtime is None:
            return "only a trained method has one beside it"
        try:
            with self.runtime.opened():
                return None
        except ValueError as error:
            return str(error)

    def _can_complete(self, gateless: str | None) -> bool:
        """Whether there is a complete model that can learn; asked for where there is none is a ValueError."""
        if gateless is None and any(not name.startswith("method.") for name in self.trained):
            return True
        if self.options.complete_steps:
            reason = gateless or "it is the base itself, which --parameters routers keeps as it is"
            raise ValueError(f"--complete-steps {self.options.complete_steps}: no complete model can learn: {reason}")
        return False

    def ready(self, samples: Samples, device: torch.device) -> None:
        """Before the first forward: on the device, and with the label dropout of the samples alone."""
        self.learner.to(device)
        samples.ready(self.transformer, self.ledger)

    def lay_out(self, samples: Samples) -> tuple[int, Sequence[tuple[float, float]]]:
        """(visual tokens, ranges of t / T that one batch may mix) of these samples."""
        first = samples.batch([0], None)
        layout = self.family.layout(self.transformer, {"hidden_states": first["latents"], **first["conditions"]})
        if self.runtime is not None:
            return layout.tokens, self.runtime.intervals(layout)
        if self.untrained is not None:
            return layout.tokens, equal_plans(self.untrained, self.family, self.objective, layout)
        return layout.tokens, [(0.0, 1.0)]

    def write(self, out: Path, model: str, training: dict[str, Any]) -> results.Result:
        """Write what the run was for: an adapter, or of other runs a LoRA or a pipeline (for which it is taken off)."""
        if self.runtime is not None and self.method is not None:
            return results.write_method(
                out, model, self.method, self.runtime, self.transformer, kind=self.parameters.adapter, base=self.base,
                lora_state=self.parameters.low_rank(self.transformer, self.changes) or None, training=training,
                time_frequency_shift=None if self.start is None else self.start.time_frequency_shift,
            )  # fmt: skip
        self.engine.detach()
        if self.parameters.adapter == "lora":
            return results.write_lora(out, self.pipe, self.transformer)
        return results.write_pipeline(out, self.pipe, self.transformer)

    def close(self) -> None:
        """Take the method off again; what was trained stays in the transformer."""
        self.engine.detach()
        self.ledger.undo()


def _check_options(method: TrainedMethod) -> None:
    """ValueError for an option that would leave no trace in what is trained, or spoil it."""
    if method.checkpoint is not None:
        raise ValueError(f"{method.name}: to go on from its checkpoint, leave it out and give --init CHECKPOINT")
    for field in dataclasses.fields(method):
        value = getattr(method, field.name)
        if value != field.default and field.name not in method.when_training:
            known = ", ".join(sorted(method.when_training)) or "none"
            raise ValueError(
                f"{method.name}: {field.name}={value} is for running the model, not for training it: leave it out "
                f"(options that training takes: {known})"
            )
