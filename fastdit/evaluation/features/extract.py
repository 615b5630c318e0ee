"""Features of a set of samples: worker processes decode and resize while the network works; kept beside a run.

A feature is of a picture. Of a video the middle frame stands for it, so that rows are independent samples; `frames` may
also be "all", or a number of frames spread evenly.
"""

import hashlib
import json
import re
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastdit.core.files import write_whole
from fastdit.evaluation.features.base import Extractor
from fastdit.evaluation.samples import Samples

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Features:
    """Rows of features (N, D) float32, the sample that each row is of, and what had to be left out or said."""

    values: np.ndarray
    names: list[str]
    extractor: str
    warnings: list[str]


class _Pictures(torch.utils.data.Dataset):
    """Sample number -> (number, preprocessed frames (k, 3, h, w) or the reason why there are none, its size)."""

    def __init__(self, samples: Samples, names: list[str], preprocess: Callable, frames: str | int) -> None:
        self.samples, self.names, self.preprocess, self.frames = samples, names, preprocess, frames

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> tuple[int, Any, str]:
        try:
            video = self.samples.read(self.names[number])  # (T, H, W, 3)
        except (ValueError, OSError) as error:
            return number, str(error), ""
        chosen = chosen_frames(len(video), self.frames)
        ready = np.stack([self.preprocess(video[index]) for index in chosen])
        return number, torch.from_numpy(ready), f"{video.shape[2]} x {video.shape[1]}"


