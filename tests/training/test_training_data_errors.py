"""Data that cannot be used: one line in the words of the command line, before anything is encoded."""

import numpy as np
import pytest
from PIL import Image
from training_pipes import CAPTIONS, dit, forbid, npz, pictures, pixart, save, wan

from fastdit.training import data as data_module
from fastdit.training.data import open_samples


def refused(match, pipe, data, tmp_path, monkeypatch, **more):
    """One line, and nothing was encoded."""
    forbid(pipe, monkeypatch)
    with pytest.raises(ValueError, match=match) as error:
        open_samples(pipe, data, tmp_path / "cache", **more)
    assert "\n" not in str(error.value)


def test_nothing_to_train_on(tmp_path, monkeypatch):
    empty = tmp_path / "data"
    empty.mkdir()
    refused(
        r"--data: .* holds no pictures: none of its 0 files is one of \.png", pixart(), empty, tmp_path, monkeypatch
    )
    (empty / "notes.txt").write_text("x")
    save(empty / "1.png", pictures(1, 16, 16)[0])
    refused("holds no videos: none of its 2 files is one of .mp4", wan(), empty, tmp_path, monkeypatch)
    refused("does not exist; give a folder of pictures or an npz", pixart(), tmp_path / "no", tmp_path, monkeypatch)
    refused(
        r"1 of 1 samples in .* have no caption \(1.png\); give metadata.jsonl", pixart(), empty, tmp_path, monkeypatch
    )
    refused(r"1 of 1 samples in .* have no label \(1.png\); give one folder", dit(), empty, tmp_path, monkeypatch)


def unreadable_folder(tmp_path, good=1):
    folder = tmp_path / "data" / "a"
    for i in range(good):
        save(folder / f"good{i}.png", pictures(1, 16, 16)[0])
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(5):
        (folder / f"bad{i}.png").write_bytes(b"no picture")
    return tmp_path / "data"


def test_unreadable_files_are_counted_and_named_before_anything_is_encoded(tmp_path, monkeypatch):
    data = unreadable_folder(tmp_path)
    match = (
        r"5 of 6 files in .* cannot be used \(a/bad0.png, a/bad1.png, a/bad2.png, ...\); mend or remove them, or leave "
        r"them out with --skip-unreadable\."
    )
    refused(match, pixart(), data, tmp_path, monkeypatch)


def test_unreadable_files_can_be_left_out(tmp_path, monkeypatch):
    data, pipe = unreadable_folder(tmp_path), pixart()
    with pytest.warns(UserWarning, match="5 of 6 files in .* cannot be used .*: left out"):
        samples = open_samples(pipe, data, tmp_path / "cache", skip_unreadable=True)
    assert len(samples) == 1 and len(samples.reference) == 1
    monkeypatch.setattr(data_module, "fitted", lambda *args: pytest.fail("a file was read again"))
    monkeypatch.setattr(pipe.vae, "encode", lambda *args: pytest.fail("the VAE was called"))
    with pytest.warns(UserWarning, match="5 of 6 files"):
        assert len(open_samples(pipe, data, tmp_path / "cache", skip_unreadable=True)) == 1
    refused("5 of 6 files in .* cannot be used", pipe, data, tmp_path, monkeypatch)  # not asked to leave any out


def test_all_unreadable_is_an_error_even_when_some_may_be_left_out(tmp_path, monkeypatch):
    data = unreadable_folder(tmp_path, good=0)
    refused("5 of 5 files in .* cannot be used", pixart(), data, tmp_path, monkeypatch, skip_unreadable=True)


