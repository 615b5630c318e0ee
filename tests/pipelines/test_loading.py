"""FastDiTPipeline.from_pretrained and from_single_file on tiny saved folders, and what they say about broken ones."""

import functools
import inspect
import json
import warnings

import diffusers
import pytest
import torch
from helpers import BY_NAME, dense_output
from safetensors.torch import save_file

from fastdit import FastDiTPipeline, Recipe, TokenMerging

NAMES = ["pixart_alpha", "dit", "wan"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for name in NAMES:
        made[name] = tmp_path_factory.mktemp(name)
        BY_NAME[name].make().save_pretrained(made[name])
    return made


@pytest.fixture
def wan_copy(folders, tmp_path):
    import shutil

    return shutil.copytree(folders["wan"], tmp_path / "wan")


@pytest.mark.parametrize("name", NAMES)
def test_from_pretrained(name, folders):
    tiny = BY_NAME[name]
    host = type(tiny.make())
    pipe = FastDiTPipeline.from_pretrained(folders[name], methods=[TokenMerging()])
    assert isinstance(pipe, FastDiTPipeline) and isinstance(pipe, host)
    assert type(pipe).__name__ == host.__name__ and type(pipe).__module__ == host.__module__
    assert inspect.signature(pipe.__call__) == inspect.signature(tiny.make().__call__)
    assert pipe.methods == (TokenMerging(),)
    fast = tiny.call(pipe)
    assert pipe.report.macs_executed < pipe.report.macs_dense
    with pipe.dense():
        assert torch.equal(tiny.call(pipe), dense_output(name))
        assert pipe.report.macs_executed == pipe.report.macs_dense
    assert torch.equal(tiny.call(pipe), fast) and not torch.equal(fast, dense_output(name))
    pipe.restore()
    assert isinstance(pipe, FastDiTPipeline) and pipe.methods == ()
    assert torch.equal(tiny.call(pipe), dense_output(name)) and not pipe.report.methods
    pipe.set_methods([TokenMerging()])
    assert torch.equal(tiny.call(pipe), fast)


def test_components_listed_as_null_and_one_dtype(folders):
    pipe = FastDiTPipeline.from_pretrained(folders["wan"], methods=[])
    assert pipe.vae is None and pipe.text_encoder is None
    assert {p.dtype for p in pipe.transformer.parameters()} == {torch.float32}
    for key in ("dtype", "torch_dtype"):
        half = FastDiTPipeline.from_pretrained(folders["pixart_alpha"], methods=[], **{key: torch.bfloat16})
        assert {p.dtype for p in half.transformer.parameters()} == {torch.bfloat16}


def test_a_component_given_by_the_user_is_used(folders):
    transformer = BY_NAME["wan"].make().transformer
    pipe = FastDiTPipeline.from_pretrained(folders["wan"], methods=[TokenMerging()], transformer=transformer)
    assert pipe.transformer is transformer


def test_without_methods_and_recipe_it_runs_dense_and_says_so(folders):
    with pytest.warns(UserWarning, match=r"no fastdit\.json beside it: .* runs dense.*methods=\[TokenMerging"):
        pipe = FastDiTPipeline.from_pretrained(folders["pixart_alpha"])
    assert torch.equal(BY_NAME["pixart_alpha"].call(pipe), dense_output("pixart_alpha"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        FastDiTPipeline.from_pretrained(folders["pixart_alpha"], methods=[])


def test_the_recipe_beside_the_model_is_found(wan_copy):
    Recipe((TokenMerging(density=0.25),), call={"guidance_scale": 1.0}).save(wan_copy / "fastdit.json")
    pipe = FastDiTPipeline.from_pretrained(wan_copy)
    assert pipe.methods == (TokenMerging(density=0.25),)
    assert FastDiTPipeline.from_pretrained(wan_copy, methods=[]).methods == ()


def test_call_defaults_beside_the_model_stay_with_other_methods(wan_copy):
    Recipe((TokenMerging(density=0.25),), call={"guidance_scale": 1.0, "num_inference_steps": 2}).save(
        wan_copy / "fastdit.json"
    )
    pipe = FastDiTPipeline.from_pretrained(wan_copy, methods=[TokenMerging()])
    kept = pipe.call_defaults
    assert pipe.methods == (TokenMerging(),) and (kept["guidance_scale"], kept["num_inference_steps"]) == (1.0, 2)
    for methods in ([TokenMerging(reducer="pool")], [], "nowhere.json"):
        if methods == "nowhere.json":
            with pytest.raises(ValueError, match="does not exist"):
                pipe.set_methods(methods)
        else:
            pipe.set_methods(methods)
        assert pipe.call_defaults == kept
    pipe.set_progress_bar_config(disable=True)
    arguments = BY_NAME["wan"].arguments(pipe, 1, 16)
    del arguments["guidance_scale"]
    pipe(**arguments, output_type="latent")
    assert (pipe.report.steps, pipe.report.evaluations) == (2, 2)  # guidance 1: one pass a step
    pipe.set_methods(Recipe((), call={"num_inference_steps": 3}))
    assert pipe.call_defaults == {**kept, "num_inference_steps": 3}
    with_own = FastDiTPipeline.from_pretrained(wan_copy, methods=Recipe((), call={"guidance_scale": 2.0}))
    assert with_own.call_defaults == {**kept, "guidance_scale": 2.0}


def test_new_pipelines_of_the_same_class_are_diffusers_own(folders):
    pipe = FastDiTPipeline.from_pretrained(folders["wan"], methods=[TokenMerging()])
    nothing = {key: None for key, value in pipe.components.items() if value is None}
    assert type(type(pipe).from_pretrained(folders["wan"], **nothing)) is diffusers.WanPipeline


def one_line(action, *parts):
    with pytest.raises(ValueError) as error:
        action()
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message, message


def test_names_that_lead_nowhere(tmp_path):
    load = FastDiTPipeline.from_pretrained
    one_line(lambda: load("fastdit/no-such-model"), "unknown bundled model 'fastdit/no-such-model'")
    one_line(lambda: load(tmp_path / "nowhere"), tmp_path / "nowhere", "does not exist")
    one_line(lambda: load(tmp_path), tmp_path, "has no model_index.json")
    one_line(lambda: load("nonsense"), "unknown model 'nonsense'", "Hub id")
    one_line(lambda: load("./nowhere"), "./nowhere")


def test_damaged_and_missing_files(wan_copy):
    load = lambda: FastDiTPipeline.from_pretrained(wan_copy, methods=[])  # noqa: E731
    weights = wan_copy / "transformer" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    for data in (whole[: len(whole) // 2], whole[:10], b"", b"not a weight file at all" * 10):
        weights.write_bytes(data)
        one_line(load, wan_copy)
    weights.unlink()
    one_line(load, wan_copy, "diffusion_pytorch_model")
    weights.write_bytes(whole)
    config = wan_copy / "transformer" / "config.json"
    text = config.read_text()
    config.write_text(text[: len(text) // 2])
    one_line(load, wan_copy)
    config.write_text(text)
    index = wan_copy / "model_index.json"
    index.write_text("{")
    one_line(load, wan_copy)


def test_from_single_file(folders, tmp_path):
    tiny = BY_NAME["wan"]
    file = tmp_path / "wan.safetensors"
    original = tiny.make()
    original.transformer.proj_out.weight.mul_(1.5)  # not the folder's weights
    expected = tiny.call(original)
    save_file(original.transformer.state_dict(), file)
    pipe = FastDiTPipeline.from_single_file(file, folders["wan"], methods=[TokenMerging()])
    assert isinstance(pipe, FastDiTPipeline) and isinstance(pipe, diffusers.WanPipeline)
    assert {p.dtype for p in pipe.transformer.parameters()} == {torch.float32}
    tiny.call(pipe)
    assert pipe.report.macs_executed < pipe.report.macs_dense
    with pipe.dense():
        assert torch.equal(tiny.call(pipe), expected) and not torch.equal(expected, dense_output("wan"))


def test_a_single_file_without_methods_runs_dense_and_says_so(folders, tmp_path):
    file = tmp_path / "wan.safetensors"
    save_file(BY_NAME["wan"].make().transformer.state_dict(), file)
    with pytest.warns(UserWarning, match=r"no fastdit\.json beside it: .* runs dense"):
        pipe = FastDiTPipeline.from_single_file(file, folders["wan"])
    assert pipe.methods == () and torch.equal(BY_NAME["wan"].call(pipe), dense_output("wan"))


def test_single_files_that_cannot_be_read(folders, tmp_path):
    load = functools.partial(FastDiTPipeline.from_single_file, methods=[])
    missing, damaged = tmp_path / "missing.safetensors", tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"\x10\0\0\0\0\0\0\0{garbage")
    one_line(lambda: load(missing, folders["wan"]), missing, "does not exist")
    one_line(lambda: load(damaged, folders["wan"]), damaged)
    one_line(lambda: load(damaged, folders["dit"]), "DiTTransformer2DModel", "from_pretrained")
    one_line(lambda: load(damaged, tmp_path), "model_index.json")


def test_a_pipeline_without_a_described_transformer(tmp_path):
    pipe = diffusers.DDPMPipeline(diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), norm_num_groups=2, layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    ), diffusers.DDPMScheduler())  # fmt: skip
    pipe.save_pretrained(tmp_path)
    one_line(lambda: FastDiTPipeline.from_pretrained(tmp_path, methods=[TokenMerging()]), "has no transformer")
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == "DDPMPipeline"
