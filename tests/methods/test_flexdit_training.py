"""FlexDiT under training, also with blocks that are computed again, and its checkpoints."""

import shutil

import pytest
import torch
from flexdit_parts import SIX, dit_inputs, make_dit, make_pixart, pixart_inputs, runtime_of, shake
from helpers import BY_NAME, assert_close, dense_output
from tiny import noise
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from fastdit import DyDiT, FlexDiT, accelerate
from fastdit.methods.adapter import write_adapter
from fastdit.methods.lora import LowRank
from fastdit.models.base import load_families

# --- training ---------------------------------------------------------------------------------------------------------


def gradients(model, runs, recompute=None, between=None):
    """Gradients of a loss over several forwards at these timesteps, each of two samples."""
    model.requires_grad_(True).zero_grad()
    model.disable_gradient_checkpointing()
    if recompute is not None:
        model.enable_gradient_checkpointing(*recompute)
    with accelerate(model, [FlexDiT(pooling=1, modules=1, sparse=1, dense=1)]):
        runtime = runtime_of(model)
        shake(runtime)
        loss = torch.zeros(())
        for timestep in runs:
            loss = loss + model(**dit_inputs((timestep, timestep))).sample.square().mean()
        if between is not None:
            with torch.no_grad():
                model(**dit_inputs((between, between)))
        loss.backward()
        assert runtime.passage.full is None and not runtime.passage._known
        own = {f"own.{name}": parameter for name, parameter in runtime.module.named_parameters()}
    named = {**dict(model.named_parameters()), **own}
    return {name: parameter.grad.clone() for name, parameter in named.items() if parameter.grad is not None}


def test_gradients_reach_every_parameter_but_the_unused_ones():
    model = make_dit()
    found = gradients(model, [300])
    missing = {name for name, _ in model.named_parameters()} - set(found)
    unused = {f"transformer_blocks.0.attn1.{name}.{kind}" for name in ("to_q", "to_k") for kind in ("weight", "bias")}
    assert missing == unused  # the pooled block has values only
    assert sum(name.startswith("own.recover.0.") for name in found) == 4
    assert all(value.abs().max() > 0 for name, value in found.items() if name.startswith("own."))


@pytest.mark.parametrize(("runs", "between"), [([300], None), ([100, 600, 950], None), ([950, 100], 600)])
def test_gradient_checkpointing_gives_the_same_gradients(runs, between):
    """Forwards of several grids before one backward, and an evaluation between."""
    model = make_dit()
    expected = gradients(model, runs, between=between)
    found = gradients(model, runs, recompute=(), between=between)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_recomputing_on_other_tensors_is_refused_and_not_wrong():
    model = make_dit()

    def reentrant(block, *arguments):
        return torch_checkpoint(block.__call__, *arguments, use_reentrant=True)

    inputs = dit_inputs()
    inputs["hidden_states"].requires_grad_(True)
    model.enable_gradient_checkpointing(reentrant)
    with accelerate(model, [SIX]):
        loss = model.requires_grad_(True)(**inputs).sample.mean()
        with pytest.raises(RuntimeError, match="use_reentrant=False"):
            loss.backward()


def test_training_in_mixed_precision_keeps_the_parameters():
    model = make_pixart().train().requires_grad_(True)
    with accelerate(model, [SIX]) as handle:
        own = list(runtime_of(model).module.parameters())
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**pixart_inputs()).sample.float().square().mean()
        loss.backward()
        assert list(map(id, runtime_of(model).module.parameters())) == list(map(id, own))
        assert all(p.dtype == p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in own)
        assert runtime_of(model).executed() is None
        with pytest.raises(ValueError, match=r"flexdit has no complete model .*without complete steps"):
            runtime_of(model).opened()
        assert not handle.report.warnings  # nobody needs to be told that what is in training is not trained yet


