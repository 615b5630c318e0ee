"""Runs as a whole: going on bit-exactly, stopping, diverging, a full disk, several processes, and what is written."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import assert_close
from safetensors.torch import load_file
from training_runs import dit, half_open, pixart, session, train, wan

from fastdit.methods.base import Method
from fastdit.pipelines import accelerate
from fastdit.training import checkpoints
from fastdit.training.learner import call


def tensors(folder):
    return {path.name: load_file(path) for path in sorted(Path(folder).rglob("*.safetensors"))}


def assert_bit_equal(one, two):
    assert one.keys() == two.keys() and one
    for name in one:
        assert one[name].keys() == two[name].keys()
        for key, value in one[name].items():
            assert torch.equal(value, two[name][key]), (name, key)


def steps_of(out):
    return [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("options", [{}, {"parameters": "td-lora", "distill": 0.5, "accumulate": 2}], ids=str)
def test_a_run_in_two_parts_equals_one_in_one_go(tmp_path, options):
    options = {"method": "dydit", "warmup": 4, "cooldown": 0.0, "complete_steps": 3, **options}
    train(tmp_path / "one", steps=6, **options)
    train(tmp_path / "two", steps=3, **options)
    torch.rand(7)  # nothing hangs on torch's own generator
    second, _ = train(tmp_path / "two", steps=6, **options)
    assert len(second.batches.samples.asked) == 1 + 3 * second.options.accumulate  # a first look, and three steps
    one, two = (tmp_path / name / "adapter" for name in ("one", "two"))
    assert_bit_equal(tensors(one), tensors(two))
    structures = [json.loads((folder / "fastdit_adapter.json").read_text())["structure"] for folder in (one, two)]
    assert structures[0] == structures[1] and structures[0]["shares"]
    assert steps_of(tmp_path / "one") == steps_of(tmp_path / "two") == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_finishes_the_step_and_saves(tmp_path, number):
    before = signal.getsignal(number)

    def show(step, progress, values):
        if step == 1:
            os.kill(os.getpid(), number)

    first, result = train(tmp_path / "run", show=show)
    assert result is None and first.stopped_by == number and first.step == 2
    assert signal.getsignal(number) == before
    assert checkpoints.steps_saved(tmp_path / "run") == [2] and not (tmp_path / "run/pipeline").exists()
    second, result = train(tmp_path / "run")
    assert second.step == 4 and result is not None
    train(tmp_path / "whole")
    assert_bit_equal(tensors(tmp_path / "run/pipeline"), tensors(tmp_path / "whole/pipeline"))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint(tmp_path, value):
    broken = session(tmp_path, "dydit", save_every="1", steps=8)
    batch = broken.batches.samples.batch

    def breaking(*args, **kwargs):
        found = batch(*args, **kwargs)
        if broken.step == 2:
            found["latents"] = found["latents"].fill_(value)
        return found

    broken.batches.samples.batch = breaking
    weights = None
    with pytest.raises(RuntimeError, match=r"stopped at step 3: .*(nan|inf).* last good checkpoint is .*step-0000002"):
        broken.run()
    assert checkpoints.steps_saved(tmp_path) == [1, 2] and not (tmp_path / "adapter").exists()
    weights = checkpoints.load(tmp_path, 2)[0]["weights"]
    for name, parameter in broken.trained.items():
        assert torch.equal(weights[name], parameter)  # and no step was made with it


def test_gradients_that_are_no_numbers_stop_as_well(tmp_path):
    broken = session(tmp_path)
    next(iter(broken.trained.values())).register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(RuntimeError, match="step 1: norm of the gradients nan; no checkpoint had been written yet"):
        broken.run()


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    import safetensors.torch

    train(tmp_path, steps=2)
    before = tensors(tmp_path / "checkpoints")
    save_file = safetensors.torch.save_file

    def full(content, path):
        save_file(content, path)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match=r"step-0000003 could not be written: .*No space left"):
        train(tmp_path, steps=4, save_every="1")
    monkeypatch.undo()
    assert checkpoints.steps_saved(tmp_path) == [2]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-0000002"]
    assert_bit_equal(before, tensors(tmp_path / "checkpoints"))
    assert train(tmp_path, steps=4)[0].step == 4


def test_the_newest_checkpoints_are_kept(tmp_path):
    train(tmp_path, steps=5, save_every="1", keep=2)
    assert checkpoints.steps_saved(tmp_path) == [4, 5]


def test_another_run_in_the_folder_is_refused_by_name(tmp_path):
    train(tmp_path, steps=1)
    with pytest.raises(ValueError, match=r"holds another run \(--lr is 0.001 there and 0.002 now; --seed is 0 there"):
        session(tmp_path, steps=2, lr=2e-3, seed=1)
    with pytest.raises(ValueError, match="METHOD is dense there and dydit now"):
        session(tmp_path, "dydit")
    assert session(tmp_path, steps=2, minutes=3, save_every="2m", keep=5).run() is not None


def test_a_damaged_checkpoint_is_named(tmp_path):
    train(tmp_path, steps=1)
    (tmp_path / "checkpoints/step-0000001/weights.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"step-0000001 cannot be read .* remove it"):
        train(tmp_path, steps=2)


def test_two_processes_learn_what_one_learns_in_two_parts(tmp_path):
    train(tmp_path / "one", "dydit", accumulate=2)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(Path("tests"))}
    script = Path(__file__).parents[1] / "training_runs.py"
    root = Path(__file__).parents[2]
    subprocess.run([*launch, script, tmp_path / "two"], check=True, capture_output=True, env=environment, cwd=root)
    one, two = (tensors(tmp_path / name / "checkpoints/step-0000004")["weights.safetensors"] for name in ("one", "two"))
    for name, value in one.items():
        assert_close(two[name], value, rtol=1e-4)
    logs = [[json.loads(x) for x in (tmp_path / n / "log.jsonl").read_text().splitlines()] for n in ("one", "two")]
    for one, two in zip(*logs, strict=True):
        assert one["data"] == pytest.approx(two["data"], rel=1e-4) and one["share"] == pytest.approx(two["share"])


# --- what is written ------------------------------------------------------------------------------------------------


def predictions(done, transformer):
    """Of what was trained, with averaged weights, and of a transformer that loaded it: at one time, so it may slice."""
    samples = done.batches.samples
    batch = {**samples.batch([0, 1, 2], None), "time": torch.full((3,), 0.4)}
    batch["noise"] = torch.randn(batch["latents"].shape, generator=torch.Generator().manual_seed(3))
    objective, learner = done.trainee.objective, done.learner
    mixed = {**batch, "time": torch.tensor([0.4, 0.4, 0.8])}  # masked: low-rank layers are in place
    learner.eval()
    with torch.no_grad(), done.average.swapped():
        wanted = learner.predict(mixed)[0][:2]
        return wanted, call(transformer, batch, objective)[:2]


@pytest.mark.parametrize(
    ("parameters", "kind", "rtol"),
    [("full", "full", 2e-2), ("routers", "routers", 1e-5), ("lora", "lora", 1e-5), ("td-lora", "lora", 1e-5)],
)
def test_the_adapter_is_what_was_trained(tmp_path, parameters, kind, rtol):
    options = {"lora_rank": 2, "td_ups": 2, "router_lr": 0.1, "lr": 1e-2, "complete_steps": 0, "ema": 0.0}
    done = session(tmp_path, "dydit", parameters=parameters, **options)
    half_open(done)
    folder, line = done.run()
    about = json.loads((folder / "fastdit_adapter.json").read_text())
    assert about["kind"] == kind and about["training"]["options"]["router_lr"] == 0.1
    assert line == f'FastDiTPipeline.from_pretrained("tiny", methods=[DyDiT(checkpoint="{folder}")])'
    base = pixart()[0].transformer
    untouched = call(base.eval(), {**_first(done), "time": torch.full((3,), 0.4)}, done.trainee.objective)
    with accelerate(base, [Method.parse(f"dydit:checkpoint={folder}")]):
        wanted, found = predictions(done, base)
    assert_close(found, wanted, rtol)
    assert (found - untouched[:2]).abs().max() > 10 * rtol * found.abs().max()  # and it is another model


def _first(done):
    batch = done.batches.samples.batch([0, 1, 2], None)
    return {**batch, "noise": torch.randn(batch["latents"].shape, generator=torch.Generator().manual_seed(3))}


def test_a_dense_run_writes_a_pipeline(tmp_path):
    import diffusers

    done, (folder, line) = train(tmp_path, make=dit)
    assert f'"{folder}"' in line
    pipe = diffusers.DiTPipeline.from_pretrained(folder)
    for name, value in done.average.values.items():
        written = pipe.transformer.get_parameter(name.removeprefix("transformer."))
        assert torch.equal(written, value.bfloat16().float())
    assert not any("_name_or_path" in path.read_text() for path in folder.rglob("config.json"))


def test_a_lora_without_diffusers_loader_is_merged(tmp_path):
    import diffusers

    done, (folder, _) = train(tmp_path, parameters="lora", lora_rank=2, ema=0.0, lr=1e-2)
    base, pipe = pixart()[0].transformer, diffusers.PixArtAlphaPipeline.from_pretrained(folder)
    wanted, found = predictions(done, pipe.transformer.float())
    assert_close(found, wanted, 2e-2)
    assert pipe.transformer.state_dict().keys() == base.state_dict().keys()


@pytest.mark.parametrize("method", ["dense", "radial_attention:decay=0.2,dense_share=0"])
def test_a_lora_is_loaded_by_diffusers(tmp_path, method):
    done, (folder, line) = train(tmp_path, method, make=wan, parameters="lora", lora_rank=2, ema=0.0, lr=1e-2)
    assert line == f'pipe.load_lora_weights("{folder}")'
    pipe = wan()[0]
    pipe.load_lora_weights(str(folder))
    trained = {name: value for name, value in done.average.values.items() if ".lora_" in name}
    loaded = {name: value for name, value in pipe.transformer.named_parameters() if ".lora_" in name}
    assert len(trained) == len(loaded) == 32
    for name, value in trained.items():
        assert torch.equal(loaded[name.removeprefix("transformer.").replace("default", "default_0")], value)
    assert any(value.any() for name, value in trained.items() if ".lora_B." in name)


def test_a_run_goes_on_from_an_adapter(tmp_path):
    options = {"lora_rank": 2, "parameters": "td-lora", "td_ups": 2}
    first, (folder, _) = train(tmp_path / "first", "dydit", **options)
    second = session(tmp_path / "second", "dydit", init=str(folder), **options)
    for name, value in first.average.values.items():
        assert torch.equal(second.trained[name], value), name
    with pytest.raises(ValueError, match=r"--init .*first.adapter: its low-rank change .* is \(2, 32\), and \(3, 32\)"):
        session(tmp_path / "third", "dydit", init=str(folder), **{**options, "lora_rank": 3})
    with pytest.raises(ValueError, match="go on with --parameters lora or td-lora"):
        session(tmp_path / "third", "dydit", init=str(folder))
    with pytest.raises(ValueError, match="holds dydit, not flexdit"):
        session(tmp_path / "third", "flexdit:pooling=1,modules=0", init=str(folder))
    with pytest.raises(ValueError, match="only a trained method"):
        session(tmp_path / "third", init=str(folder))


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("dense", {"parameters": "routers"}, "--parameters routers: there are none without a trained method"),
        ("dense", {"complete_steps": 5}, "--complete-steps 5: no complete model can learn: only a trained method"),
        ("dydit", {"complete_steps": 5, "parameters": "routers"}, "the base itself"),
        ("flexdit:pooling=1,modules=0", {"complete_steps": 5}, "--complete-steps 5: .*flexdit has no complete model"),
        (
            "dydit",
            {"parameters": "lora", "lora_targets": "to_q,nowhere"},
            "of a block ends in nowhere; .*to_k",
        ),
        ("dydit:checkpoint=somewhere", {}, "leave it out and give --init CHECKPOINT"),
        ("dydit:heads=0.5,channels=0.5", {}, "dydit: heads=0.5 is for running the model, .*training takes: route"),
        ("dydit:tie_guidance=true", {}, "dydit: tie_guidance=True is for running the model"),
        ("flexdit:pooling=1,guidance_channels=3", {}, "flexdit: guidance_channels=3 is for running the model"),
        ("dense", {"target": 0.5}, "--target: only a method that routes"),
        ("flexdit:pooling=1,modules=0", {"target": 0.5}, "--target: only a method that routes"),
        ("linear_proportional_leap", {}, "nothing to train for"),
        ("dydit", {"batch": 6, "accumulate": 4}, "--batch 6 is not divisible by 1 processes times --accumulate 4"),
        ("dydit", {"validate": 12, "hold_out": True}, "leaves none of 12 samples"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_step(tmp_path, method, options, message):
    with pytest.raises(ValueError, match=message):
        session(tmp_path / "out", method, make=wan if "leap" in method else pixart, **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("error:the run ends with")
def test_a_target_that_was_missed_is_a_warning_and_a_fact(tmp_path):
    match = (
        r"the run ends with 1.000 of the routable work, above its target 0.5: raise --target-weight \(now 2\), "
        r"--router-lr \(now 1\) or --steps"
    )
    with pytest.warns(UserWarning, match=match):
        _, (folder, _) = train(tmp_path / "missed", "dydit", validate=2)
    assert _facts(folder)["share"] == 1 and _facts(folder)["target"] == 0.5
    done = session(tmp_path / "met", "dydit", target=0.97)
    folder, _ = done.run()
    rows = [json.loads(line) for line in (tmp_path / "met/log.jsonl").read_text().splitlines()]
    assert _facts(folder)["share"] == pytest.approx(rows[-1]["share"], abs=1e-3) and rows[-1]["share"] <= 1
    _, (folder, _) = train(tmp_path / "grids", "flexdit:pooling=1,modules=0")
    assert "share" not in _facts(folder)  # it has nothing to steer


def _facts(folder):
    return json.loads((folder / "fastdit_adapter.json").read_text())["training"]
