"""Where a run starts: weights of an adapter, and which times one batch may mix."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fastdit.core.layout import TokenLayout
from fastdit.methods.adapter import Adapter, check_adapter, read_adapter
from fastdit.methods.base import Method
from fastdit.methods.lora import TimeLoRA
from fastdit.methods.runtime import Forward, Runtime
from fastdit.methods.trained import TrainedRuntime
from fastdit.models.base import ModelFamily
from fastdit.training.objectives import Objective
from fastdit.training.parameters import Parameters

PROBES = 64  # times at which a method is asked for its plan


def read_start(init: str, method: Method | None, transformer: nn.Module, parameters: Parameters) -> Adapter:
    """The adapter that --init names, its weights for the transformer brought in; ValueError if it does not fit."""
    if method is None or not hasattr(method, "checkpoint"):
        raise ValueError("--init goes on from an adapter, which only a trained method (dydit, flexdit) has")
    adapter = read_adapter(init)
    check_adapter(adapter, method.name, transformer)
    if adapter.kind == "full":
        if parameters.adapter != "full":
            raise ValueError(f"--init {init} changes the whole base: go on with --parameters full")
        transformer.load_state_dict(adapter.host_state())
    return adapter


def start_from(
    adapter: Adapter, runtime: TrainedRuntime, parameters: Parameters, transformer: nn.Module, changes: TimeLoRA | None
) -> None:
    """Bring in the method's own parameters and low-rank changes; ValueError names what does not fit."""
    try:
        runtime.module.load_state_dict(adapter.own_state())
        parameters.start_from(adapter.lora_state(), transformer, changes)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"--init {adapter.folder}: {' '.join(str(error).split())}") from error


def equal_plans(
    runtime: Runtime, family: ModelFamily, objective: Objective, layout: TokenLayout
) -> Sequence[tuple[float, float]]:
    """Ranges of t / T, to a 64th, in which an untrained method plans all forwards alike: what one batch may mix.

    A forward has one plan, that of its noisiest sample.
    """
    edges = [0.0]
    last: Any = None
    nothing = torch.zeros(1, 1)
    for probe in range(PROBES):
        timestep = objective.noisy(nothing, nothing, torch.tensor([(probe + 0.5) / PROBES]))[1]
        noise = family.noise({"timestep": timestep})
        plan = runtime.plan(Forward(layout=layout, batch=1, noise=noise, timestep=timestep, training=True))
        if probe and plan != last:
            edges.append(probe / PROBES)
        last = plan
    return list(zip(edges, [*edges[1:], 1.0], strict=True))