@torch.no_grad()
def test_the_full_map_is_dropped():
    pipe = BY_NAME["dit"].make()
    with accelerate(pipe, [FlexDiT(pooling=0, modules=1, sparse=0, dense=0, rate=0.75)]):
        runtime = runtime_of(pipe.transformer)
        pipe.transformer(**dit_inputs())
        assert runtime.passage.full is None

        def fail(*_):
            assert runtime.passage.full is not None
            raise ValueError("boom")

        hook = pipe.transformer.transformer_blocks[0].register_forward_hook(fail)
        with pytest.raises(ValueError, match="boom"):
            BY_NAME["dit"].call(pipe)
        hook.remove()
        assert runtime.passage.full is None


# --- checkpoints ------------------------------------------------------------------------------------------------------


STRUCTURE = {"pooling": 1, "modules": 1, "sparse": 1, "dense": 1, "rate": [0.61, 0.86], "grid": None}


def trained(folder, kind="routers", model=None, **options):
    """An adapter for `make_dit()` as if trained, and what its model computes in training's own form."""
    model = model or make_dit()
    with accelerate(model, [FlexDiT(pooling=1, modules=1, sparse=1, dense=1)]), torch.no_grad():
        runtime = runtime_of(model)
        shake(runtime)
        options = {"structure": runtime.structure(), "own_state": runtime.module.state_dict(), **options}
        write_adapter(folder, method="flexdit", kind=kind, transformer=model, dtype=torch.float32, **options)
        return str(folder), model(**dit_inputs()).sample


@torch.no_grad()
def test_a_full_checkpoint_brings_the_hosts_weights_and_takes_them_away(tmp_path):
    other = make_dit()
    for parameter in other.parameters():
        parameter.mul_(1.1)
    checkpoint, expected = trained(tmp_path / "full", "full", other)
    model = make_dit()
    dense = model(**dit_inputs()).sample
    with accelerate(model, [FlexDiT(checkpoint)]) as handle:
        assert runtime_of(model).structure() == STRUCTURE
        assert torch.equal(model(**dit_inputs()).sample, expected)
        assert not handle.report.warnings
    assert torch.equal(model(**dit_inputs()).sample, dense)


def test_there_is_no_dense_form_of_trained_weights(tmp_path):
    pipe = BY_NAME["dit"].make()
    with accelerate(pipe, [FlexDiT(pooling=0, modules=1, sparse=0, dense=0)]):  # untrained: the weights are the base's
        with pipe.dense():
            assert torch.equal(BY_NAME["dit"].call(pipe), dense_output("dit"))
        runtime = runtime_of(pipe.transformer)
        for kind in ("routers", "full"):
            write_adapter(
                tmp_path / kind, method="flexdit", kind=kind, structure=runtime.structure(),
                own_state=runtime.module.state_dict(), transformer=pipe.transformer,
            )  # fmt: skip
    with accelerate(pipe, [FlexDiT(tmp_path / "routers")]), pipe.dense():  # the base is untouched
        assert torch.equal(BY_NAME["dit"].call(pipe), dense_output("dit"))
    shutil.copytree(tmp_path / "routers", tmp_path / "merged")
    (tmp_path / "merged" / "model_index.json").write_text("{}")  # a whole pipeline: its weights are no base's
    for folder in ("full", "merged"):
        with (
            accelerate(pipe, [FlexDiT(tmp_path / folder)]),
            pytest.raises(RuntimeError, match=r"flexdit: dense\(\) is not available.*load the base model"),
            pipe.dense(),
        ):
            pass


@torch.no_grad()
def test_grids_are_free_and_untrained_ones_are_told(tmp_path):
    checkpoint, expected = trained(tmp_path / "x")
    for options, told in (
        ({}, None),
        ({"rate": 0.61}, None),  # 5 x 5, one of the trained
        ({"grid": 6}, "sparse grid 6 x 6 of 8 x 8 tokens was not trained, 5 x 5, 4 x 4, 3 x 3 was"),
        ({"rate": (0.1, 0.4)}, "sparse grid 7 x 7"),
    ):
        model = make_dit()
        with accelerate(model, [FlexDiT(checkpoint, **options)]) as handle:
            out = model(**dit_inputs()).sample
        assert torch.equal(out, expected) == (not options)
        assert (told in handle.report.warnings[0]) if told else not handle.report.warnings


