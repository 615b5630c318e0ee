"""Latents and conditions are what the family's own pipeline gives its transformer and takes back from it."""

import inspect

import numpy as np
import pytest
import torch
import training_pipes
from diffusers.pipelines.dit import pipeline_dit
from training_pipes import pictures

from fastdit.core.clock import noise_levels
from fastdit.core.ledger import PatchLedger
from fastdit.models.base import family_of
from fastdit.training.conditions.base import conditions_of
from fastdit.training.data import open_samples
from fastdit.training.objectives import objective_of

CAPTIONS = ["red apple", "pear"]
CASES = {  # name: (pipeline, shape of a sample, arguments of its call that training does not have)
    "dit": (training_pipes.dit, (16, 16), {"guidance_scale": 1.0}),
    "pixart": (training_pipes.pixart, (16, 24), {"guidance_scale": 1.0, "use_resolution_binning": False}),
    "pixart_micro": (
        lambda: training_pipes.pixart(micro=True),
        (16, 24),
        {"guidance_scale": 1.0, "use_resolution_binning": False},
    ),
    "wan": (training_pipes.wan, (5, 16, 32), {"guidance_scale": 1.0}),
    "wan_two": (lambda: training_pipes.wan(2), (7, 16, 32), {"guidance_scale": 1.0}),
    "hunyuan_video": (training_pipes.hunyuan_video, (5, 16, 32), {"guidance_scale": 6.0}),
    "flux": (training_pipes.flux, (32, 48), {"guidance_scale": 3.5}),
}


@pytest.mark.parametrize("name", CASES)
def test_as_the_pipeline_calls_and_decodes(name, tmp_path, monkeypatch):
    make, shape, more = CASES[name]
    pipe = make()
    x, told = pictures(2, *shape), {"y": np.array([3, 999])} if name == "dit" else {"c": np.array(CAPTIONS)}
    np.savez(tmp_path / "data.npz", x=x, **told)
    samples = open_samples(pipe, tmp_path / "data.npz", tmp_path, guidance=more["guidance_scale"])
    batch = samples.batch([0, 1], None)
    latents, conditions = batch["latents"], batch["conditions"]
    assert latents.dtype == torch.float32 and latents.shape == (2, *samples.latent_shape)

    # the pipeline's own call from these latents, whose steps change nothing
    seen, decoded = [], []

    def watch(module, args, kwargs):
        seen.append((args, kwargs, noise_levels(pipe.scheduler)[0]))

    pipe.transformer.register_forward_pre_hook(watch, with_kwargs=True)
    monkeypatch.setattr(pipe.vae, "decode", lambda z, **kwargs: decoded.append(z) or pytest.fail("stop"))
    step = inspect.signature(type(pipe.scheduler).step)

    def unchanged(*args, **kwargs):
        sample = step.bind(None, *args, **kwargs).arguments["sample"]
        out = (sample, sample)
        return out if kwargs.get("return_dict") is False else type("Out", (), {"prev_sample": sample})

    monkeypatch.setattr(pipe.scheduler, "step", unchanged)
    monkeypatch.setattr(pipeline_dit, "randn_tensor", lambda *args, **kwargs: latents)
    call = {"class_labels": [3, 999]} if name == "dit" else {
        "prompt": CAPTIONS, "latents": latents, "height": shape[-2], "width": shape[-1],
    }  # fmt: skip
    if len(shape) == 3:
        call["num_frames"] = shape[0]
    with pytest.raises(pytest.fail.Exception, match="stop"):
        pipe(**call, num_inference_steps=2, **more)

    family = family_of(pipe.transformer)
    args, kwargs, sigma = seen[0]
    given = family.arguments(args, kwargs)
    torch.testing.assert_close(given.pop("hidden_states"), latents)
    objective, timestep = objective_of(pipe, pipe.transformer, family), given.pop("timestep")
    time = family.time(timestep) if objective.steps else torch.full((2,), sigma)
    ours = objective.noisy(latents, latents, time)[1]
    assert ours.is_floating_point() == (objective.steps is None)
    torch.testing.assert_close(ours.float(), timestep.float(), rtol=0, atol=1 if name.startswith("wan") else 1e-3)
    for argument in ("return_dict", "attention_kwargs", "joint_attention_kwargs"):
        given.pop(argument, None)
    assert {k for k, v in given.items() if v is not None} == {k for k, v in conditions.items() if v is not None}
    for argument, value in conditions.items():
        torch.testing.assert_close(given[argument], value, check_dtype=False, msg=lambda m, a=argument: f"{a}: {m}")
    with torch.no_grad():
        pixels = torch.from_numpy(x).movedim(-1, 1).float() / 127.5 - 1
        if name == "wan_two":  # its VAE encodes 4 frames at a time and would drop the last 2 of 7
            assert pipe.vae.encode(pixels).latent_dist.mean.shape[2] == 3
            pixels = torch.cat([pixels, torch.zeros_like(pixels[:, :, :2])], 2)
            assert latents.shape[2] == 4
        mean = pipe.vae.encode(pixels).latent_dist.mean[:, :, : latents.shape[2]] if len(shape) == 3 else (
            pipe.vae.encode(pixels).latent_dist.mean
        )  # fmt: skip
    torch.testing.assert_close(decoded[0], mean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("wan_two", "pixart_micro")])
