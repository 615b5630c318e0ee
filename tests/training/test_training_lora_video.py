"""LoRA on longer video, dense and under RadialAttention: from clips to a file that diffusers loads; gradients."""

import random
import sys
from functools import partial

import numpy as np
import pytest
import torch
from helpers import assert_close
from torch.nn import functional as F
from training_pipes import pictures, wan
from training_runs import session

from fastdit.attention.backends import sdpa
from fastdit.attention.kernel import SparseKernel
from fastdit.evaluation.intervals import bootstrap
from fastdit.methods.base import Method
from fastdit.pipelines import accelerate
from fastdit.training.curves import read_rows
from fastdit.training.data import open_samples
from fastdit.training.learner import call

RADIAL = "radial_attention:decay=0.2,dense_share=0,dense_layers=1"
FRAMES = 17  # 9 latent frames of 4 x 4 tokens: twice and one frame more than 9 frames have


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    captions = np.array(["a pear moving left", "an owl moving up", "a bus moving down"])
    np.savez(folder / "clips.npz", x=pictures(3, FRAMES, 32, 32), c=captions)
    return open_samples(wan(temporal=2), folder / "clips.npz", folder / "latents", frames=FRAMES)


@pytest.fixture(params=["pieces", "masked"])
def path(request, monkeypatch):
    """Both ways of the portable kernel."""
    monkeypatch.setattr(sdpa, "SHORT_SEQUENCE", 0 if request.param == "pieces" else 1024)


def make():
    return wan(temporal=2), None


def longer(out, samples, method, **options):
    options = {"make": make, "samples": samples, "parameters": "lora", "lora_rank": 2, "batch": 2, "steps": 3} | options
    return session(out, method, **options)


@torch.no_grad()
def prediction(transformer, samples, objective):
    batch = {**samples.batch([0, 1], None), "time": torch.tensor([0.3, 0.7])}
    noise = torch.randn(batch["latents"].shape, generator=torch.Generator().manual_seed(0))
    return call(transformer.eval(), {**batch, "noise": noise}, objective)


@pytest.mark.parametrize("method", ["dense", RADIAL], ids=["dense", "radial"])
def test_a_lora_on_longer_clips_loads_into_diffusers_and_changes_what_comes_out(tmp_path, samples, method):
    losses = []
    made = longer(
        tmp_path, samples, method, lr=1e-2, ema=0.0, show=lambda step, progress, values: losses.append(values["data"])
    )
    wanted = partial(prediction, samples=samples, objective=made.trainee.objective)
    methods = [] if method == "dense" else [Method.parse(method)]
    before = wanted(made.trainee.transformer)  # under the method, the low-rank changes are still nothing
    folder, _ = made.run()
    assert len(losses) == 3 and np.isfinite(losses).all()
    assert [file.name for file in folder.iterdir()] == ["pytorch_lora_weights.safetensors"]

    pipe = wan(temporal=2)
    with accelerate(pipe.transformer, methods):
        assert_close(wanted(pipe.transformer), before)
    pipe.load_lora_weights(str(folder))
    with accelerate(pipe.transformer, methods):
        after = wanted(pipe.transformer)
    assert (after - before).abs().max() > 1e-3
    assert_close(after, wanted(accelerated(made, methods)))


def test_the_share_of_all_macs_that_the_mask_leaves_is_logged(tmp_path, samples, path):
    longer(tmp_path, samples, RADIAL, steps=1).run()
    executed = read_rows(tmp_path)[0]["executed"]
    assert 0 < executed < 1 if sdpa.SHORT_SEQUENCE == 0 else executed == 1  # under a mask all is computed


def accelerated(made, methods):
    """The transformer that was trained, its method taken off by then and put on anew."""
    accelerate(made.trainee.transformer, methods)
    return made.trainee.transformer


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_gradients_are_those_of_dense_attention_under_the_mask(tmp_path, samples, path, monkeypatch, checkpointing):
    def written_out(self, query, key, value, attn_mask=None, **options):
        if query.is_meta:
            return torch.empty_like(query)
        block = torch.arange(query.shape[2]) // self.block_size
        assert not self.mask.all()
        return F.scaled_dot_product_attention(query, key, value, attn_mask=self.mask[block[:, None], block])

    def gradients(method):
        made = longer(tmp_path / "run", samples, method, gradient_checkpointing=checkpointing)
        for name, parameter in made.trained.items():  # else the down matrices have none
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(len(name)))
        made.learner.train()
        made.learner(made.batches.take(0, 0)[0])["loss"].backward()
        made.trainee.close()
        return torch.cat([parameter.grad.flatten() for parameter in made.trained.values()])

    own, dense = gradients(RADIAL), gradients("dense")
    monkeypatch.setattr(SparseKernel, "__call__", written_out)
    reference = gradients(RADIAL)
    assert_close(own / reference.abs().max(), reference / reference.abs().max(), 1e-5)
    assert (dense - reference).abs().max() > 1e-3 * reference.abs().max()


