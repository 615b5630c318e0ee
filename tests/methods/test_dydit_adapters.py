"""Adapters of DyDiT: what is loaded and folded equals what was trained, for every kind."""

import pytest
import torch
from helpers import assert_close
from routed import masking, routed, runtime_of
from test_dydit import inputs, wide_dit

from fastdit import DyDiT, accelerate
from fastdit.core.ledger import PatchLedger
from fastdit.methods.adapter import write_adapter
from fastdit.methods.lora import TimeLoRA
from fastdit.models.base import family_of

PATHS = [f"transformer_blocks.{i}.{p}" for i in range(3) for p in ("attn1.to_q", "attn1.to_out.0", "ff.net.2")]


def trained(model, folder, kind, ups=1):
    """A random adapter of a kind in `folder`, and what the trained (masked) form gives for `inputs()`."""
    arguments, ledger, lora_state = inputs(), PatchLedger(), None
    if kind == "lora":  # below the gates, as in training
        with torch.no_grad():
            changes = TimeLoRA(model, PATHS, rank=3, ups=ups, width=64)
            for parameter in changes.parameters():
                parameter.normal_(std=0.3)
            changes.install(model, ledger)
            changes.set_embedding(family_of(model).time_embedding(model, arguments["timestep"]))
            lora_state = changes.lora_state()
    with torch.no_grad(), routed(model, seed=4) as handle:
        runtime = runtime_of(handle)
        masking(runtime)
        if kind == "full":
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
        expected = model(**arguments).sample
        write_adapter(
            folder, method="dydit", kind=kind, structure=runtime.structure(), transformer=model,
            own_state=runtime.module.state_dict(), lora_state=lora_state, dtype=torch.float32,
        )  # fmt: skip
    ledger.undo()
    return expected


@pytest.mark.parametrize(("kind", "ups"), [("routers", 1), ("lora", 1), ("lora", 3), ("full", 1)])
def test_what_is_loaded_equals_what_was_trained(kind, ups, tmp_path):
    expected = trained(wide_dit(), tmp_path / "adapter", kind, ups)
    model = wide_dit()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        dense = model(**inputs()).sample
        with accelerate(model, [DyDiT(checkpoint=tmp_path / "adapter")]) as handle:
            assert_close(model(**inputs()).sample, expected)
            assert handle.report.macs_executed < handle.report.macs_dense and not handle.report.warnings
            with handle.dense():
                assert torch.equal(model(**inputs()).sample, dense) == (kind != "full")
            assert_close(model(**inputs()).sample, expected)
        assert torch.equal(model(**inputs()).sample, dense) and not torch.equal(expected, dense)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_changes_that_follow_the_timestep_need_one_for_the_batch(tmp_path):
    trained(wide_dit(), tmp_path / "adapter", "lora", ups=3)
    model = wide_dit()
    with torch.no_grad(), accelerate(model, [DyDiT(checkpoint=tmp_path / "adapter")]):
        first, second = (model(**inputs(timesteps=(t, t, t))).sample for t in (900, 30))
        assert not torch.equal(first, second)
        with pytest.raises(ValueError, match="samples of a batch must share their timestep"):
            model(**inputs(timesteps=(900, 30, 30)))


def test_a_checkpoint_routes_what_it_was_trained_for(tmp_path):
    trained(wide_dit(), tmp_path / "adapter", "routers")
    model = wide_dit()
    with torch.no_grad(), accelerate(model, [DyDiT(checkpoint=tmp_path / "adapter", route="width")]) as handle:
        model(**inputs())
        assert runtime_of(handle).blocks[0].routing.tokens == 0
        assert "forward" not in vars(model.transformer_blocks[0].ff)
    with pytest.raises(ValueError, match=r"capacity=trained: checkpoint \S+ holds no shares: give a number"):
        accelerate(model, [DyDiT(checkpoint=tmp_path / "adapter", capacity="trained")])


@pytest.mark.parametrize("route", ["width", "tokens"])
def test_what_was_trained_for_one_route_loads(route, tmp_path):
    model = wide_dit()
    with torch.no_grad(), routed(model, route=route) as handle:
        runtime, expected = runtime_of(handle), model(**inputs()).sample
        write_adapter(
            tmp_path / "adapter", method="dydit", kind="routers", structure=runtime.structure(), transformer=model,
            own_state=runtime.module.state_dict(),
        )  # fmt: skip
    with torch.no_grad(), accelerate(model, [DyDiT(checkpoint=tmp_path / "adapter")]):
        assert torch.equal(model(**inputs()).sample, expected)
    other = {"width": "tokens", "tokens": "width"}[route]
    with pytest.raises(ValueError, match=rf"route={other}: checkpoint \S+ routes no {other}: leave it out"):
        accelerate(model, [DyDiT(checkpoint=tmp_path / "adapter", route=other)])
    if route == "width":
        with pytest.raises(ValueError, match="capacity is about tokens"):
            accelerate(model, [DyDiT(checkpoint=tmp_path / "adapter", capacity=0.5)])
