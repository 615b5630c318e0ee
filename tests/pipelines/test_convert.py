"""Published checkpoints converted: equal to the authors' forward, whole or not at all, and refused with the reason.

The fixtures were made with the authors' own code (alibaba-damo-academy/DyDiT 0ddc509; changsn/FlexDiT ad9fb50, whose
model changsn/SparseDiT fc6917b shares, with its missing attribute `longshortcut` set to False), in float32 and eval
mode: random weights of standard deviation 1/sqrt(inputs), of 1 in routers, and biases of 0.1 (0.5 behind the token
routers). DyDiT's seed is one for which no logit is nearer to 0 than 0.05 and in `mixed` every block keeps a quarter to
three quarters of its routed heads, channels and tokens; its counts of tokens go from 0 to all in single samples.
DyDiT: width 32, 4 heads, 3 blocks, 8 x 8 latents. FlexDiT: width 20, 5 heads, 1 pooled block, 2 modules of 1 + 2 + 1 +
1 blocks, 1 block above, 12 x 12 latents on a 4 x 4 grid. Both have 10 classes. `model.*` is the state dict; `mixed`,
`equal` and `complete` hold timesteps and outputs, `guided` those of `forward_with_cfg` at scale 4.
"""

import argparse
import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DiTPipeline, DPMSolverMultistepScheduler
from published import Groups, Shape, dydit_reference, dydit_state, flexdit_reference, flexdit_state
from safetensors.torch import load_file, save_file

from fastdit import FastDiTPipeline, cli
from fastdit.core.registry import discover
from fastdit.pipelines.convert import CONVERTERS, convert, read_checkpoint

FIXTURES = Path(__file__).with_name("fixtures")
OPTIONS = {"dydit": {}, "flexdit": {"num_heads": 5, "sparse_grid": 4}}  # no width of DiT's: heads must be given
SHAPES = {"dydit": Shape(32, 4), "flexdit": Shape(20, 5, side=6)}
GROUPS = Groups(pooling=1, modules=2, sparse=2, dense=1, top=1)
METHODS = sorted(OPTIONS)
on_each = pytest.mark.parametrize("name", METHODS)


def fixture(name):
    return load_file(FIXTURES / f"{name}_tiny.safetensors")


def weights(name):
    return {key.removeprefix("model."): value for key, value in fixture(name).items() if key.startswith("model.")}


def small_dydit():
    """For what needs no numbers."""
    return dydit_state(Shape(16, 2), 2)


def saved(state, folder):
    torch.save(state, folder / "state.pt")
    return folder / "state.pt"


@torch.no_grad()
def output(pipe, latents, timestep, labels):
    return pipe.transformer(latents, timestep=timestep, class_labels=labels).sample


def output_of(pipe, data, kind):
    return output(pipe, data["hidden_states"], data[f"{kind}.timestep"], data["class_labels"])


