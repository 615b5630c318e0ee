"""What evaluation costs beside the models: taking up a run of 10,000 samples, and features with 2 workers.

    python benchmarks/evaluation.py --rounds 5

Features: 256 pictures of 256 x 256 as PNG. "Network alone" runs the extractor on pictures that are read and resized
already: where both take the same, the network is the bound and not the loading.
"""

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from timing import in_turns, machine, ratio

from fastdit.evaluation import frames
from fastdit.evaluation.features.base import open_extractor
from fastdit.evaluation.features.extract import extract
from fastdit.evaluation.manifest import Record, have_files, read_manifest
from fastdit.evaluation.samples import Samples


def take_up(folder: Path, count: int = 10_000):
    """A run of `count` samples as a resumed command finds it: lines read, files looked for."""
    (folder / "samples").mkdir(parents=True)
    lines = []
    for index in range(count):
        record = Record(index, f"samples/{index:06d}.png", f"prompt {index}", index, "h" * 12, 0.5, 2, 1, index // 8)
        (folder / record.file).write_bytes(b"x")
        lines.append(json.dumps(asdict(record)))
    (folder / "manifest.0.jsonl").write_text("\n".join(lines) + "\n")

    def run() -> None:
        assert len(have_files(folder, read_manifest(folder))) == count

    return run


def features(folder: Path, name: str, count: int, workers: int):
    """Two functions: features from files with workers, and the network alone on the same pictures in memory."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for index in range(count):
        coarse = rng.integers(0, 255, (16, 16, 3), np.uint8)
        frames.write_picture(folder / f"{index:04d}.png", np.kron(coarse, np.ones((16, 16, 1), np.uint8)))
    samples, extractor = Samples.open(folder), open_extractor(name)
    ready = torch.stack([torch.as_tensor(extractor.preprocess(samples.read(each)[0])) for each in samples.names])

    @torch.inference_mode()
    def alone() -> None:
        for part in ready.split(32):
            extractor(part)

    return lambda: extract(samples, extractor, workers=workers), alone


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=256)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        loading, alone = features(Path(folder, "pictures"), "efficientnet-lite0", args.pictures, 2)
        functions = {"take up": take_up(Path(folder, "run")), "files": loading, "network alone": alone}
        seconds = in_turns(functions, args.rounds)
    print(machine())
    for name, values in seconds.items():
        print(f"{name}: median {np.median(values):.2f} s ({min(values):.2f} to {max(values):.2f})")
    middle, low, high = ratio(seconds["files"], seconds["network alone"])
    print(f"features from files over the network alone: {middle:.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
