"""LPIPS without its weights: the path with a random trunk, its scaling, its names, and what it says when files lack."""

import copy
import hashlib
import sys

import numpy as np
import pytest
import torch

from fastdit.evaluation import perceptual

lpips = pytest.importorskip("lpips")


@pytest.fixture(scope="module")
def random_alex():
    torch.manual_seed(0)
    return perceptual.random_trunk("alex")


def clips(count=3, size=40):
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (count, size, size, 3), np.uint8)
    return a, (a + rng.normal(0, 30, a.shape)).clip(0, 255).astype(np.uint8)


def test_identical_frames_are_at_no_distance(random_alex):
    a, b = clips()
    assert (random_alex(a, a) == 0).all()
    assert random_alex(a, b).shape == (3,) and (random_alex(a, b) > 0).all()


def test_frames_are_scaled_to_what_the_networks_were_trained_on(random_alex):
    """A published metric feeds [0, 1] as if it were [-1, 1]; the package's own normalize=True is right."""
    a, b = clips()
    x, y = (torch.from_numpy(frames).movedim(-1, 1) / 255.0 for frames in (a, b))
    with torch.no_grad():
        right = random_alex.network(x, y, normalize=True).flatten().numpy()
        wrong = random_alex.network(x, y).flatten().numpy()
    assert random_alex(a, b) == pytest.approx(right, rel=1e-4)
    assert random_alex(a, b) != pytest.approx(wrong, rel=1e-2)


def test_a_long_clip_is_cut_into_batches_that_change_nothing(random_alex):
    a, b = clips(count=perceptual._BATCH + 3, size=32)
    alone = np.concatenate([random_alex(x[None], y[None]) for x, y in zip(a, b, strict=True)])
    assert random_alex(a, b) == pytest.approx(alone, rel=1e-4)


def test_mismatched_small_and_float_frames_are_refused(random_alex):
    a, b = clips()
    with pytest.raises(ValueError, match="one shape"):
        random_alex(a, b[:2])
    with pytest.raises(ValueError, match="at least 32 x 32 pixels, got 40 x 31"):
        random_alex(a[:, :, :31], b[:, :, :31])
    with pytest.raises(ValueError, match="must be uint8, got float64"):
        random_alex(a / 255, b / 255)


def test_a_random_trunk_is_never_called_lpips(random_alex):
    assert random_alex.key == "random_alex" and random_alex.name == "random trunk (alex), not LPIPS"


@pytest.mark.parametrize("net, file", [("alex", "alexnet-owt-7be5be79.pth"), ("vgg", "vgg16-397923af.pth")])
def test_without_weights_one_error_names_the_file_and_where_it_is(tmp_path, monkeypatch, net, file):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    message = rf"needs the file {file}.*https://download.*{file}.*--lpips-weights"
    for weights in (None, tmp_path, tmp_path / "elsewhere.pth"):
        with pytest.raises(ValueError, match=message) as error:
            perceptual.lpips(net, weights)
        assert "\n" not in str(error.value)


def test_another_trunk_and_another_file_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no trunk 'squeeze' here, use one of alex, vgg"):
        perceptual.lpips("squeeze")
    path = tmp_path / "alexnet-owt-7be5be79.pth"
    path.write_bytes(b"half")
    with pytest.raises(ValueError, match=r"is not alexnet.*begins with \w{8}, not 7be5be79.*downloaded whole"):
        perceptual.lpips("alex", path)


def test_the_package_is_asked_for_by_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ValueError, match="LPIPS needs"):
        perceptual.random_trunk()


def test_a_trunk_file_is_loaded_by_path_folder_and_cache(tmp_path, monkeypatch, random_alex):
    """The random trunk's own weights, written as torchvision's file names them, give its own distances."""
    own = random_alex.network.net.state_dict()
    state = {theirs: own[name] for name, theirs in perceptual._trunk_names(random_alex.network).items()}
    assert len(state) == 10 and "features.10.bias" in state
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    torch.save({**state, "classifier.1.weight": torch.zeros(1)}, folder / "x")
    digest = hashlib.sha256((folder / "x").read_bytes()).hexdigest()[:8]
    name = f"alexnet-test-{digest}.pth"
    (folder / "x").rename(folder / name)
    monkeypatch.setitem(perceptual.TRUNKS, "alex", name)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(perceptual, "_network", lambda net: copy.deepcopy(random_alex.network))
    a, b = clips()
    for weights in (folder / name, folder, None):
        loaded = perceptual.lpips("alex", weights)
        assert loaded(a, b) == pytest.approx(random_alex(a, b))
        assert (loaded.key, loaded.name) == ("lpips_alex", "LPIPS(alex)")


@pytest.mark.filterwarnings("ignore::UserWarning")  # lpips 0.1.4 speaks an older torchvision
@pytest.mark.parametrize("net, model", [("alex", "alexnet"), ("vgg", "vgg16")])
def test_trunk_names_are_torchvisions(net, model):
    import torchvision

    with torch.device("meta"):  # shapes alone: a VGG takes seconds to fill with noise
        network = lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False)
        theirs = getattr(torchvision.models, model)().state_dict()
    own = network.net.state_dict()
    names = perceptual._trunk_names(network)
    assert set(names.values()) == {name for name in theirs if name.startswith("features.")}
    assert all(own[name].shape == theirs[there].shape for name, there in names.items())
