"""BlockStreaming where files, disk, memory or the user fail: one clear error, and a pipeline that works afterwards."""

import json
import os
import shutil
import threading
from concurrent.futures import Future

import pytest
import torch
from helpers import BY_NAME, dense_output
from streaming_parts import open_files, saved, smallest_budgets, streaming_threads

from fastdit import BlockStreaming, FastDiTPipeline


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return saved("wan", tmp_path_factory.mktemp("wan"), max_shard_size="40KB")


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "wan")


@pytest.fixture
def pipe(original):
    return load(original, smallest_budgets(original).prefetching)


def load(folder, budget="1MiB", **kwargs):
    return FastDiTPipeline.from_pretrained(folder, methods=[BlockStreaming(memory_budget=budget)], **kwargs)


def shards(folder):
    found = sorted((folder / "transformer").glob("*.safetensors"))
    assert len(found) > 1
    return found


def test_budget_too_small_names_the_smallest_that_works(original):
    with pytest.raises(
        ValueError, match=r"memory_budget 5KB is 0.0 MiB, and the largest block \(transformer\.blocks\.\d"
    ):
        load(original, "5KB")
    least = smallest_budgets(original).least
    load(original, least)
    with pytest.raises(ValueError, match="the smallest that works"):
        load(original, least - 1024)


@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "header", "garbage", "index", "foreign name"])
def test_damaged_files_are_found_before_any_work(damage, folder):
    last = shards(folder)[-1]
    index = folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    if damage == "missing":
        last.unlink()
    elif damage == "truncated":
        os.truncate(last, last.stat().st_size - 10)
    elif damage == "empty":
        os.truncate(last, 0)
    elif damage == "header":
        os.truncate(last, 20)
    elif damage == "garbage":
        last.write_bytes((5).to_bytes(8, "little") + b"what?" + b"x" * 100)
    elif damage == "index":
        index.write_text("{")
    else:
        data = json.loads(index.read_text())
        data["weight_map"]["x"] = "../../secret.safetensors"
        index.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="fetch it again") as error:
        load(folder)
    assert (index.name if damage in ("index", "foreign name") else last.name) in str(error.value)
    assert not streaming_threads()


def test_weights_of_another_model(folder):
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_layers": 3}))
    with pytest.raises(
        ValueError, match=r"holds no weights for blocks\.2\.\S+: is it the folder of this WanTransformer3DModel"
    ):
        load(folder)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_layers": 2, "ffn_dim": 32}))
    with pytest.raises(ValueError, match=r"ffn\.net\S+ has the shape \(64,.*the model wants \(32"):
        load(folder)


def test_only_pickled_weights(folder):
    for file in (folder / "transformer").glob("*safetensors*"):
        file.unlink()
    (folder / "transformer" / "diffusion_pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"only diffusion_pytorch_model.bin.*reads .safetensors files"):
        load(folder)


@pytest.mark.parametrize("name, value", [("device_map", "balanced"), ("quantization_config", object())])
def test_options_that_place_weights_are_refused(name, value, original):
    with pytest.raises(ValueError, match=f"block_streaming does not go with {name}"):
        load(original, **{name: value})


def test_quantised_checkpoint(folder):
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": {"quant_method": "x"}}))
    with pytest.raises(ValueError, match="transformer is quantised"):
        load(folder)


def test_other_offloading_is_refused(pipe):
    with pytest.raises(RuntimeError, match="cannot be moved, cast or offloaded by itself"):
        pipe.transformer.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
    assert torch.equal(BY_NAME["wan"].call(pipe), dense_output("wan"))
    pipe.transformer._hf_hook = object()  # as accelerate marks what it moves
    with pytest.raises(RuntimeError, match="transformer is streamed from disk already: remove the other offloading"):
        BY_NAME["wan"].call(pipe)


def test_single_original_file_is_refused(original, tmp_path):
    file = tmp_path / "x.safetensors"
    file.write_bytes(b"")
    with pytest.raises(ValueError, match="block_streaming reads a diffusers folder"):
        FastDiTPipeline.from_single_file(file, original, methods=[BlockStreaming()])


def test_saving_and_casting_are_refused(pipe, tmp_path):
    with pytest.raises(RuntimeError, match="cannot be saved: they are on disk in"):
        pipe.save_pretrained(tmp_path / "copy")
    with pytest.raises(RuntimeError, match="cannot be saved"):
        pipe.transformer.save_pretrained(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    for cast in (lambda: pipe.to(torch.bfloat16), lambda: pipe.transformer.half()):
        with pytest.raises(ValueError, match=r"give dtype=... to from_pretrained"):
            cast()
    with pytest.raises(ValueError, match="computes on cpu or cuda, not on meta"):
        pipe.to("meta")
    pipe.to("cpu", torch.float32)
    assert torch.equal(BY_NAME["wan"].call(pipe), dense_output("wan"))


def test_parts_are_not_moved_alone(pipe):
    with pytest.raises(RuntimeError, match="move the whole model"):
        pipe.transformer.blocks[0].half()


def test_adapters_that_read_weights_are_refused(pipe):
    from peft import LoraConfig

    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], use_dora=True))
    with pytest.raises(RuntimeError, match="use a plain LoRA, or load without BlockStreaming"):
        BY_NAME["wan"].call(pipe)


