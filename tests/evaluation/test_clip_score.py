"""CLIP score on a tiny checkpoint of random weights, against torchmetrics' arithmetic."""

import numpy as np
import pytest
import torch
from evaluation_sets import crops, save, save_run, tiny_clip

from fastdit.evaluation.clip_score import clip_score, text_features
from fastdit.evaluation.features.clip import Clip, pooled
from fastdit.evaluation.features.extract import chosen_frames
from fastdit.evaluation.samples import Samples

PROMPTS = ["a red apple", "two cats", "a red apple", "rain"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return Clip(tiny_clip(tmp_path_factory.mktemp("clip") / "tiny"))


class AsBefore:
    """A model whose features are tensors, as torchmetrics expects them (transformers 5 returns an output object)."""

    def __init__(self, model):
        self.model, self.config = model, model.config

    def to(self, device):
        return self

    def get_image_features(self, *args):
        return pooled(self.model.get_image_features(*args))

    def get_text_features(self, *args):
        return pooled(self.model.get_text_features(*args))


def test_agrees_with_torchmetrics(tmp_path, clip):
    theirs = pytest.importorskip("torchmetrics.functional.multimodal.clip_score")
    pictures = crops(4, 0, side=40)
    found = clip_score(Samples.open(save_run(tmp_path / "run", pictures, PROMPTS)), clip, workers=0, batch_size=3)
    images = [torch.from_numpy(picture.copy()).movedim(-1, 0) for picture in pictures]
    each, _ = theirs._clip_score_update(images, PROMPTS, AsBefore(clip.network), clip.processor)
    assert list(found.samples.values()) == pytest.approx(each.tolist(), abs=1e-3)
    whole = theirs.clip_score(images, PROMPTS, lambda: (AsBefore(clip.network), clip.processor))
    assert found.score.value == pytest.approx(whole.item(), abs=1e-3)
    assert found.score.low <= found.score.value <= found.score.high and found.score.n == 4
    assert min(found.score.low, found.score.value) >= 0 and not found.warnings


def test_the_score_is_100_times_the_cosine(tmp_path, clip, monkeypatch):
    pictures = crops(4, 0, side=40)
    samples = Samples.open(save_run(tmp_path / "run", pictures, PROMPTS))
    images = dict(zip(samples.names, np.eye(8)[:4].astype(np.float32)))
    texts = {"a red apple": [3, 0, 4], "two cats": [0, 2, 0], "rain": [0, 0, 0, -1]}
    rows = {prompt: np.pad(np.array(row, np.float32), (0, 8 - len(row))) for prompt, row in texts.items()}
    module = "fastdit.evaluation.clip_score"
    found = type("Found", (), {"names": list(images), "values": np.stack(list(images.values())), "warnings": []})
    monkeypatch.setattr(f"{module}.kept_features", lambda *_, **__: found)
    monkeypatch.setattr(f"{module}.text_features", lambda _, prompts, *__: (np.stack([rows[p] for p in prompts]), 0))
    score = clip_score(samples, clip)
    assert list(score.samples.values()) == pytest.approx([60, 100, 80, -100])
    assert score.score.value == pytest.approx(35) and score.score.low == 0


def test_videos_are_scored_by_the_mean_over_frames(tmp_path, clip):
    videos = [np.stack(crops(6, seed, side=36)) for seed in (1, 2)]
    chosen = [video[index] for video in videos for index in chosen_frames(6, 2)]
    found = clip_score(
        Samples.open(save_run(tmp_path / "v", videos, PROMPTS[:2], videos=True)), clip, workers=0, frames=2
    )
    prompts = [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2
    single = clip_score(Samples.open(save_run(tmp_path / "p", chosen, prompts)), clip, workers=0)
    expected = np.array(list(single.samples.values())).reshape(2, 2).mean(1)
    assert list(found.samples.values()) == pytest.approx(expected.tolist(), abs=1e-4)


def test_long_prompts_are_cut_counted_and_keep_their_end(tmp_path, clip):
    long = " ".join(f"word{index}" for index in range(60))
    samples = Samples.open(save_run(tmp_path / "run", crops(2, 0, side=40), ["cat", long]))
    assert clip_score(samples, clip, workers=0).warnings == [
        "1 of 2 prompts are longer than the 77 tokens that the model reads, and were cut off there"
    ]
    (features,), cut = text_features(clip, [long], 1, "cpu")
    ids = clip.processor.tokenizer(long)["input_ids"]
    kept = torch.tensor([[*ids[:76], ids[-1]]])
    expected = pooled(clip.network.get_text_features(input_ids=kept, attention_mask=torch.ones_like(kept)))
    assert cut == 1
    np.testing.assert_allclose(features, expected[0].numpy(), atol=1e-5)


def test_a_folder_without_manifest_has_no_prompts(tmp_path, clip):
    with pytest.raises(ValueError, match="has no manifest, so no prompts"):
        clip_score(Samples.open(save(tmp_path, crops(2, 0, side=40))), clip)
