"""Feature extractors: real photographs through EfficientNet-Lite0, Inception through stand-in files, and extraction."""

import hashlib
import pickle
import shutil

import numpy as np
import pytest
import torch
from evaluation_sets import Coarse, crops, save, save_run, tiny_clip
from PIL import Image, ImageFilter

from fastdit.evaluation.features import inception, inception_tf
from fastdit.evaluation.features.base import load_extractors, open_extractor
from fastdit.evaluation.features.extract import chosen_frames, extract, kept_features
from fastdit.evaluation.frechet import Statistics, frechet_distance
from fastdit.evaluation.kernel import kid, kid_interval
from fastdit.evaluation.samples import Samples


def blurred(picture: np.ndarray, radius: float) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius)))


def noisy(picture: np.ndarray, sigma: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, sigma, picture.shape)
    return (picture + noise).clip(0, 255).astype(np.uint8)


def test_real_pictures_are_ordered_by_what_was_done_to_them(tmp_path):
    pytest.importorskip("efficientnet_lite_pytorch")
    network = open_extractor("efficientnet-lite0")
    assert (network.label("FD"), network.label("KID")) == ("FD(efficientnet-lite0)", "KID(efficientnet-lite0)")
    count = 12
    others = crops(count, 2)
    sets = {
        "reference": crops(count, 1),
        "same": others,
        "blur 1.5": [blurred(picture, 1.5) for picture in others],
        "blur 4": [blurred(picture, 4) for picture in others],
        "noise 60": [noisy(picture, 60) for picture in others],
    }
    # one extraction, so that one pair of workers starts
    samples = Samples.open(save(tmp_path / "all", [picture for pictures in sets.values() for picture in pictures]))
    values = extract(samples, network).values.reshape(len(sets), count, network.dimension)
    found = dict(zip(sets, values))
    reference = found.pop("reference")
    distance = {name: kid(x, reference) for name, x in found.items()}
    assert abs(distance["same"]) < 0.02 < distance["blur 1.5"] < distance["blur 4"], distance
    assert distance["noise 60"] > distance["blur 1.5"], distance
    # FD of few samples is far from 0 for equal distributions, but to itself it is 0
    whole = {name: Statistics.of(x, network.identity) for name, x in {**found, "reference": reference}.items()}
    assert frechet_distance(whole["same"], whole["same"]) < 1e-6
    assert (
        10 < frechet_distance(whole["same"], whole["reference"]) < frechet_distance(whole["blur 4"], whole["reference"])
    )
    change = kid_interval({"dense": found["same"], "fast": found["blur 4"]}, reference).difference("fast", "dense")
    assert change.low > 0


def test_rows_do_not_depend_on_workers_and_batches(tmp_path):
    samples = Samples.open(save(tmp_path, crops(7, 0, side=20)))
    expected = extract(samples, Coarse(), workers=0, batch_size=7)
    seen = []
    found = extract(samples, Coarse(), workers=2, batch_size=3, progress=lambda *state: seen.append(state))
    np.testing.assert_array_equal(found.values, expected.values)
    assert found.names == list(samples.names) and seen[-1] == (7, 7) and found.warnings == []
    np.testing.assert_array_equal(extract(samples, Coarse(), num=3).values, expected.values[:3])


def test_frames_of_videos():
    assert chosen_frames(1, "middle") == chosen_frames(1, 8) == chosen_frames(1, "all") == [0]
    assert chosen_frames(5, "middle") == [2] and chosen_frames(3, "all") == [0, 1, 2]
    assert chosen_frames(16, 4) == [2, 6, 10, 14] and chosen_frames(3, 8) == [0, 1, 2]
    with pytest.raises(ValueError, match="use middle, all or a number"):
        chosen_frames(3, "each")


def test_videos_give_a_row_a_chosen_frame(tmp_path):
    videos = [np.stack(crops(frames, frames, side=16)) for frames in (3, 5)]
    samples = Samples.open(save_run(tmp_path / "run", videos, ["a", "b"], videos=True))
    middle = extract(samples, Coarse(), workers=0)
    every = extract(samples, Coarse(), workers=0, frames="all", batch_size=4)
    assert every.values.shape == (8, 48) and every.names == [samples.names[0]] * 3 + [samples.names[1]] * 5
    np.testing.assert_array_equal(middle.values, every.values[[1, 5]])