def test_a_batch_has_noise_of_one_plan(tmp_path, samples):
    made = longer(tmp_path, samples, RADIAL.replace("dense_share=0", "dense_share=0.5"))
    (low, middle), (again, high) = made.batches.intervals
    assert (low, high) == (0, 1) and middle == again == pytest.approx(5 / 6, abs=1 / 64)  # shift 5, half of the steps
    sides = {bool((made.batches.take(step, 0)[0]["time"] < middle).all()) for step in range(20)}
    assert sides == {True, False}
    for step in range(20):
        below = made.batches.take(step, 0)[0]["time"] < middle
        assert below.all() or not below.any()


def test_a_kernel_without_a_gradient_is_refused(tmp_path, samples):
    made = longer(tmp_path, samples, f"{RADIAL},backend=flex")
    with pytest.raises(ValueError, match="'flex' has no gradient on the CPU"):
        made.run()
    made.trainee.close()


@pytest.fixture
def example(monkeypatch, request):
    """Modules of examples/emoji_video by name; forgotten afterwards, as other examples have some of the same name."""
    for folder in ("examples", "examples/emoji_video"):
        monkeypatch.syspath_prepend(str(request.config.rootpath / folder))
    yield __import__
    for name in ("data", "long_lora"):
        sys.modules.pop(name, None)


def test_longer_clips_go_the_same_way_slower(tmp_path, example):
    data = example("data")
    drawings = torch.rand(len(data.OBJECTS), 3, 64, 64)
    for kind in ("moving", "growing", "shrinking", "spinning", "two"):
        usual, text = data.clip(random.Random(3), drawings, kind)
        longer, same = data.clip(random.Random(3), drawings, kind, frames=63)
        assert len(usual) == 31 and len(longer) == 63 and text == same
        assert_close(longer[[0, 31, 62]], usual[[0, 15, 30]], 1e-4)
    for name, seed in (("one", 7), ("two", 7), ("three", 8)):
        data.write_long(tmp_path / f"{name}.npz", drawings, 2, 5, seed)
    one, two, three = (np.load(tmp_path / f"{name}.npz") for name in ("one", "two", "three"))
    assert one["x"].shape == (2, 5, 64, 64, 3) and one["x"].dtype == np.uint8 and len(one["c"]) == 2
    assert (one["x"] == two["x"]).all() and (one["x"] != three["x"]).any()
    first, text = data.clip(random.Random(7), drawings, frames=5)
    assert text == one["c"][0] and np.abs(one["x"][0] / 127.5 - 1 - first.movedim(1, -1).numpy()).max() < 0.5 / 127


def test_all_rows_are_judged_on_the_same_problems(tmp_path, samples, example):
    example_module = example("long_lora")
    pipe = wan(temporal=2)
    objective = longer(tmp_path, samples, "dense").trainee.objective
    measure = partial(example_module.losses, objective=objective, samples=samples, times=2, shift=3.0)
    dense = measure(pipe.transformer)
    assert len(dense) == 3 and measure(pipe.transformer) == dense
    with accelerate(pipe.transformer, [Method.parse(RADIAL)]):
        radial = measure(pipe.transformer)
    assert 1e-6 < np.abs(np.array(radial) - dense).max() < 1
    printed = example_module.table({"dense, no LoRA": dense, "radial, no LoRA": radial})
    assert bootstrap(np.array(radial) - dense).text(4) in printed.splitlines()[-1]
    late, early = (example_module.problem(samples, 1, part, 2, 3.0) for part in (1, 0))
    assert early["time"] < 0.75 <= late["time"] and not torch.equal(early["noise"], late["noise"])