def test_dropped_is_what_the_pipeline_uses_for_nothing(name, tmp_path):
    make, shape, _ = CASES[name]
    pipe = make()
    told = {"y": np.array([3, 999])} if name == "dit" else {"c": np.array(CAPTIONS)}
    np.savez(tmp_path / "data.npz", x=pictures(2, *shape), **told)
    samples = open_samples(pipe, tmp_path / "data.npz", tmp_path, text_drop=1.0)
    dropped = samples.conditions([0, 1], torch.Generator())
    if name == "dit":
        assert dropped["class_labels"].tolist() == [1000, 1000]
        return
    empty = conditions_of(family_of(pipe.transformer)).encode(pipe, [""])
    full = samples.conditions([0, 1], None)
    for argument, row in empty.items():
        torch.testing.assert_close(dropped[argument], row.expand_as(dropped[argument]))
        assert not torch.equal(dropped[argument], full[argument])


def test_captions_are_encoded_with_the_arguments_of_a_call(tmp_path):
    np.savez(tmp_path / "data.npz", x=pictures(2, 16, 16), c=np.array(CAPTIONS))
    pipe = training_pipes.pixart()
    open_samples(pipe, tmp_path / "data.npz", tmp_path / "a")
    captions, arguments = pipe.encode_prompt.calls[0]
    assert captions == [*CAPTIONS, ""]
    assert arguments["clean_caption"] is True and arguments["max_sequence_length"] == 120  # the call's own defaults

    pipe.call_defaults = {"clean_caption": False, "max_sequence_length": 4}  # as on a FastDiTPipeline
    samples = open_samples(pipe, tmp_path / "data.npz", tmp_path / "a")
    assert samples.conditions([0], None)["encoder_hidden_states"].shape == (1, 4, 24)


def test_guidance_is_shown_to_models_that_embed_it(tmp_path):
    np.savez(tmp_path / "data.npz", x=pictures(2, 5, 16, 32), c=np.array(CAPTIONS))
    samples = open_samples(training_pipes.hunyuan_video(), tmp_path / "data.npz", tmp_path)
    assert samples.conditions([0], None)["guidance"].tolist() == [1000.0]  # 1: data as they are


def test_dit_does_not_drop_classes_itself():
    """Under train() each block would draw its own dropout, from the global generator."""
    transformer, ledger = training_pipes.dit().transformer, PatchLedger()
    labels = [module for module in transformer.modules() if hasattr(module, "dropout_prob")]
    assert len(labels) == 2 and all(module.dropout_prob > 0 for module in labels)
    inputs = {"hidden_states": torch.randn(32, 4, 16, 16), "timestep": torch.full((32,), 500)}
    transformer.train()
    with torch.no_grad():
        first = transformer(**inputs, class_labels=torch.arange(32)).sample
        assert not torch.equal(first, transformer(**inputs, class_labels=torch.arange(32)).sample)
        conditions_of(family_of(transformer)).ready(transformer, ledger)
        quiet = transformer(**inputs, class_labels=torch.arange(32)).sample
        transformer.eval()
        torch.testing.assert_close(quiet, transformer(**inputs, class_labels=torch.arange(32)).sample)
    ledger.undo()
    assert all(module.dropout_prob > 0 for module in labels)


def test_families_without_conditions_are_named():
    from tiny import make_latte

    with pytest.raises(
        ValueError, match="Latte cannot be trained here; families that can: dit, flux, hunyuan_video, pix"
    ):
        open_samples(make_latte(), None, None)