def test_truncated_pictures_and_short_videos_are_unreadable(tmp_path, monkeypatch):
    save(tmp_path / "data" / "a" / "cut.jpg", pictures(1, 64, 64)[0])
    file = tmp_path / "data" / "a" / "cut.jpg"
    file.write_bytes(file.read_bytes()[:700])
    refused(r"1 of 1 files in .* cannot be used \(a/cut.jpg\)", pixart(), tmp_path / "data", tmp_path, monkeypatch)
    frames = [Image.fromarray(frame) for frame in pictures(3, 16, 16)]
    (tmp_path / "clips" / "a").mkdir(parents=True)
    frames[0].save(tmp_path / "clips" / "a" / "short.gif", save_all=True, append_images=frames[1:])
    match = r"cannot be used \(a/short.gif\).* The first: a/short.gif has 3 frames, and 5 are wanted"
    refused(match, wan(), tmp_path / "clips", tmp_path, monkeypatch, frames=5, size=16)
    (tmp_path / "clips" / "a" / "short.gif").rename(tmp_path / "clips" / "a" / "short.mp4")
    (tmp_path / "clips" / "a" / "short.mp4").write_bytes(b"no video")
    refused(
        r"short.mp4 is no video that can be read", wan(), tmp_path / "clips", tmp_path, monkeypatch, frames=5, size=16
    )


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ('{"file_name": "1.png"', "--data: line 2 of .*metadata.jsonl must be"),
        ('{"text": "no file"}', "--data: line 2 of .*metadata.jsonl must be"),
        ('{"file_name": "1.png", "text": 3}', "--data: line 2 of .*metadata.jsonl must be"),
        ('{"file_name": "none.png", "text": "x"}', r"1 of 2 files in .* cannot be used \(none.png\)"),
    ],
)
def test_bad_metadata(tmp_path, monkeypatch, line, match):
    folder = tmp_path / "data"
    save(folder / "1.png", pictures(1, 16, 16)[0])
    (folder / "metadata.jsonl").write_text('{"file_name": "1.png", "text": "x"}\n' + line)
    refused(match, pixart(), folder, tmp_path, monkeypatch)


def test_bad_npz(tmp_path, monkeypatch):
    def of(match, pipe=pixart, **arrays):
        np.savez(tmp_path / "bad.npz", **arrays)
        refused(match, pipe(), tmp_path / "bad.npz", tmp_path, monkeypatch)

    x, c = pictures(3, 16, 16), np.array(CAPTIONS)
    of(r"holds arr_0 and no x; save x uint8 \(n, H, W, 3\)", arr_0=x)
    of(r"x of .* is float32 \(3, 16, 16, 3\)", x=x.astype(np.float32), c=c)
    of(r"this model needs videos: save x uint8 \(n, F, H, W, 3\)", wan, x=x, c=c)
    of(r"c of .* has shape \(2,\), and x 3 samples", x=x, c=c[:2])
    of("3 of 3 samples in .* have no caption", x=x)
    of("2 of 3 samples in .* have a class outside of 0 to 999", dit, x=x, y=np.array([999, 1000, -1]))
    of("this model takes square pictures alone, not 8 x 16", dit, x=x[:, :8], y=np.arange(3))
    of(r"samples of 15 x 16 pixels do not fit, .* multiples of 2: give --size 14 or 16", x=x[:, 1:], c=c)
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 no zip")
    refused("is no npz that can be read", pixart(), tmp_path / "bad.npz", tmp_path, monkeypatch)


def test_bad_options(tmp_path, monkeypatch):
    file, only = npz(tmp_path), tmp_path / "only.txt"
    only.write_text("kiwi\nfig\nplum\n")
    match = r"--only: 2 of the 3 captions in .* are of no sample in .* \(fig, plum\); remove these lines"
    refused(match, pixart(), file, tmp_path, monkeypatch, only=only)
    only.write_text("\n")
    refused("--only: .* holds no caption", pixart(), file, tmp_path, monkeypatch, only=only)
    refused("--only: .* cannot be read", pixart(), file, tmp_path, monkeypatch, only=tmp_path / "none.txt")
    refused("--text-drop must lie between 0 and 1, got 1.5", pixart(), file, tmp_path, monkeypatch, text_drop=1.5)
    labels = npz(tmp_path, name="labels.npz", y=np.arange(3))
    refused("--only: DiT is told classes and no captions", dit(), labels, tmp_path, monkeypatch, only=only)
    clips = npz(tmp_path, 1, (8, 16, 16), name="clips.npz")
    refused("--frames 6 does not fit, .* use 5 or 9", wan(), clips, tmp_path, monkeypatch, frames=6)
    refused("--frames 9: the videos in .* have 8", wan(), clips, tmp_path, monkeypatch, frames=9)


def test_what_a_pipeline_must_have(tmp_path, monkeypatch):
    file = npz(tmp_path)
    pipe = pixart()
    pipe.vae = None
    with pytest.raises(ValueError, match="PixArtAlphaPipeline has no vae: the pipeline was loaded without it"):
        open_samples(pipe, file, tmp_path / "cache")
    pipe = pixart()
    pipe.text_encoder = None
    refused("PixArtAlphaPipeline has no text_encoder", pipe, file, tmp_path, monkeypatch)
    pipe = pixart()
    pipe.transformer.register_to_config(in_channels=9)
    refused("its transformer takes 9 channels and latents have 4", pipe, file, tmp_path, monkeypatch)
