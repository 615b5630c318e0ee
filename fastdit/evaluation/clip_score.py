"""CLIP score: does a picture fit its prompt? 100 * cosine of CLIP's picture and text features.

Hessel et al. (2021) define w * max(cos, 0) with w = 2.5. As in torchmetrics and most tables since, w is 1, the score is
in percent, and the mean, not each sample, is held above 0 (with trained weights it makes no difference).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from fastdit.evaluation.features.clip import Clip, pooled
from fastdit.evaluation.features.extract import Progress, kept_features
from fastdit.evaluation.intervals import Interval, bootstrap
from fastdit.evaluation.samples import Samples

FRAMES = 8  # of a video, spread evenly


@dataclass(frozen=True)
class ClipScore:
    """The mean score with its interval over prompts, and the score of each sample by name."""

    score: Interval
    samples: dict[str, float]
    warnings: list[str] = field(default_factory=list)


def clip_score(
    samples: Samples,
    clip: Clip,
    *,
    batch_size: int = 32,
    workers: int = 2,
    device: str = "cpu",
    frames: str | int = FRAMES,
    progress: Progress | None = None,
) -> ClipScore:
    """CLIP score of a run, prompts from its manifest; a video's score is the mean over its frames looked at.

    ValueError without a manifest. Prompts longer than the model reads are cut off there, with a counted warning.
    """
    if not samples.records:
        raise ValueError(f"{samples.root} has no manifest, so no prompts: `fastdit eval generate` writes one")
    found = kept_features(
        samples, clip, batch_size=batch_size, workers=workers, device=device, frames=frames, progress=progress
    )
    prompts = list(dict.fromkeys(samples.records[name].prompt for name in found.names))
    texts, cut = text_features(clip, prompts, batch_size, device)
    by_prompt = dict(zip(prompts, _unit(texts)))
    scores: dict[str, list[float]] = {}
    for name, row in zip(found.names, _unit(found.values)):
        scores.setdefault(name, []).append(100 * float(row @ by_prompt[samples.records[name].prompt]))
    each = {name: float(np.mean(values)) for name, values in scores.items()}
    mean = bootstrap(list(each.values()), [samples.records[name].prompt for name in each])
    low, high = (None if bound is None else max(0.0, bound) for bound in (mean.low, mean.high))
    warnings = list(found.warnings)
    if cut:
        warnings.append(f"{cut} of {len(prompts)} prompts are longer than the {_longest(clip)} tokens that the model "
                        "reads, and were cut off there")  # fmt: skip
    return ClipScore(Interval(max(0.0, mean.value), low, high, mean.n), each, warnings)


@torch.inference_mode()
def text_features(clip: Clip, prompts: Sequence[str], batch_size: int, device: str) -> tuple[np.ndarray, int]:
    """Features (n, D) of prompts, and how many were too long for the model.

    A prompt that is too long keeps its end token, in whose place CLIP reads the text (torchmetrics cuts it off).
    """
    longest, tokenizer = _longest(clip), clip.processor.tokenizer
    cut = sum(len(tokens) > longest for tokens in tokenizer(list(prompts), verbose=False)["input_ids"])
    found = []
    for start in range(0, len(prompts), batch_size):
        part = list(prompts[start : start + batch_size])
        tokens = tokenizer(part, padding=True, truncation=True, max_length=longest, return_tensors="pt").to(device)
        features = clip.network.get_text_features(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        )
        found.append(pooled(features).float().cpu().numpy())
    return np.concatenate(found), cut


def _longest(clip: Clip) -> int:
    return int(clip.network.config.text_config.max_position_embeddings)


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
