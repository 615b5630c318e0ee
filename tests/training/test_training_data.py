"""Samples from folders and npz files: what they hold, and the cache on disk."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from training_pipes import CAPTIONS, dit, forbid, npz, pictures, pixart, save, wan

from fastdit.models.base import family_of
from fastdit.pipelines.loading import load_pipeline, locate
from fastdit.training.cache import PER_FILE
from fastdit.training.data import open_samples
from fastdit.training.objectives import objective_of
from fastdit.training.times import draw_times
from fastdit.zoo import prompts, reference


def encoded(pipe, x):
    with torch.no_grad():
        pixels = torch.from_numpy(x).movedim(-1, 1).float() / 127.5 - 1
        return pipe.vae.encode(pixels).latent_dist.mean * pipe.vae.config.scaling_factor


# --- what is read ---------------------------------------------------------------------------------------------------


def test_npz(tmp_path):
    pipe, file = pixart(), npz(tmp_path)
    samples = open_samples(pipe, file, tmp_path / "cache", batch=2)
    assert len(samples) == 3 and samples.captions == CAPTIONS and samples.labels is None
    x = np.load(file)["x"]
    assert np.array_equal(samples.reference, x)
    batch = samples.batch([2, 0], None)
    torch.testing.assert_close(batch["latents"], encoded(pipe, x[[2, 0]]))
    assert batch["latents"].shape[1:] == samples.latent_shape
    states = pipe.encode_prompt.make(["kiwi", "red apple"], 7)[0]
    torch.testing.assert_close(batch["conditions"]["encoder_hidden_states"], states)


def test_a_caption_of_several_samples_is_encoded_once(tmp_path):
    pipe = pixart()
    file = npz(tmp_path, c=np.array(["pear", "kiwi", "pear"]))
    samples = open_samples(pipe, file, tmp_path)
    assert [captions for captions, _ in pipe.encode_prompt.calls] == [["pear", "kiwi", ""]]
    states = samples.conditions([0, 1, 2], None)["encoder_hidden_states"]
    assert torch.equal(states[0], states[2]) and not torch.equal(states[0], states[1])


def test_folder_with_metadata(tmp_path):
    x, folder = pictures(3, 16, 16), tmp_path / "data"
    for i in (0, 1, 2):
        save(folder / f"{i}.png", x[i])
    rows = [{"file_name": f"{i}.png", "text": f"caption {i}"} for i in (2, 0)]  # the file's order, and no others
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    samples = open_samples(pixart(), folder, tmp_path / "cache", size=16)
    assert samples.captions == ["caption 2", "caption 0"] and np.array_equal(samples.reference, x[[2, 0]])


def test_folder_with_texts_beside(tmp_path):
    x, folder = pictures(2, 16, 16), tmp_path / "data"
    for i, name in enumerate(("b", "a")):
        save(folder / f"{name}.png", x[i])
        (folder / f"{name}.txt").write_text(f"caption\n of {name} \n")
    samples = open_samples(pixart(), folder, tmp_path / "cache", size=16)
    assert samples.captions == ["caption of a", "caption of b"] and np.array_equal(samples.reference, x[[1, 0]])


def test_class_folders_are_labels_or_captions(tmp_path):
    x, folder = pictures(3, 16, 16), tmp_path / "data"
    for i, name in enumerate(("zebra/1", "ant/1", "ant/2")):
        save(folder / f"{name}.png", x[i])
    classes = open_samples(dit(), folder, tmp_path / "cache", size=16)
    assert classes.labels == [0, 0, 1] and classes.captions is None
    assert classes.conditions([2, 0], None)["class_labels"].tolist() == [1, 0]
    assert open_samples(pixart(), folder, tmp_path / "cache", size=16).captions == ["ant", "ant", "zebra"]


def test_pictures_cover_the_size_and_are_cropped_at_the_centre(tmp_path):
    wide = np.zeros((32, 64, 3), np.uint8)
    wide[:, 16:48] = 255  # what is left of it
    save(tmp_path / "data" / "white" / "1.png", wide)
    own = open_samples(pixart(), tmp_path / "data", tmp_path / "cache")
    assert own.reference.shape == (1, 16, 16, 3)  # the model's sample_size times a VAE of 1
    assert (own.reference[:, :, 2:-2] > 250).all()
    asked = open_samples(pixart(), tmp_path / "data", tmp_path / "cache", size=(8, 16))
    assert asked.reference.shape == (1, 8, 16, 3) and asked.latent_shape == (4, 8, 16)
    assert asked.reference[0, 4, 0].max() < 60 and asked.reference[0, 4, 8].min() == 255


def test_transparency_becomes_white(tmp_path):
    save(tmp_path / "data" / "clear" / "1.png", np.zeros((16, 16, 4), np.uint8))
    assert (open_samples(pixart(), tmp_path / "data", tmp_path / "cache").reference == 255).all()


@pytest.mark.parametrize("kind", ["gif", "mp4"])
def test_folder_of_videos(tmp_path, kind):
    folder = tmp_path / "data"
    folder.mkdir()
    frames = np.repeat(np.arange(0, 240, 40, dtype=np.uint8), 32 * 32 * 3).reshape(6, 32, 32, 3)  # 6 greys
    if kind == "gif":
        first, *others = map(Image.fromarray, frames)
        first.save(folder / "clip.gif", save_all=True, append_images=others)
    else:
        import imageio.v3

        imageio.v3.imwrite(folder / "clip.mp4", frames, fps=8, codec="libx264", quality=10)
    (folder / "clip.txt").write_text("a clip")
    samples = open_samples(wan(), folder, tmp_path / "cache", size=16, frames=5)
    assert samples.captions == ["a clip"] and samples.reference is None
    assert samples.latent_shape == (4, 2, 4, 4)
    direct = np.repeat(frames[None, :5, :16, :16], 1, 0)
    np.savez(tmp_path / "same.npz", x=direct, c=np.array(["a clip"]))
    same = open_samples(wan(), tmp_path / "same.npz", tmp_path / "cache")
    atol = 1e-5 if kind == "gif" else 0.2  # a codec rounds
    torch.testing.assert_close(samples.batch([0], None)["latents"], same.batch([0], None)["latents"], atol=atol, rtol=0)


def test_videos_of_an_npz_are_cut_to_frames_that_the_vae_takes(tmp_path):
    file = npz(tmp_path, 2, (8, 16, 16))
    assert open_samples(wan(), file, tmp_path / "cache").latent_shape == (4, 2, 4, 4)  # 5 of 8 frames
    assert open_samples(wan(), file, tmp_path / "cache", frames=1).latent_shape == (4, 1, 4, 4)


def test_only_some_captions_in_the_files_order(tmp_path):
    file = npz(tmp_path)
    (tmp_path / "only.txt").write_text("kiwi\nred apple\n")
    samples = open_samples(pixart(), file, tmp_path / "cache", only=tmp_path / "only.txt")
    assert samples.captions == ["kiwi", "red apple"] and np.array_equal(samples.reference, np.load(file)["x"][[2, 0]])


# --- dropout, devices, generators -----------------------------------------------------------------------------------


def test_dropout_is_drawn_with_the_generator_alone(tmp_path):
    samples = open_samples(pixart(), npz(tmp_path), tmp_path / "cache", text_drop=0.5)
    before = torch.get_rng_state()
    draw = lambda seed: samples.batch([0] * 400, torch.Generator().manual_seed(seed))["conditions"]  # noqa: E731
    first, again, other = draw(1), draw(1), draw(2)
    assert torch.equal(before, torch.get_rng_state())
    states = "encoder_hidden_states"
    assert torch.equal(first[states], again[states]) and not torch.equal(first[states], other[states])
    told = samples.conditions([0], None)[states]
    share = (first[states] == told).all(dim=(1, 2)).float().mean()
    assert 0.4 < share < 0.6
    assert torch.equal(samples.conditions([0] * 9, None)[states], told.expand(9, -1, -1))


def test_dtype_is_of_the_conditions_and_latents_stay_float32(tmp_path):
    samples = open_samples(pixart(micro=True), npz(tmp_path), tmp_path / "cache")
    batch = samples.batch([0, 1], None, device="cpu", dtype=torch.bfloat16)
    assert batch["latents"].dtype == torch.float32
    conditions = batch["conditions"]
    assert conditions["encoder_hidden_states"].dtype == torch.bfloat16
    assert conditions["added_cond_kwargs"]["resolution"].dtype == torch.bfloat16
    assert conditions["encoder_attention_mask"].dtype == torch.long  # a count is no real number


# --- the cache ------------------------------------------------------------------------------------------------------


def test_a_second_start_encodes_nothing(tmp_path, monkeypatch):
    pipe, file = pixart(), npz(tmp_path)
    first = open_samples(pipe, file, tmp_path / "cache")
    forbid(pipe, monkeypatch)
    second = open_samples(pipe, file, tmp_path / "cache")
    for a, b in zip(first.batch([0, 1, 2], None).values(), second.batch([0, 1, 2], None).values()):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("change", ["data", "vae", "size"])
def test_latents_of_anything_else_are_made_anew(tmp_path, change):
    pipe, file = pixart(), npz(tmp_path)
    before = open_samples(pipe, file, tmp_path / "cache").batch([0], None)["latents"]
    size = None
    if change == "data":
        np.savez(file, x=pictures(3, 16, 16, seed=9), c=np.array(CAPTIONS))
    elif change == "vae":
        with torch.no_grad():
            next(pipe.vae.parameters()).add_(0.1)
    else:
        size = 8
    after = open_samples(pipe, file, tmp_path / "cache", size=size).batch([0], None)["latents"]
    assert before.shape != after.shape or not torch.equal(before, after)


def test_captions_alone_leave_the_latents(tmp_path, monkeypatch):
    pipe, file = pixart(), tmp_path / "data"
    save(file / "1.png", pictures(1, 16, 16)[0])
    (file / "1.txt").write_text("pear")
    open_samples(pipe, file, tmp_path / "cache")
    (file / "1.txt").write_text("apple")
    monkeypatch.setattr(pipe.vae, "encode", lambda *args: pytest.fail("the VAE was called"))
    open_samples(pipe, file, tmp_path / "cache")
    assert pipe.encode_prompt.calls[-1][0] == ["apple", ""]


def test_a_stopped_run_goes_on_and_a_damaged_file_is_made_again(tmp_path, monkeypatch):
    count = PER_FILE + 3
    np.savez(tmp_path / "data.npz", x=pictures(count, 4, 4), c=np.array(["pear"] * count))
    pipe, made, encode = pixart(), [], None
    encode = pipe.vae.encode

    def stopping(x):
        made.append(len(x))
        if sum(made) > PER_FILE:
            raise KeyboardInterrupt
        return encode(x)

    monkeypatch.setattr(pipe.vae, "encode", stopping)
    with pytest.raises(KeyboardInterrupt):
        open_samples(pipe, tmp_path / "data.npz", tmp_path / "cache", batch=64)
    monkeypatch.setattr(pipe.vae, "encode", lambda x: made.append(len(x)) or encode(x))
    made.clear()
    samples = open_samples(pipe, tmp_path / "data.npz", tmp_path / "cache", batch=64)
    assert made == [3]  # the first file was whole
    torch.testing.assert_close(
        samples.batch([PER_FILE - 1, PER_FILE, count - 1], None)["latents"],
        encoded(pipe, np.load(tmp_path / "data.npz")["x"][[PER_FILE - 1, PER_FILE, count - 1]]),
    )
    second = sorted(next((tmp_path / "cache").glob("latents-*")).glob("*.safetensors"))[1]
    second.write_bytes(second.read_bytes()[:-10])
    made.clear()
    open_samples(pipe, tmp_path / "data.npz", tmp_path / "cache", batch=64)
    assert made == [3]


def test_progress_counts_files_latents_and_captions(tmp_path):
    for i in range(3):
        save(tmp_path / "data" / "a" / f"{i}.png", pictures(1, 16, 16)[0])
    seen = []
    open_samples(pixart(), tmp_path / "data", tmp_path / "cache", progress=lambda *now: seen.append(now), batch=2)
    assert [now for now in seen if now[0] == "files"][-1] == ("files", 3, 3)
    assert [now for now in seen if now[0] == "latents"] == [("latents", 0, 3), ("latents", 2, 3), ("latents", 3, 3)]
    assert [now for now in seen if now[0] == "captions"][-1] == ("captions", 2, 2)


# --- the bundled model ----------------------------------------------------------------------------------------------


def test_the_bundled_model_knows_its_pictures_by_their_captions(tmp_path):
    """Latents, text, timestep and target fit together as in the model's own training."""
    pipe, name = load_pipeline(locate("fastdit/emoji-image")), "fastdit/emoji-image"
    count = 12
    with np.load(reference(name)) as file:
        np.savez(tmp_path / "few.npz", x=file["arr_0"][:count], c=np.array(prompts(name)[:count]))
    samples = open_samples(pipe, tmp_path / "few.npz", tmp_path / "cache")
    generator = torch.Generator().manual_seed(0)
    batch = samples.batch(range(count), None)
    latents, conditions = batch["latents"], batch["conditions"]
    assert conditions["encoder_hidden_states"].shape == (count, 32, 128)  # as fastdit.json beside the model says
    with torch.no_grad():
        decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    assert ((decoded + 1) / 2 - torch.from_numpy(samples.reference).movedim(-1, 1) / 255).abs().mean() < 0.02

    objective = objective_of(pipe, pipe.transformer, family_of(pipe.transformer))
    noise = torch.randn(latents.shape, generator=generator)
    time = draw_times(count, generator)
    losses = []
    for order in (list(range(count)), [*range(1, count), 0]):
        noisy, timestep = objective.noisy(latents, noise, time)
        told = {name: value[order] for name, value in conditions.items() if torch.is_tensor(value)}
        with torch.no_grad():
            prediction = pipe.transformer(noisy, timestep=timestep, **told, return_dict=False)[0]
        losses.append(objective.loss(prediction, latents, noise, time).mean().item())
    assert losses[0] < 0.25 < 0.8 < losses[1], losses