def assert_near(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The fixtures' weights as the authors' training keeps them, converted."""
    found = {}
    for name in METHODS:
        place, state = tmp_path_factory.mktemp(name), weights(name)
        other = {key: value + 1 for key, value in state.items()}
        training = {"model": other, "ema": state, "opt": {"step": 3}, "args": argparse.Namespace(lr=1e-4)}
        convert(name, saved(training, place), place / "out", **OPTIONS[name])
        found[name] = place / "out"
    return found


def test_every_converter_is_tested():
    discover("fastdit.pipelines.convert")
    assert list(CONVERTERS) == METHODS


# --- the same numbers -------------------------------------------------------------------------------------------------


@on_each
@pytest.mark.parametrize("kind", ["mixed", "equal"])
def test_it_equals_the_authors_forward(folders, name, kind):
    data, pipe = fixture(name), FastDiTPipeline.from_pretrained(folders[name])
    assert [method.name for method in pipe.methods] == [name]
    assert_near(output_of(pipe, data, kind), data[f"{kind}.sample"])


def test_dydit_dense_is_the_authors_complete_model(folders):
    data, pipe = fixture("dydit"), FastDiTPipeline.from_pretrained(folders["dydit"])
    with pipe.dense():
        assert_near(output_of(pipe, data, "complete"), data["complete.sample"])


def test_flexdit_has_no_dense_model(folders):
    pipe = FastDiTPipeline.from_pretrained(folders["flexdit"])
    with pytest.raises(RuntimeError, match="dense"), pipe.dense():
        pass


@on_each
def test_guidance_of_three_channels_equals_the_authors(folders, name):
    """DiTPipeline's own formula on all four channels, in which the option leaves the fourth as the condition has it."""
    data, pipe = fixture(name), FastDiTPipeline.from_pretrained(folders[name])
    pipe.set_methods([dataclasses.replace(pipe.methods[0], guidance_channels=3)])
    latents = data["hidden_states"][:2].repeat(2, 1, 1, 1)
    found = output(pipe, latents, data["guided.timestep"], data["guided.class_labels"])
    conditional, unconditional = found[:, :4].chunk(2)
    guided = unconditional + 4 * (conditional - unconditional)
    torch.testing.assert_close(guided, data["guided.sample"][:2, :4], atol=1e-4, rtol=0)  # the scale enlarges rounding


@on_each
def test_the_reference_equals_the_authors_forward(name):
    data, shape = fixture(name), SHAPES[name]
    more = {"dydit": (), "flexdit": (GROUPS, 4)}[name]
    reference = {"dydit": dydit_reference, "flexdit": flexdit_reference}[name]
    for kind in ("mixed", "equal"):
        given = data["hidden_states"], data[f"{kind}.timestep"], data["class_labels"]
        assert_near(reference(weights(name), shape, *given, *more), data[f"{kind}.sample"])


TIMES = torch.tensor([12, 503, 999])


@pytest.mark.parametrize(
    ("shape", "depth"),
    [
        (Shape(60, 5, side=8), 3),  # a width that 16 does not divide
        (Shape(48, 3, patch=4, side=3, outputs=4, classes=3), 2),  # no learned variance
        (Shape(384, 6, patch=1, side=2, classes=4), 1),
    ],
)
def test_dydit_of_any_width(tmp_path, shape, depth):
    state = dydit_state(shape, depth)
    convert("dydit", saved(state, tmp_path), tmp_path / "out")
    pipe, (latents, labels) = FastDiTPipeline.from_pretrained(tmp_path / "out"), shape.inputs(3)
    for timestep in (TIMES, TIMES[[1, 1, 1]]):
        expected = dydit_reference(state, shape, latents, timestep, labels)
        assert_near(output(pipe, latents, timestep, labels), expected)


@pytest.mark.parametrize(
    ("shape", "groups", "grid"),
    [
        (Shape(384, 6, side=5, classes=4), Groups(0, 1, 1, 0, 0), 3),  # heads by the width
        (Shape(24, 3, patch=4, side=6, outputs=4), Groups(2, 2, 0, 2, 3), 6),  # a sparse grid that is the full one
    ],
)
def test_flexdit_of_any_width_and_groups(tmp_path, shape, groups, grid):
    state = flexdit_state(shape, groups)
    heads = None if shape.width == 384 else shape.heads
    convert("flexdit", saved(state, tmp_path), tmp_path / "out", num_heads=heads, sparse_grid=grid)
    pipe, (latents, labels) = FastDiTPipeline.from_pretrained(tmp_path / "out"), shape.inputs(3)
    expected = flexdit_reference(state, shape, latents, TIMES, labels, groups, grid)
    assert_near(output(pipe, latents, TIMES, labels), expected)


# --- what is written --------------------------------------------------------------------------------------------------


@on_each
def test_the_transformers_config(folders, name):
    shape, config = SHAPES[name], json.loads((folders[name] / "transformer" / "config.json").read_text())
    expected = {
        "num_attention_heads": shape.heads,
        "attention_head_dim": shape.width // shape.heads,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": {"dydit": 3, "flexdit": 12}[name],
        "sample_size": shape.side * 2,
        "patch_size": 2,
        "num_embeds_ada_norm": 10,
        "norm_eps": 1e-6,
    }
    assert {key: config[key] for key in expected} == expected


def test_every_block_has_the_embedders_and_pooled_attention_its_values_alone(tmp_path):
    state = weights("flexdit")
    found = read_checkpoint("flexdit", saved(state, tmp_path), **OPTIONS["flexdit"]).state
    for index in range(12):
        emb = f"transformer_blocks.{index}.norm1.emb"
        assert torch.equal(found[f"{emb}.timestep_embedder.linear_2.weight"], state["t_embedder.mlp.2.weight"])
        table = found[f"{emb}.class_embedder.embedding_table.weight"]
        assert torch.equal(table, state["y_embedder.embedding_table.weight"])
    pooled = "transformer_blocks.0.attn1"
    assert torch.equal(found[f"{pooled}.to_v.weight"], state["poolingformer_blocks.0.attn.v.weight"])
    assert not any(found[f"{pooled}.{part}.{word}"].any() for part in ("to_q", "to_k") for word in ("weight", "bias"))


@on_each
def test_the_authors_frequencies_come_and_go_with_the_method(folders, name):
    pipe = FastDiTPipeline.from_pretrained(folders[name])
    embeddings = [block.norm1.emb.time_proj for block in pipe.transformer.transformer_blocks]
    assert {embedding.downscale_freq_shift for embedding in embeddings} == {0}
    pipe.restore()
    assert {embedding.downscale_freq_shift for embedding in embeddings} == {1}


@on_each
def test_a_moved_folder_loads_and_its_card_says_what_it_is(folders, name, tmp_path):
    moved = shutil.copytree(folders[name], tmp_path / "elsewhere")
    data, pipe = fixture(name), FastDiTPipeline.from_pretrained(moved)
    assert Path(pipe.methods[0].checkpoint) == moved
    assert_near(output_of(pipe, data, "mixed"), data["mixed.sample"])
    card = (moved / "README.md").read_text()
    for words in (
        CONVERTERS[name].title,
        "state.pt",
        "drops it",
        "downscale_freq_shift=0",
        "guidance_channels=3",
        "vae=",
    ):
        assert words in card, words
    assert not any(path.name.startswith(".") for path in moved.parent.iterdir())


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Folders of a VAE and of a pipeline that has a scheduler of its own, and a file with 1000 labels."""
    place = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4)
    vae.save_pretrained(place / "vae")
    DiTPipeline(transformer=None, vae=None, scheduler=DPMSolverMultistepScheduler()).save_pretrained(place / "pipeline")
    (place / "labels.txt").write_text("".join(f"thing {number}, item {number}\n" for number in range(1000)))
    return {"vae": str(place / "vae"), "scheduler": str(place / "pipeline"), "labels": place / "labels.txt"}


@pytest.fixture(scope="module")
def whole(parts, tmp_path_factory):
    """A DyDiT with ImageNet's number of classes, and everything that a pipeline needs."""
    place = tmp_path_factory.mktemp("whole")
    state = dydit_state(Shape(16, 2, classes=1000), 2)
    convert("dydit", saved(state, place), place / "out", guidance_channels=3, **parts)
    return place / "out"


def test_with_vae_scheduler_and_labels_it_is_a_pipeline_that_runs(whole):
    pipe = FastDiTPipeline.from_pretrained(whole)
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe.scheduler, DPMSolverMultistepScheduler)
    assert pipe.methods[0].guidance_channels == 3 and "guidance_scale" not in pipe.call_defaults
    given = {"class_labels": pipe.get_label_ids(["item 7"]), "num_inference_steps": 2, "output_type": "np"}
    image = pipe(**given, generator=torch.Generator().manual_seed(0)).images
    assert image.shape == (1, 8, 8, 3) and pipe.report.macs_executed < pipe.report.macs_dense
    pipe.set_methods([dataclasses.replace(pipe.methods[0], guidance_channels=None)])
    assert (image != pipe(**given, generator=torch.Generator().manual_seed(0)).images).any()


