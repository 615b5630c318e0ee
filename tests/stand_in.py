"""For tests of adapters: a trained method whose one gain scales what the first block puts out, and adapters for it."""

import contextlib
from dataclasses import dataclass

import pytest
import torch
from helpers import BY_NAME
from torch import nn

from fastdit.core.report import MethodReport
from fastdit.methods import adapter as a
from fastdit.methods.base import option
from fastdit.methods.runtime import Host
from fastdit.methods.trained import TrainedMethod
from fastdit.models.base import family_of


@dataclass(frozen=True)
class StandIn(TrainedMethod):
    name = "stand_in"
    summary = "for tests"

    checkpoint: str | None = option(None, "folder or Hub id", path=True)

    @property
    def neutral(self):
        return self.checkpoint is None

    def bind(self, host):
        return StandInRuntime(self, host)


class StandInRuntime:
    uses_attention = False

    def __init__(self, method, host):
        self.report = MethodReport()
        self.host = host
        self.module = nn.ParameterDict({"gain": torch.zeros(1)})
        adapter = method.adapter()
        if adapter is not None:
            assert adapter.structure == {"gains": 1}
            self.module.load_state_dict(adapter.own_state())

    def structure(self):
        return {"gains": 1}

    def install(self, ledger):
        block = self.host.blocks()[0][1]
        hook = block.register_forward_hook(lambda module, args, out: out * (1 + self.module["gain"].item()))
        ledger.add_hook(hook, "the gain's hook")

    def start(self):
        pass

    def reduces(self, layout, noise):
        return frozenset()

    def acts(self, layout, noises, reduced=()):
        return None

    def plan(self, forward):
        return None

    def apply(self, plan, forward):
        pass

    def book(self, plan, forward):
        self.report.calls += 1
        return 1.0


OWN = {"gain": torch.tensor([0.5])}
LORA = {
    "transformer_blocks.0.attn1.to_q.down": torch.ones(2, 32),
    "transformer_blocks.0.attn1.to_q.up": torch.ones(1, 32, 2),
}


def make(name="pixart_alpha", change=0.0):
    """A tiny transformer, and with `change` one that was trained on from it."""
    transformer = BY_NAME[name].make().transformer
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.add_(change * torch.randn_like(parameter))
    return transformer


def write(folder, kind="routers", transformer=None, **more):
    more = {"own_state": OWN, "structure": {"gains": 1}, "method": "stand_in", **more}
    if kind == "lora":
        more.setdefault("lora_state", LORA)
    return a.write_adapter(folder, kind=kind, transformer=transformer or make(), **more)


def host_of(transformer):
    return Host("transformer", transformer, family_of(transformer))


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def values(transformer):
    return {name: value.clone() for name, value in transformer.state_dict().items()}


def same(left, right):
    return left.keys() == right.keys() and all(
        left[k].dtype == right[k].dtype and torch.equal(left[k], right[k]) for k in left
    )


@contextlib.contextmanager
def refused(*parts, error=ValueError):
    with pytest.raises(error) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message, message