def test_a_failed_restore_streams_on(pipe, monkeypatch):
    read, left = os.preadv, [5]

    def failing(*args):
        left[0] -= 1
        if not left[0]:
            raise OSError(5, "Input/output error")
        return read(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", failing)
        with pytest.raises(OSError, match="Input/output error"):
            pipe.restore()
    assert torch.equal(BY_NAME["wan"].call(pipe), dense_output("wan"))
    assert pipe.report.methods["block_streaming"].bytes_read > 0


def test_backward_is_refused(pipe):
    given = {
        "hidden_states": torch.randn(1, 4, 1, 4, 4), "timestep": torch.ones(1),
        "encoder_hidden_states": torch.randn(1, 6, 24, requires_grad=True),
    }  # fmt: skip
    with pytest.raises(RuntimeError, match="block streaming is for inference"):
        pipe.transformer(**given)
    pipe._fastdit.weights.stop()


def test_a_disk_error_in_mid_run(pipe, monkeypatch):
    read, left, files = os.preadv, [20], open_files()

    def failing(*args):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(5, "Input/output error")
        return read(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", failing)
        with pytest.raises(OSError, match=r"cannot read weights from \S+\.safetensors: Input/output error"):
            BY_NAME["wan"].call(pipe)
    assert left[0] < 0 and not streaming_threads() and open_files() == files
    assert torch.equal(BY_NAME["wan"].call(pipe), dense_output("wan"))


def test_a_file_cut_in_mid_run(folder):
    pipe = load(folder, smallest_budgets(folder).prefetching)
    held, stamp = shards(folder)[0].read_bytes(), shards(folder)[0].stat()
    os.truncate(shards(folder)[0], 1000)
    with pytest.raises(OSError, match="has changed since the pipeline was loaded: load the pipeline again"):
        BY_NAME["wan"].call(pipe)
    shards(folder)[0].write_bytes(held)
    with pytest.raises(OSError, match="has changed"):  # nobody knows that it is the same again
        BY_NAME["wan"].call(pipe)
    os.utime(shards(folder)[0], ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert torch.equal(BY_NAME["wan"].call(pipe), dense_output("wan"))


@pytest.mark.parametrize("where", ["between steps", "while waiting"])
def test_ctrl_c_while_a_prefetch_is_in_flight(where, pipe, monkeypatch):
    read, files = os.preadv, open_files()
    reading, go_on = threading.Event(), threading.Event()
    component = pipe._fastdit.weights.components[0]

    def slow(*args):
        if reading.is_set():
            go_on.wait(0.2)
        return read(*args)

    def press_once(self):
        monkeypatch.undo()
        raise KeyboardInterrupt

    def press(*_):
        reading.set()
        if where == "between steps":
            assert component.flights  # the next pass's first blocks
            raise KeyboardInterrupt
        monkeypatch.setattr(Future, "result", press_once)
        return {}

    monkeypatch.setattr(os, "preadv", slow)
    with pytest.raises(KeyboardInterrupt):
        BY_NAME["wan"].call(pipe, steps=4, callback_on_step_end=press)
    monkeypatch.undo()
    go_on.set()
    assert not streaming_threads() and open_files() == files and not component.flights
    assert all(not unit.loaded for unit in component.units if unit not in component.kept)
    assert torch.equal(BY_NAME["wan"].call(pipe), dense_output("wan"))