def test_without_them_it_loads_with_ddim_and_says_what_is_missing(folders):
    pipe = FastDiTPipeline.from_pretrained(folders["dydit"])
    config = pipe.scheduler.config
    assert (config["_class_name"], config["beta_start"], config["beta_end"]) == ("DDIMScheduler", 1e-4, 0.02)
    with pytest.raises(ValueError, match=r"no VAE to decode with: load it with vae="):
        pipe(class_labels=[0], num_inference_steps=1)
    assert not pipe.report.rows
    assert pipe.call_defaults["guidance_scale"] == 1.0, "DiTPipeline's label for no class is beyond 10 classes"


@pytest.mark.parametrize("wrap", [dict, lambda state: {"model": state}, lambda state: {"ema": state, "model": {}}])
def test_state_dicts_bare_and_inside_a_training_checkpoint(tmp_path, wrap):
    state = small_dydit()
    found = read_checkpoint("dydit", saved(wrap(state), tmp_path)).state
    assert torch.equal(found["proj_out_2.weight"], state["final_layer.linear.weight"])


def test_safetensors_and_half_precision(tmp_path):
    state = {name: value.bfloat16() for name, value in small_dydit().items()}
    save_file(state, tmp_path / "state.safetensors")
    found = read_checkpoint("dydit", tmp_path / "state.safetensors").state
    assert torch.equal(found["proj_out_2.weight"], state["final_layer.linear.weight"].float())


@on_each
def test_the_command(monkeypatch, capsys, tmp_path, name):
    file = saved(weights(name), tmp_path)
    flags = [part for key, value in OPTIONS[name].items() for part in (f"--{key.replace('_', '-')}", str(value))]
    monkeypatch.setattr(sys, "argv", ["fastdit", "convert", name, str(file), str(tmp_path / "out"), *flags])
    with pytest.raises(SystemExit) as end:
        cli.main()
    captured = capsys.readouterr()
    assert not end.value.code and CONVERTERS[name].title in captured.out and not captured.err
    data, pipe = fixture(name), FastDiTPipeline.from_pretrained(tmp_path / "out")
    assert_near(output_of(pipe, data, "mixed"), data["mixed.sample"])