def test_what_contradicts_a_checkpoint_is_refused(tmp_path):
    checkpoint, _ = trained(tmp_path / "x")
    for name in ("pooling", "modules", "sparse", "dense"):
        with accelerate(make_dit(), [FlexDiT(checkpoint, **{name: 1})]):
            pass
        with pytest.raises(ValueError, match=rf"{name}=2 contradicts .*trained with {name}=1: leave {name} out"):
            accelerate(make_dit(), [FlexDiT(checkpoint, **{name: 2})])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"structure": {"modules": 1}}, "structure is damaged"),
        ({"structure": {**STRUCTURE, "rate": "high"}}, "structure is damaged"),
        ({"own_state": {"recover.0.sparse.weight": torch.zeros(32, 32)}}, "recovery layers .*Missing key"),
    ],
)
def test_damaged_checkpoints_are_one_error(tmp_path, options, message):
    checkpoint, _ = trained(tmp_path / "x", **options)
    with pytest.raises(ValueError, match=rf"checkpoint {checkpoint}.*{message}") as error:
        accelerate(make_dit(), [FlexDiT(checkpoint)])
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_another_method_or_model(tmp_path):
    checkpoint, _ = trained(tmp_path / "x")
    with pytest.raises(ValueError, match="holds flexdit, not dydit"):
        accelerate(make_dit(), [DyDiT(checkpoint)])
    with pytest.raises(ValueError, match="is for DiTTransformer2DModel, and this transformer is PixArt"):
        accelerate(make_pixart(), [FlexDiT(checkpoint)])


@pytest.mark.filterwarnings("ignore:flexdit. adapter .* was trained on weights that are not these")
@pytest.mark.parametrize("ups", [1, 3])
@torch.no_grad()
def test_low_rank_changes_act_as_if_folded(tmp_path, ups):
    paths = ["transformer_blocks.0.attn1.to_v", "transformer_blocks.1.attn1.to_k", "transformer_blocks.3.ff.net.2"]
    model = make_dit()
    state = {f"{path}.down": noise(2, model.get_submodule(path).in_features, seed=3) / 8 for path in paths}
    state |= {f"{path}.up": noise(ups, 32, 2, seed=4) / 8 for path in paths}
    if ups > 1:
        state |= {"mixer.weight": noise(ups, 32, seed=5), "mixer.bias": torch.zeros(ups)}
    checkpoint, without = trained(tmp_path / "x", "lora", lora_state=state)
    with accelerate(model, [FlexDiT(checkpoint)]):
        own = [model(**dit_inputs((t, t))).sample for t in (500, 600)]
        mixed = model(**dit_inputs((500, 600))).sample
        assert_close(mixed, torch.stack([own[0][0], own[1][1]]))  # each sample by its own timestep
        model.requires_grad_(True).train()
        with torch.enable_grad(), pytest.raises(ValueError, match="for inference"):
            model(**dit_inputs())
    model.eval().requires_grad_(False)
    routers, _ = trained(tmp_path / "routers")
    for timestep, expected in zip((500, 600), own, strict=True):
        folded = make_dit()
        embedding = load_families()["dit"].time_embedding(folded, torch.tensor([timestep]))
        changes = LowRank(state)
        for path in paths:
            folded.get_submodule(path).weight.add_(changes.delta(path, embedding if ups > 1 else None))
        with accelerate(folded, [FlexDiT(routers)]):
            assert_close(folded(**dit_inputs((timestep, timestep))).sample, expected)
    assert not torch.allclose(own[0], without, atol=1e-3)