def test_what_cannot_be_used_is_counted_and_named(tmp_path):
    folder = save(tmp_path, [*crops(3, 0, side=32), *crops(2, 1, side=24)])
    path = folder / "001.png"
    path.write_bytes(path.read_bytes()[:200])
    (folder / "003.png").write_bytes(b"")
    found = extract(Samples.open(folder), Coarse())
    assert found.names == ["000", "002", "004"] and len(found.values) == 3
    broken, sizes = found.warnings
    assert "2 of 5 samples" in broken and "could not be read and are left out" in broken and "001.png" in broken
    assert "pictures of 2 sizes (2 of 32 x 32, 1 of 24 x 24)" in sizes and "resiz" in sizes
    for name in ("000", "002"):
        (folder / f"{name}.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 3 samples can be used, a distribution needs 2 or more; .*001\.png"):
        extract(Samples.open(folder), Coarse())
    with pytest.raises(ValueError, match=r"--num 9: .* holds 3 samples"):
        extract(Samples.open(folder), Coarse(), num=9)


def test_features_that_are_not_finite_name_the_picture(tmp_path):
    class Broken(Coarse):
        def __call__(self, batch: torch.Tensor) -> torch.Tensor:
            rows = super().__call__(batch)
            rows[1] = float("nan")
            return rows

    with pytest.raises(ValueError, match="features of 001 are not finite"):
        extract(Samples.open(save(tmp_path, crops(3, 0, side=16))), Broken())


def test_features_of_a_run_are_kept_until_something_changes(tmp_path):
    class Counted(Coarse):
        calls = 0

        def __call__(self, batch: torch.Tensor) -> torch.Tensor:
            Counted.calls += 1
            return super().__call__(batch)

    folder = save_run(tmp_path / "run", crops(4, 0, side=16), "abcd")

    def calls(**options: object) -> int:
        before = Counted.calls
        found = kept_features(Samples.open(folder), Counted(), workers=0, **options)
        np.testing.assert_array_equal(
            found.values, extract(Samples.open(folder), Coarse(), workers=0, **options).values
        )
        return Counted.calls - before

    assert [calls(), calls()] == [1, 0]
    with pytest.raises(ValueError, match=r"--num 9: .* holds 4 samples"):  # never the kept ones of all 4
        kept_features(Samples.open(folder), Counted(), workers=0, num=9)
    kept = folder / "results" / "features.coarse.npz"
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]
    assert [calls(num=2), calls(num=2)] == [1, 0]
    kept.write_bytes(kept.read_bytes()[:100])  # torn
    assert [calls(), calls()] == [1, 0]
    Image.fromarray(crops(1, 9, side=16)[0]).save(folder / "samples" / "000001.png")
    assert calls() == 1
    manifest = folder / "manifest.0.jsonl"
    manifest.write_text(manifest.read_text().replace('"prompt": "a"', '"prompt": "x"'))
    assert calls() == 1
    path = folder / "samples" / "000001.png"
    path.write_bytes(path.read_bytes()[:200])
    for _ in range(2):  # a warning is not kept: it must be seen each time
        assert len(kept_features(Samples.open(folder), Counted(), workers=0).warnings) == 1


def test_registry_and_options():
    assert {"inception", "inception-tf", "efficientnet-lite0", "clip"} <= set(load_extractors())
    with pytest.raises(ValueError, match=r"unknown extractor 'incepton'; known: clip, .*did you mean 'inception'"):
        open_extractor("incepton")
    with pytest.raises(ValueError, match="--resize is no option of the features inception-tf; it takes --inception"):
        open_extractor("inception-tf", resize="clean")
    with pytest.raises(ValueError, match=r"--clip is no option of the features efficientnet-lite0$"):
        open_extractor("efficientnet-lite0", clip="x", inception=None)


