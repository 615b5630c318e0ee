"""Samples on disk: exact where they must be, whole or an error of one line where they are damaged."""

import subprocess

import numpy as np
import pytest
from PIL import Image

from fastdit.evaluation import ffmpeg, frames


def clip(count=5, height=48, width=64):
    """Blocks of colour that move two pixels every other frame: frames 0 and 1 are equal, 2 and 3, ..."""
    blocks = np.random.default_rng(0).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    first = blocks.repeat(8, 0).repeat(8, 1)[:height, :width]
    return np.stack([np.roll(first, 2 * (index // 2), 1) for index in range(count)])


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """One mp4 and one webm, to be cut and bent."""
    folder = tmp_path_factory.mktemp("videos")
    for suffix in (".mp4", ".webm", ".gif"):
        frames.write_video(folder / f"clip{suffix}", clip(), 8)
    return folder


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.PNG"])
def test_pictures_come_back_bit_for_bit(tmp_path, name):
    frames.write_picture(tmp_path / name, clip()[0])
    assert (frames.read(tmp_path / name) == clip()[:1]).all() and not frames.is_lossy(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_raw_frames_come_back_bit_for_bit_and_may_be_written_to(tmp_path):
    frames.write_raw(tmp_path / "a.npy", clip())
    back = frames.read(tmp_path / "a.npy")
    assert (back == clip()).all() and not frames.is_lossy(tmp_path / "a.npy")
    back += 1  # not a map of the file
    assert (frames.read(tmp_path / "a.npy") == clip()).all()


def test_a_jpg_is_near_and_called_lossy(tmp_path):
    smooth = np.linspace(0, 255, 64).astype(np.uint8)[None, :, None].repeat(48, 0).repeat(3, 2)
    frames.write_picture(tmp_path / "a.jpg", smooth)
    assert np.abs(frames.read(tmp_path / "a.jpg")[0].astype(int) - smooth).max() < 8
    assert frames.is_lossy(tmp_path / "a.jpg")
    Image.fromarray(smooth).save(tmp_path / "a.webp")
    assert frames.is_lossy(tmp_path / "a.webp")


def test_a_png_carries_its_text(tmp_path):
    frames.write_picture(tmp_path / "a.png", clip()[0], {"prompt": 'ä "q"', "seed": 3})
    assert Image.open(tmp_path / "a.png").text == {"fastdit": '{"prompt": "\\u00e4 \\"q\\"", "seed": 3}'}


def test_grey_becomes_rgb_and_transparent_pixels_lie_on_white(tmp_path):
    grey = clip()[0, ..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert (frames.read(tmp_path / "grey.png") == grey[None, ..., None]).all()
    alpha = np.dstack([clip()[0], np.full((48, 64), 255, np.uint8)])
    alpha[:, :10, 3], alpha[:, 10:20, 3] = 0, 128
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    back = frames.read(tmp_path / "alpha.png")[0]
    assert (back[:, :10] == 255).all() and (back[:, 20:] == clip()[0, :, 20:]).all()
    assert np.abs(back[:, 10:20] - (clip()[0, :, 10:20] * (128 / 255) + 255 * (127 / 255))).max() <= 1
    palette = Image.fromarray(grey).convert("P")
    palette.save(tmp_path / "palette.png", transparency=int(np.asarray(palette)[0, 0]))
    assert (frames.read(tmp_path / "palette.png")[0, 0, 0] == 255).all()


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_an_animation_is_a_video(tmp_path, suffix):
    first, *others = (Image.fromarray(frame) for frame in clip()[::2])  # Pillow drops repeated frames
    more = {} if suffix == "png" else {"lossless": True} if suffix == "webp" else {"optimize": False}
    first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=others, duration=100, **more)
    back = frames.read(tmp_path / f"a.{suffix}")
    assert back.shape == clip()[::2].shape
    if suffix != "gif":
        assert (back == clip()[::2]).all()


@pytest.mark.parametrize(
    "values, expected",
    [
        (clip()[0, ..., 0], clip()[:1, ..., :1].repeat(3, -1)),
        (clip()[0], clip()[:1]),
        (clip()[..., :1], clip()[..., :1].repeat(3, -1)),
        (clip() / 255, clip()),
        ((clip() / 255).astype(np.float32), clip()),
        ((clip() / 255).astype(np.float16), clip()),  # half a level is 1/510, float16 errs by at most 1/4096
        (np.full((4, 4, 3), 0.4999 / 255), np.zeros((1, 4, 4, 3))),
        (np.full((4, 4, 3), 0.5001 / 255), np.ones((1, 4, 4, 3))),
        (np.asfortranarray(clip()), clip()),
    ],
)
def test_arrays_of_other_shapes_and_floats_are_taken(tmp_path, values, expected):
    np.save(tmp_path / "a.npy", values)
    back = frames.read(tmp_path / "a.npy")
    assert back.dtype == np.uint8 and back.flags["C_CONTIGUOUS"] and (back == expected).all()


BAD_ARRAYS = [
    (np.zeros((4, 4, 3), np.int64), "holds int64: save uint8, or floats"),
    (np.zeros((4, 4, 3), bool), "holds bool"),
    (np.zeros((2, 3, 4, 4), np.uint8), r"has shape \(2, 3, 4, 4\)"),
    (np.zeros((4, 4, 4), np.uint8), r"has shape \(4, 4, 4\)"),
    (np.zeros(4, np.uint8), r"has shape \(4,\)"),
    (np.zeros((0, 4, 4, 3), np.uint8), "is empty|no npy file"),
    (np.full((4, 4, 3), 1.01), "floats from 1.01 to 1.01: they must lie in"),
    (np.full((4, 4, 3), -0.01), "floats from -0.01"),
    (np.full((4, 4, 3), 255.0), "floats from 255"),
    (np.full((4, 4, 3), np.nan), "not finite"),
    (np.full((4, 4, 3), np.inf), "not finite"),
]


@pytest.mark.parametrize("values, message", BAD_ARRAYS, ids=[message[:20] for _, message in BAD_ARRAYS])
def test_arrays_of_no_use_are_refused(tmp_path, values, message):
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(ValueError, match=rf"a\.npy.*({message})"):
        frames.read(tmp_path / "a.npy")


class Bomb:
    def __reduce__(self):
        return print, ("unpickled",)


def test_nothing_is_ever_unpickled(tmp_path, capsys):
    np.save(tmp_path / "a.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="no npy file that can be read"):
        frames.read(tmp_path / "a.npy")
    assert "unpickled" not in capsys.readouterr().out


def one_line(path, match):
    with pytest.raises(ValueError, match=match) as error:
        frames.read(path)
    assert "\n" not in str(error.value) and path.name in str(error.value)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".gif", ".npy", ".mp4", ".webm"])
def test_truncated_empty_and_foreign_files_are_one_line(tmp_path, videos, suffix):
    whole = tmp_path / f"whole{suffix}"
    if suffix in frames.VIDEOS:
        whole = videos / f"clip{suffix}"
    elif suffix == ".npy":
        frames.write_raw(whole, clip())
    else:
        frames.write_picture(whole, clip()[0])
    data, path = whole.read_bytes(), tmp_path / f"bent{suffix}"
    for content in (data[: len(data) // 2], data[:30], b"", b"hello world " * 50):
        path.write_bytes(content)
        one_line(path, "can be read")


def test_damage_inside_a_video_is_noticed(tmp_path, videos):
    data = bytearray((videos / "clip.mp4").read_bytes())
    start = data.index(b"mdat")
    data[start + 1200 : start + 1300] = bytes(100)
    (tmp_path / "bent.mp4").write_bytes(data)
    one_line(tmp_path / "bent.mp4", "no video that can be read whole")


def test_absent_unknown_and_deep_files(tmp_path):
    one_line(tmp_path / "no.png", "does not exist")
    (tmp_path / "a.xyz").touch()
    one_line(tmp_path / "a.xyz", r"unknown file type '\.xyz', use one of \.gif")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    one_line(tmp_path / "deep.png", "more than 8 bits")
    np.savez(tmp_path / "a.npz", clip())
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    one_line(tmp_path / "a.npy", "is an npz")


@pytest.mark.parametrize("suffix, most", [(".mp4", 4), (".webm", 6), (".gif", 0.5)])
def test_videos_keep_their_frames_also_repeated_ones(videos, suffix, most):
    back = frames.read(videos / f"clip{suffix}")
    assert back.shape == clip().shape and frames.is_lossy(videos / f"clip{suffix}")
    assert np.abs(back.astype(int) - clip()).mean() < most


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
@pytest.mark.parametrize("size", [(47, 63), (48, 63), (1, 1)])
def test_videos_are_never_resized(tmp_path, suffix, size):
    shown = clip(3, *size)
    frames.write_video(tmp_path / f"a{suffix}", shown, 24)
    back = frames.read(tmp_path / f"a{suffix}")
    assert back.shape == shown.shape and np.abs(back.astype(int) - shown).mean() < 8


def test_another_reader_sees_the_same_frames(videos):
    import imageio_ffmpeg

    reader = imageio_ffmpeg.read_frames(str(videos / "clip.mp4"))
    assert next(reader)["pix_fmt"].startswith("yuv420p")  # what every player takes
    theirs = np.stack([np.frombuffer(frame, np.uint8).reshape(48, 64, 3) for frame in reader])
    assert (theirs == frames.read(videos / "clip.mp4")).all()


def test_the_same_frames_give_the_same_bytes(tmp_path, videos):
    frames.write_video(tmp_path / "again.mp4", clip(), 8)
    assert (tmp_path / "again.mp4").read_bytes() == (videos / "clip.mp4").read_bytes()


def test_odd_names_are_names(tmp_path):
    name = "-i a:b %03d 'q' é.mp4"
    frames.write_video(tmp_path / name, clip(2), 8)
    assert frames.read(tmp_path / name).shape[0] == 2
    assert [path.name for path in tmp_path.iterdir()] == [name]


BAD_WRITES = [
    (lambda p: frames.write_picture(p / "a.mp4", clip()[0]), "is no picture"),
    (lambda p: frames.write_picture(p / "a.png", clip()[0] / 255), "must be uint8"),
    (lambda p: frames.write_raw(p / "a.png", clip()), "written as .npy"),
    (lambda p: frames.write_raw(p / "a.npy", clip()[..., :1]), "must be uint8"),
    (lambda p: frames.write_raw(p / "a.npy", clip()[:0]), "must be uint8"),
    (lambda p: frames.write_video(p / "a.png", clip(), 8), "is no video"),
    (lambda p: frames.write_video(p / "a.mp4", clip(), 0), "fps must be above 0"),
    (lambda p: frames.write_video(p / "a.mp4", clip(), float("nan")), "fps must be above 0"),
    (lambda p: frames.write_video(p / "a.mp4", clip(), 8, quality=11), "quality must lie"),
]


@pytest.mark.parametrize("write, message", BAD_WRITES, ids=[message for _, message in BAD_WRITES])
def test_bad_writes_leave_nothing(tmp_path, write, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_encoder_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(ffmpeg, "_run", lambda *a: subprocess.CompletedProcess(a, 1, b"", b"[x @ 0x1] no"))
    with pytest.raises(OSError, match=r"a\.mp4 could not be written: ffmpeg failed: no$"):
        frames.write_video(tmp_path / "a.mp4", clip(), 8)
    assert not list(tmp_path.iterdir())