def chosen_frames(count: int, frames: str | int) -> list[int]:
    """Which of `count` frames are looked at: "middle", "all", or a number spread evenly; ValueError for other words."""
    if frames == "middle":
        return [count // 2]
    if frames == "all":
        return list(range(count))
    if not isinstance(frames, int) or frames < 1:
        raise ValueError(f"frames {frames!r}: use middle, all or a number above 0")
    wanted = min(frames, count)
    return [(2 * index + 1) * count // (2 * wanted) for index in range(wanted)]


def first(samples: Samples, num: int | None) -> list[str]:
    """Names of the first `num` samples (all, if None); ValueError if there are fewer, or fewer than 2."""
    names = list(samples.names[:num])
    if num is not None and len(names) < num:
        raise ValueError(f"--num {num}: {samples.root} holds {len(names)} samples")
    if len(names) < 2:
        raise ValueError(f"{samples.root}: {len(names)} sample is not enough, a distribution needs 2 or more")
    return names


def extract(
    samples: Samples,
    extractor: Extractor,
    *,
    batch_size: int = 32,
    workers: int = 2,
    device: str = "cpu",
    frames: str | int = "middle",
    num: int | None = None,
    progress: Progress | None = None,
) -> Features:
    """Features of the first `num` samples (all, if None), rows in the samples' order.

    Samples that cannot be read are left out with a warning that counts and names them. ValueError if fewer than 2
    remain, or if a feature is not finite (it names the picture).
    """
    names = first(samples, num)
    chosen_frames(1, frames)
    dataset = _Pictures(samples, names, extractor.preprocess, frames)
    extractor.to(device)
    sizes: Counter[str] = Counter()
    broken: list[str] = []
    found: list[list[np.ndarray]] = [[] for _ in names]  # rows a sample, in the order of its frames
    # pictures of one size share a batch: a network that resizes by itself may get several
    waiting: dict[torch.Size, list[tuple[int, torch.Tensor]]] = {}
    for done, (number, ready, size) in enumerate(_loaded(dataset, workers), 1):
        if isinstance(ready, str):
            broken.append(ready if names[number] in ready else f"{names[number]}: {ready}")
        else:
            sizes[size] += 1
            for frame in ready:
                same = waiting.setdefault(frame.shape, [])
                same.append((number, frame))
                if len(same) == batch_size:
                    _run(extractor, waiting.pop(frame.shape), names, found, device)
        if progress:
            progress(done, len(names))
    for rest in waiting.values():
        _run(extractor, rest, names, found, device)
    usable = sum(sizes.values())
    if usable < 2:
        reason = f"; {broken[0]}" if broken else ""
        raise ValueError(f"{samples.root}: {usable} of {len(names)} samples can be used, a distribution needs 2 or more"
                         f"{reason}")  # fmt: skip
    rows = [(name, row) for name, rows in zip(names, found) for row in rows]
    return Features(
        np.stack([row for _, row in rows]),
        [name for name, _ in rows],
        extractor.identity,
        _warnings(samples.root, broken, sizes, len(names)),
    )


def _loaded(dataset: _Pictures, workers: int) -> Iterator[tuple[int, Any, str]]:
    # one sample an item: videos differ in length, and batches are put together by size in the main process
    workers = min(workers, len(dataset))
    # forked workers need not pickle the readers; where there is no safe fork, the start method is the system's
    context = "fork" if workers and sys.platform.startswith("linux") else None
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=context,
        prefetch_factor=8 if workers else None,
    )
    return iter(loader)


@torch.inference_mode()
def _run(extractor: Extractor, batch: list, names: list[str], found: list[list[np.ndarray]], device: str) -> None:
    features = extractor(torch.stack([frame for _, frame in batch]).to(device)).float().cpu().numpy()
    for (number, _), row in zip(batch, features, strict=True):
        if not np.isfinite(row).all():
            raise ValueError(
                f"features of {names[number]} are not finite: look at that picture, and at the weights file"
            )
        found[number].append(row)


def _warnings(root: Path, broken: list[str], sizes: Counter[str], count: int) -> list[str]:
    said = []
    if broken:
        shown = "; ".join(broken[:3]) + (f"; and {len(broken) - 3} more" if len(broken) > 3 else "")
        said.append(f"{len(broken)} of {count} samples of {root} could not be read and are left out: {shown}")
    if len(sizes) > 1:
        shown = ", ".join(f"{number} of {size}" for size, number in sizes.most_common(3))
        more = ", ..." if len(sizes) > 3 else ""
        said.append(f"{root} holds pictures of {len(sizes)} sizes ({shown}{more}): all are resized to the network's "
                    "input, so the distance holds differences in resizing too")  # fmt: skip
    return said


def kept_features(samples: Samples, extractor: Extractor, **options: Any) -> Features:
    """`extract` with its options, kept in RUN/results until manifest, files or options change; never for folders."""
    first(samples, options.get("num"))  # before the kept ones are looked at, which know no --num beyond the samples
    if not samples.is_run:
        return extract(samples, extractor, **options)
    key = _key(samples, extractor.identity, options.get("frames", "middle"), options.get("num"))
    path = samples.root / "results" / f"features.{re.sub(r'[^A-Za-z0-9.]+', '-', extractor.identity)}.npz"
    known = _read(path, key)
    if known is not None:
        return known
    features = extract(samples, extractor, **options)
    if not features.warnings:  # a warning must be seen every time, and a broken file may be mended
        path.parent.mkdir(exist_ok=True)
        names = np.array(features.names)
        write_whole(
            path,
            lambda temporary: np.savez(
                temporary, key=key, features=features.values, names=names, extractor=features.extractor
            ),
        )
    return features


def _key(samples: Samples, identity: str, frames: str | int, num: int | None) -> str:
    """A digest of all that decides the features: what the manifest says, each file's size, extractor and options."""
    digest = hashlib.sha256(json.dumps([identity, frames, (samples.settings or {}).get("hash")]).encode())
    for name in samples.names[:num]:
        size = (samples.root / name).stat().st_size
        digest.update(json.dumps([asdict(samples.records[name]), size], sort_keys=True).encode())
    return digest.hexdigest()


def _read(path: Path, key: str) -> Features | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["key"]) == key:
                return Features(file["features"], file["names"].tolist(), str(file["extractor"]), [])
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        pass  # absent or damaged: made anew
    return None