class Layers(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(x, 32).flatten(1)[:, :2048]


class Standin(torch.nn.Module):
    """The interface of the TorchScript Inception, without its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = Layers()

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        x = torch.nn.functional.interpolate(x, [299, 299], mode="bilinear")
        return self.layers((x - 128) / 128)


@pytest.fixture(scope="module")
def standin(tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "weights.pt"  # any name will do
    torch.jit.script(Standin()).save(str(path))
    return path


def test_inception_agrees_with_clean_fids_own_features(tmp_path, monkeypatch, standin):
    clean_fid = pytest.importorskip("cleanfid.fid")
    monkeypatch.setattr(inception, "SHA256", hashlib.sha256(standin.read_bytes()).hexdigest())
    folder = save(tmp_path / "in", crops(3, 0, side=70))
    shutil.copy(standin, tmp_path / inception.FILE)
    for mode in inception.MODES:
        network = open_extractor("inception", inception=standin, resize=mode)
        assert (network.label("FD"), network.label("KID"), network.dimension) == ("FID", "KID", 2048)
        ours = extract(Samples.open(folder), network, workers=0).values
        wrapper = clean_fid.build_feature_extractor.__globals__["InceptionV3W"]
        theirs = wrapper(str(tmp_path), download=False, resize_inside=mode == "legacy_tensorflow")
        expected = clean_fid.get_folder_features(
            str(folder), theirs, num_workers=0, device=torch.device("cpu"), mode=mode, verbose=False
        )
        np.testing.assert_allclose(ours, expected, atol=1e-5)
        pickle.loads(pickle.dumps(network.preprocess))  # as worker processes get it where there is no fork
    assert network.identity == "inception:legacy_tensorflow"
    assert open_extractor("inception", inception=tmp_path).identity == "inception"  # the folder of the file


@pytest.mark.parametrize("name, module", [("inception", inception), ("inception-tf", inception_tf)])
def test_inception_says_which_file_it_needs_and_where_to_get_it(tmp_path, name, module):
    for path, reason in (
        (None, "needs the file"),
        (tmp_path / "none.pt", "none.pt does not exist"),
        (tmp_path, f"{module.FILE} does not exist"),
    ):
        with pytest.raises(ValueError) as error:
            open_extractor(name, inception=path)
        text = str(error.value)
        assert reason in text and "\n" not in text and text.startswith(f"--features {name}: ")
        assert all(part in text for part in (module.FILE, module.SHA256, module.SOURCE, "--inception" if path else ""))
    (tmp_path / module.FILE).write_bytes(b"half a download")
    with pytest.raises(
        ValueError, match=f"another file or damaged .sha256 [0-9a-f]{{64}}.: give the file {module.FILE}"
    ):
        open_extractor(name, inception=tmp_path)


def test_inception_tf_runs_torch_fidelitys_network(tmp_path, monkeypatch):
    theirs = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    monkeypatch.setattr(inception_tf, "SHA256", "")
    monkeypatch.setattr(theirs, "load_state_dict", lambda self, weights: None)  # random ones do
    torch.save({"w": torch.zeros(1)}, tmp_path / "weights.pth")
    network = open_extractor("inception-tf", inception=tmp_path / "weights.pth")
    found = extract(Samples.open(save(tmp_path / "in", [*crops(1, 0, 40), *crops(1, 1, 50)])), network, workers=0)
    assert found.values.shape == (2, 2048) and network.label() == "FID" and "2 sizes" in found.warnings[0]
    (tmp_path / "code.pth").write_bytes(pickle.dumps(print, protocol=2))
    with pytest.raises(ValueError, match="holds more than tensors, or is damaged"):
        open_extractor("inception-tf", inception=tmp_path / "code.pth")


def test_clip_features_are_the_checkpoints_own(tmp_path):
    from transformers import CLIPModel, CLIPProcessor

    path = tiny_clip(tmp_path / "ViT-tiny")
    network = open_extractor("clip", clip=path)
    assert (network.label(), network.dimension) == ("FD(clip:ViT-tiny)", 8)
    assert network.identity.startswith("clip:ViT-tiny:")
    pictures = crops(3, 0, side=50)
    found = extract(Samples.open(save(tmp_path / "in", pictures)), network, workers=0).values
    model, processor = CLIPModel.from_pretrained(path).eval(), CLIPProcessor.from_pretrained(path)
    inputs = processor(images=[Image.fromarray(picture) for picture in pictures], return_tensors="pt")
    expected = model.vision_model(**inputs).pooler_output @ model.visual_projection.weight.T
    np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-5)
    with pytest.raises(ValueError, match="nowhere could not be loaded as a CLIPModel"):
        open_extractor("clip", clip=tmp_path / "nowhere")
