"""Exchanging methods on a pipeline, refusals that leave the old ones, and what a report says."""

import pytest
import torch
from helpers import BY_NAME, dense_output

from fastdit import FastDiTPipeline, Recipe, TokenMerging, accelerate
from fastdit.core.report import human

MERGE = TokenMerging()


@pytest.fixture
def pipe():
    pipe = BY_NAME["wan"].make()
    with accelerate(pipe, [MERGE]):
        yield pipe


def test_methods_are_exchanged(pipe):
    tiny = BY_NAME["wan"]
    first = tiny.call(pipe)
    pipe.set_methods([TokenMerging(scope="block")])
    assert not torch.equal(tiny.call(pipe), first) and pipe.methods == (TokenMerging(scope="block"),)
    pipe.set_methods(MERGE)  # a single method will do
    assert torch.equal(tiny.call(pipe), first)
    for nothing in ([], None, ()):
        pipe.set_methods(nothing)
        assert pipe.methods == () and torch.equal(tiny.call(pipe), dense_output("wan"))
    assert pipe.report.macs_executed == pipe.report.macs_dense > 0


@pytest.mark.parametrize(
    "refused",
    [[MERGE, MERGE], ["token_merging"], [MERGE, 3], "nowhere.json", Recipe((), call={"no_such_argument": 1})],
    ids=["clash", "text", "number", "no file", "unknown argument"],
)
def test_a_refusal_keeps_the_old_methods(pipe, refused):
    tiny = BY_NAME["wan"]
    fast = tiny.call(pipe)
    with pytest.raises(ValueError):
        pipe.set_methods(refused)
    assert pipe.methods == (MERGE,) and torch.equal(tiny.call(pipe), fast)


def test_accelerate_twice_names_set_methods(pipe):
    with pytest.raises(ValueError, match=r"already accelerated: use pipe\.set_methods"):
        accelerate(pipe, [MERGE])
    with pytest.raises(ValueError, match="accelerated already"):
        accelerate(pipe.transformer, [MERGE])
    tiny = BY_NAME["wan"]
    assert not torch.equal(tiny.call(pipe), dense_output("wan"))


def test_dense_inside_dense_and_changes_inside_dense(pipe):
    tiny = BY_NAME["wan"]
    fast = tiny.call(pipe)
    with pipe.dense():
        with pipe.dense():
            assert torch.equal(tiny.call(pipe), dense_output("wan"))
        assert torch.equal(tiny.call(pipe), dense_output("wan"))
        for change in (lambda: pipe.set_methods([]), pipe.restore):
            with pytest.raises(RuntimeError, match="inside dense"):
                change()
    assert torch.equal(tiny.call(pipe), fast)
    with pytest.raises(RuntimeError, match="boom"), pipe.dense():
        raise RuntimeError("boom")
    assert torch.equal(tiny.call(pipe), fast)


def test_restoring_the_handle_inside_dense():
    tiny = BY_NAME["wan"]
    pipe = tiny.make()
    host = type(pipe)
    handle = accelerate(pipe, [MERGE])
    with pipe.dense():
        handle.restore()
    assert type(pipe) is host and torch.equal(tiny.call(pipe), dense_output("wan"))


def test_a_replaced_transformer_is_noticed(pipe):
    pipe.transformer = BY_NAME["wan"].make().transformer
    with pytest.raises(RuntimeError, match=r"pipe\.transformer was replaced .* set_methods"):
        BY_NAME["wan"].call(pipe)
    pipe.set_methods([MERGE])
    BY_NAME["wan"].call(pipe)
    assert pipe.report.macs_executed < pipe.report.macs_dense


def test_wan_22_with_only_its_second_transformer():
    """The low-noise part can be loaded alone: transformer=None, and all steps below the boundary."""
    tiny = BY_NAME["wan22_a14b"]
    whole = tiny.make()
    pipe = type(whole)(
        tokenizer=None, text_encoder=None, vae=None, scheduler=whole.scheduler, transformer=None,
        transformer_2=whole.transformer_2, boundary_ratio=1.5,
    )  # fmt: skip
    dense = tiny.call(pipe)
    with accelerate(pipe, [MERGE]) as handle:
        fast = tiny.call(pipe)
        report = handle.report
    assert list(report.methods) == ["token_merging (transformer_2)"]
    assert report.methods["token_merging (transformer_2)"].calls == 12
    assert report.macs_executed < report.macs_dense
    assert fast.isfinite().all() and not torch.equal(fast, dense)
    assert torch.equal(tiny.call(pipe), dense)


def test_call_defaults_of_family_and_recipe():
    """The user's own arguments win over the recipe's, and these over the family's."""
    tiny = BY_NAME["pixart_alpha"]
    pipe = tiny.make()
    arguments = tiny.arguments(pipe, 1, 16)
    del arguments["use_resolution_binning"]  # PixArt at this size fails with binning, which is diffusers' default
    more = {"output_type": "latent", "return_dict": False}
    with pytest.raises(ValueError, match="sample size"):
        pipe(**arguments, num_inference_steps=2, **more)
    with accelerate(pipe, Recipe((MERGE,), call={"num_inference_steps": 3})):
        pipe.set_progress_bar_config(disable=True)
        pipe(**arguments, **more)
        assert pipe.report.steps == 3
        pipe(**arguments, num_inference_steps=2, **more)
        assert pipe.report.steps == 2


def test_a_wrong_argument_is_refused_as_by_diffusers(pipe):
    with pytest.raises(TypeError, match="colour"):
        pipe(colour="red")
    assert BY_NAME["wan"].call(pipe).isfinite().all()


def test_the_report_is_a_table(pipe):
    tiny = BY_NAME["wan"]
    assert pipe.report.steps == 0 and pipe.report.evaluations == 0
    tiny.call(pipe, steps=4)
    text = str(pipe.report)
    lines = text.split("\n")
    assert lines[0].startswith("4 steps, 8 evaluations, ")
    assert f"MACs {human(pipe.report.macs_executed)} of {human(pipe.report.macs_dense)} dense" in lines[1]
    assert "x fewer" in lines[1] and "peak" in lines[0]
    assert lines[2].split() == ["method", "layers", "calls", "density", "backend", "note"]
    assert lines[3].split()[:4] == ["token_merging", "2", "16", "0.500"]
    assert pipe.report.peak_memory > 0 and pipe.report.seconds > 0
    import json

    data = json.loads(json.dumps(pipe.report.to_dict()))
    assert data["methods"]["token_merging"]["calls"] == 16 and len(data["rows"]) == 4

    pipe.set_methods([TokenMerging(density=1)])
    tiny.call(pipe)
    assert "neutral setting" in str(pipe.report) and "(1.00x fewer)" in str(pipe.report)
    assert [human(x) for x in (7, 1234, 118_670_000_000)] == ["7", "1.23 k", "119 G"]


def test_the_report_stays_of_the_last_run(pipe):
    tiny = BY_NAME["wan"]
    tiny.call(pipe, steps=4)
    first = pipe.report
    tiny.call(pipe, steps=2)
    assert first.steps == 4 and pipe.report.steps == 2 and pipe.report is not first
    with pipe.dense():
        tiny.call(pipe, steps=3)
    assert pipe.report.steps == 3 and isinstance(pipe, FastDiTPipeline)
