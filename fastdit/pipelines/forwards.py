"""One forward of a transformer: what methods are told before it begins, and what is settled when it is over."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fastdit.core.clock import StepClock
from fastdit.core.report import RunReport
from fastdit.methods.base import Method
from fastdit.methods.runtime import DataDependent, Forward, Runtime
from fastdit.models.base import ModelFamily


def facts_of(
    family: ModelFamily, module: nn.Module, arguments: Mapping[str, Any], clock: StepClock, methods: Sequence[Method]
) -> Forward:
    """The facts of a forward with these arguments, by the clock where a run is under way."""
    hidden_states = arguments["hidden_states"]
    noise = clock.noise
    training = module.training and torch.is_grad_enabled()
    asked = not training and any(method.uses_guidance for method in methods)  # telling waits for the device
    return Forward(
        layout=family.layout(module, arguments),
        batch=hidden_states.shape[0],
        noise=family.noise(arguments) if noise is None else noise,
        step_index=-1 if noise is None else clock.step_index,
        num_steps=clock.num_steps,
        pass_index=max(clock.pass_index, 0),
        device=hidden_states.device,
        dtype=hidden_states.dtype,
        timestep=family.timestep(arguments),
        guided=asked and family.guided(module, arguments),
        training=training,
    )


def settle(methods: Sequence[Method], runtimes: Sequence[Runtime], report: RunReport) -> None:
    """Take out of the count what a forward turned out not to do."""
    for method, runtime in zip(methods, runtimes, strict=False):
        if isinstance(runtime, DataDependent) and report.rows:
            spared, report.rows[-1].density[method.name] = runtime.settle()
            report.rows[-1].macs_executed -= spared
            report.macs_executed -= spared
