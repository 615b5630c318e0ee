"""What is checked before work starts: methods against families and each other, and the state of a host."""

from collections.abc import Sequence
from typing import Any

from fastdit.core.report import RunReport
from fastdit.methods.base import STAGES, Method
from fastdit.methods.runtime import Host
from fastdit.models.base import OFFERS, ModelFamily


def checked(methods: Sequence[Method], families: Sequence[ModelFamily]) -> list[Method]:
    """Methods in the order of the plan; one ValueError for a pair or a family that a method cannot go with."""
    for method in methods:
        if not isinstance(method, Method):
            raise ValueError(f"methods must be a list of fastdit methods such as TokenMerging(), got {method!r}")
        for family in families:
            if missing := method.missing(family):
                lacks = "; ".join(OFFERS.get(need, need) for need in sorted(missing))
                raise ValueError(f"{method.name} with these options does not fit {family.title}, which lacks: {lacks}")
        if len(families) > 1 and method.for_one_transformer:
            raise ValueError(
                f"{method.name}: this pipeline has two transformers and a checkpoint holds the parameters of one: "
                "accelerate one of them by itself, as in accelerate(pipe.transformer, [...])"
            )
    for index, one in enumerate(methods):
        for other in methods[index + 1 :]:
            if reason := one.clash(other) or other.clash(one):
                raise ValueError(f"{one.name} and {other.name} cannot run together: {reason}")
    return sorted(methods, key=lambda method: STAGES.index(method.stage))


def attention_backends(host: Host) -> str:
    """The attention backends that the host's self-attention runs on, by diffusers' names."""
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    names = set()
    for _, module in host.family.attentions(host.module):
        if not hasattr(module.processor, "_attention_backend"):
            names.add("native")  # calls torch directly
            continue
        # where a processor names none, the process-wide one holds, which any model may have set
        backend = module.processor._attention_backend or _AttentionBackendRegistry.get_active_backend()[0]
        names.add(str(getattr(backend, "value", backend)))
    return ", ".join(sorted(names))


def check_backend(backends: str, methods: Sequence[Method]) -> None:
    """RuntimeError where a method works inside the attention call and another backend hides that call."""
    for method in methods:
        if "one_sdpa" in method.needs and backends != "native":
            raise RuntimeError(
                f"{method.name} with these options works inside the attention call, which backend {backends} does not "
                "show: call transformer.set_attention_backend('native')"
            )


def check_sharding(host: Host, methods: Sequence[Method]) -> None:
    """RuntimeError for methods that need the whole sequence while context parallelism holds a part of it."""
    ways = set()
    for _, module in host.family.attentions(host.module):
        config: Any = getattr(module.processor, "_parallel_config", None)
        if config is not None:
            context = getattr(config, "context_parallel_config", None)
            ways.add("ring" if getattr(context, "ring_degree", 1) > 1 else "ulysses")
    for method in methods:
        if method.neutral or ways <= method.under_sharding:
            continue
        if method.under_sharding:
            raise RuntimeError(
                f"{method.name} cannot run under ring attention: keys pass by in parts and no process sees the whole "
                "sequence that its mask is made for; use Ulysses (ulysses_degree=N) or remove the method"
            )
        raise RuntimeError(
            f"{method.name} cannot run under context parallelism: each process holds only a part of the "
            f"sequence, {method.sharding_reason}; disable parallelism or remove the method"
        )


def note_cache(host: Host, report: RunReport) -> None:
    """A diffusers cache skips blocks that the report counts."""
    if getattr(host.module, "is_cache_enabled", False):
        report.warnings.append(
            f"a diffusers cache is enabled on {host.label}: it skips blocks, calls and MACs are too high"
        )
