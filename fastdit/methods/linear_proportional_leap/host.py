"""What a pipeline and its scheduler must be, so that a run can be left in one leap."""

import inspect
from typing import Any

from torch import nn

SCHEDULERS = ("FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler", "DPMSolverMultistepScheduler")


def check_pipeline(name: str, pipe: Any) -> None:
    """ValueError for what has no loop of steps, or one that cannot be left early."""
    kind = type(pipe).__name__
    if isinstance(pipe, nn.Module):
        raise ValueError(
            f"{name} acts on the steps of a pipeline, and a bare {kind} has none: accelerate the pipeline instead"
        )
    called = called_names(pipe)
    if "interrupt" not in called:
        raise ValueError(
            f"{name} ends a run through the pipeline's `interrupt`, which {kind} does not look at in its loop: use a "
            "pipeline that does, or remove the method"
        )
    if called & {"add_noise", "scale_noise"}:
        raise ValueError(
            f"{name} cannot run in {kind}: after every step it puts an image with the next step's noise into the "
            "latents, so a run that ends early would keep that noise; remove the method"
        )


def called_names(pipe: Any) -> set[str]:
    """All names that `__call__` of a pipeline's classes looks up."""
    found = (inspect.unwrap(vars(cls)["__call__"]) for cls in type(pipe).__mro__ if "__call__" in vars(cls))
    return {name for call in found if hasattr(call, "__code__") for name in call.__code__.co_names}


def check_scheduler(name: str, scheduler: Any) -> None:
    """ValueError for a scheduler whose steps are not a deterministic path along a velocity."""
    kind = next(cls.__name__ for cls in type(scheduler).__mro__ if "step" in vars(cls))  # whose step it is
    if found := _unfit(kind, scheduler.config):
        why, mend = found
        raise ValueError(f"{name} cannot run with {type(scheduler).__name__}: {why}; {mend}")


def _unfit(kind: str, config: Any) -> tuple[str, str] | None:
    """(why not, what to do) for a scheduler with this step function and config."""
    if kind not in SCHEDULERS:
        return (
            "it is not known to follow the velocity of flow matching from step to step, without new noise",
            f"set pipe.scheduler to a {SCHEDULERS[0]}, or to {SCHEDULERS[1]} or {SCHEDULERS[2]} with flow prediction",
        )
    if config.get("stochastic_sampling", False):
        return "stochastic_sampling=True draws new noise in every step", "set stochastic_sampling=False"
    if kind == SCHEDULERS[0]:
        return None
    if (config.get("algorithm_type") or "").startswith("sde"):
        drawn = f"algorithm_type={config['algorithm_type']!r} draws new noise in every step"
        return drawn, "set algorithm_type='dpmsolver++'"
    prediction, flow = config.get("prediction_type"), config.get("use_flow_sigmas", False)
    if prediction != "flow_prediction" or not flow:
        return (
            f"prediction_type={prediction!r} with use_flow_sigmas={flow} is no velocity of flow matching",
            "set prediction_type='flow_prediction' and use_flow_sigmas=True if the model predicts one",
        )
    if config.get("thresholding", False):
        return "thresholding=True clips what the velocity leads to", "set thresholding=False"
    return None
