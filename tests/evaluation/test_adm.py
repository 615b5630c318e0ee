"""ADM's npz: what is written is what numpy and ADM's own reader find; nothing is left of what fails."""

import pickle
import shutil
import tracemalloc
import zipfile

import numpy as np
import pytest
from evaluation_sets import crops, save
from numpy.lib import format as npy

from fastdit.evaluation.adm import open_pack, pack
from fastdit.evaluation.samples import Samples


def test_pack_and_read_again(tmp_path):
    pictures = crops(5, 0, side=20)
    out = tmp_path / "out.npz"
    assert pack(Samples.open(save(tmp_path / "in", pictures)), out) == (5, 20, 20, 3)
    with np.load(out, allow_pickle=False) as file:
        assert list(file) == ["arr_0"]
        np.testing.assert_array_equal(file["arr_0"], np.stack(pictures))
    with zipfile.ZipFile(out) as archive, archive.open("arr_0.npy") as file:  # as guided-diffusion's reader begins
        assert npy.read_magic(file) == (1, 0)
        assert npy.read_array_header_1_0(file) == ((5, 20, 20, 3), False, np.dtype(np.uint8))
    again = Samples.open(out)
    assert again.names == [f"{index:06d}" for index in range(5)]
    np.testing.assert_array_equal(again.read("000003"), pictures[3][None])
    assert pack(again, tmp_path / "two.npz", num=2) == (2, 20, 20, 3)


@pytest.mark.parametrize("save_as", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_layout_of_numpy_is_read(tmp_path, save_as, order):
    pictures = np.asarray(np.stack(crops(3, 1, side=12)), order=order)
    save_as(tmp_path / "x.npz", arr_0=pictures, arr_1=np.arange(3))
    opened = open_pack(tmp_path / "x.npz")
    read = pickle.loads(pickle.dumps(opened.read))  # as a worker process gets it
    for index, name in enumerate(opened.names):
        np.testing.assert_array_equal(read(name), pictures[index][None])


def test_neither_reading_nor_writing_holds_the_whole(tmp_path):
    one = np.zeros((1, 256, 256, 3), np.uint8)
    many = Samples(tmp_path, [str(index) for index in range(60)], lambda name: one)
    tracemalloc.start()
    pack(many, tmp_path / "out.npz")
    opened = open_pack(tmp_path / "out.npz")
    assert opened.read(opened.names[-1]).shape == one.shape
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "out.npz").stat().st_size > 60 * one.nbytes > 10 * peak


def test_bad_input_leaves_nothing(tmp_path, monkeypatch):
    mixed = Samples.open(save(tmp_path / "mixed", [*crops(2, 0, side=16), *crops(1, 0, side=20)]))
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ValueError, match=r"002 is 20 x 20 and 000 16 x 16: one npz holds one size"):
        pack(mixed, out / "x.npz")
    with pytest.raises(ValueError, match=r"--num 9: .* holds 3 samples"):
        pack(mixed, out / "x.npz", 9)
    with pytest.raises(ValueError, match=r"reads \.npz files"):
        pack(mixed, out / "x.zip")
    video = Samples(tmp_path, ["a"], lambda name: np.zeros((4, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="a is a video of 4 frames"):
        pack(video, out / "x.npz")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(ValueError, match="are free on that disk"):
        pack(mixed, out / "x.npz", 2)
    assert not list(out.iterdir())


def test_files_that_are_no_samples(tmp_path):
    whole = tmp_path / "whole.npz"
    np.savez(whole, arr_0=np.stack(crops(4, 0, side=32)))
    bad = {
        "stats": ("mu, sigma and no arr_0.*reference statistics", {"mu": np.zeros(2), "sigma": np.eye(2)}),
        "floats": (r"must be uint8 \(N, H, W, 3\), it is float64", {"arr_0": np.zeros((2, 4, 4, 3))}),
        "grey": (r"must be uint8 \(N, H, W, 3\)", {"arr_0": np.zeros((2, 4, 4), np.uint8)}),
        "objects": ("must be uint8", {"arr_0": np.array([None, None])}),
        "none": ("must be uint8", {"arr_0": np.zeros((0, 4, 4, 3), np.uint8)}),
        "torn": ("no npz that can be read", whole.read_bytes()[:5000]),
    }
    for name, (message, data) in bad.items():
        path = tmp_path / f"{name}.npz"
        path.write_bytes(data) if isinstance(data, bytes) else np.savez(path, **data)
        with pytest.raises(ValueError, match=message) as error:
            Samples.open(path)
        assert str(path) in str(error.value)
