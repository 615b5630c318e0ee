"""Samples for an evaluation: fixed batches by item index, cut among processes, resumable after a kill at any moment.

Of n processes, rank r takes the batches r, r + n, ... and each is always drawn whole, so that names, seeds and pixels
do not depend on the number of processes. Several runs (dense and accelerated) take turns batch by batch in one process:
their seconds may be compared although the machine is shared. A sample's file is renamed into place before its line
enters the manifest, so a kill leaves a whole sample with its line, or nothing that counts.
"""

import itertools
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastdit.evaluation import frames
from fastdit.evaluation.manifest import Item, Record, Writer, have_files, open_run, read_manifest


@dataclass(frozen=True)
class Drawn:
    """What a draw made: a uint8 array (T, H, W, 3) an item (T = 1: a picture), seconds and MACs of the whole batch."""

    samples: Sequence[np.ndarray]
    seconds: float
    macs_dense: int = 0
    macs_executed: int = 0


@dataclass(frozen=True)
class Run:
    """A way to make samples: `settings` is all that decides the pixels, `draw` makes those of some items."""

    name: str
    folder: Path
    settings: dict[str, Any]
    draw: Callable[[Sequence[Item]], Drawn]
    environment: dict[str, Any] = field(default_factory=dict)


_RANK = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
_WORLD = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


@dataclass(frozen=True)
class Shard:
    """This process among those that share the work."""

    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise ValueError(f"shard {self.rank}/{self.world}: the first number counts from 0 to {self.world - 1}")

    @staticmethod
    def of_launch() -> "Shard":
        """What torchrun, `accelerate launch` or MPI set; the processes never talk, so no process group is opened."""
        rank, world = (next((int(os.environ[name]) for name in names if name in os.environ), default)
                       for names, default in ((_RANK, 0), (_WORLD, 1)))  # fmt: skip
        return Shard(rank, world)


def batches(items: Sequence[Item], size: int) -> dict[int, list[Item]]:
    """Items by batch number, which is their index divided by `size`; ValueError for a bad list."""
    if not items:
        raise ValueError("there is nothing to generate: the list of prompts is empty")
    if size < 1:
        raise ValueError(f"batch must be at least 1, got {size}")
    if any(b.index <= a.index for a, b in itertools.pairwise(items)) or items[0].index < 0:
        raise ValueError("items must be numbered upwards from 0 or more: their index decides the batch")
    names = [item.name for item in items if item.name is not None]
    if bad := [name for name in names if Path(name).name != name or name.startswith(".") or "\\" in name]:
        raise ValueError(f"the name {bad[0]!r} would leave the folder of samples or hide in it: give a plain file name")
    if len(names) != len(set(names)):
        raise ValueError(f"two items share the name {next(n for n in names if names.count(n) > 1)!r}")
    found: dict[int, list[Item]] = {}
    for item in items:
        found.setdefault(item.index // size, []).append(item)
    return found


@dataclass
class _Open:
    """A run with its folder open: what is there already, and the writer of this rank."""

    run: Run
    digest: str
    writer: Writer
    done: set[int]


def generate(
    runs: Sequence[Run],
    items: Sequence[Item],
    *,
    batch: int,
    shard: Shard = Shard(),
    fps: int = 16,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Make the samples that this rank owes to every run; returns how many were made now.

    `progress(done, total)` is called at the start and after each batch; both count the samples that this rank owes
    to all runs. ValueError before any work if a folder holds samples of other settings, prompts or seeds, or the
    list is empty.
    """
    own = list(batches(items, batch).items())[shard.rank :: shard.world]
    opened: list[_Open] = []
    try:
        for run in runs:
            opened.append(_open(run, items, batch, shard))
        owed = [[item for _, part in own for item in part if item.index not in each.done] for each in opened]
        total, made = sum(map(len, owed)), 0
        progress(0, total)
        cold, session = {each.run.name for each in opened}, secrets.token_hex(4)
        for turn, (number, part) in enumerate(own):
            for each in _in_turn(opened, turn):
                missing = {item.index for item in part} - each.done
                if not missing:
                    continue
                shared = {"batch": number, "session": session, "cold": each.run.name in cold, "rank": shard.rank}
                for record in _draw(each, part, missing, fps, shared):
                    each.writer.append(record)
                    each.done.add(record.index)
                    made += 1
                cold.discard(each.run.name)
                progress(made, total)
        return made
    finally:
        for each in opened:
            each.writer.close()


def _open(run: Run, items: Sequence[Item], batch: int, shard: Shard) -> _Open:
    """Open a run's folder; the batch is among the settings, as kernels may round differently with another one."""
    indices = [item.index for item in items]
    digest = open_run(run.folder, run.name, {**run.settings, "batch": batch}, run.environment, indices)
    records = have_files(run.folder, read_manifest(run.folder))
    wanted = {item.index: item for item in items}
    for record in records:
        item = wanted.get(record.index)
        if item is None:
            continue  # another list was begun here before: those samples stay
        if (record.prompt, record.seed) != (item.prompt, item.seed):
            raise ValueError(
                f"{run.folder} holds sample {item.index} as {record.prompt!r} with seed {record.seed}; it is now "
                f"{item.prompt!r} with seed {item.seed}: give another --out, or the list and seed of before"
            )
    return _Open(run, digest, Writer(run.folder, shard.rank), {record.index for record in records})


def _in_turn(opened: Sequence[_Open], turn: int) -> Sequence[_Open]:
    """Each batch begins with another run, so that none always profits from what the one before left warm."""
    start = turn % len(opened)
    return [*opened[start:], *opened[:start]]


def _draw(each: _Open, part: Sequence[Item], missing: set[int], fps: int, shared: dict[str, Any]) -> Iterator[Record]:
    """Draw a whole batch, write the files of what is missing of it, and yield each record once its files are there."""
    try:
        drawn = each.run.draw(part)
    except ValueError as error:
        told = f"samples {part[0].index} to {part[-1].index} (the first is {part[0].prompt!r}, seed {part[0].seed})"
        raise ValueError(f"run {each.run.name}, {told}: {error}") from error
    if len(drawn.samples) != len(part):
        raise ValueError(f"{each.run.name}: {len(drawn.samples)} samples came back for {len(part)} items")
    for item, sample in zip(part, drawn.samples, strict=True):
        if item.index not in missing:
            continue
        file, video = _write(each.run.folder, item, sample, fps)
        yield Record(
            index=item.index,
            file=file,
            video=video,
            prompt=item.prompt,
            label=item.label,
            seed=item.seed,
            settings=each.digest,
            seconds=round(drawn.seconds / len(part), 6),
            macs_dense=drawn.macs_dense // len(part),
            macs_executed=drawn.macs_executed // len(part),
            **shared,
        )


def _write(folder: Path, item: Item, sample: np.ndarray, fps: int) -> tuple[str, str | None]:
    """A picture becomes a PNG, a video raw npy and an mp4; returns their names relative to the folder."""
    if len(sample) == 1:
        file = f"samples/{item.index:06d}.png"
        frames.write_picture(folder / file, sample[0])
        return file, None
    file, video = f"samples/{item.index:06d}.npy", f"samples/{item.index:06d}.mp4"
    if item.name is not None:
        (folder / "videos").mkdir(exist_ok=True)
        video = f"videos/{item.name}.mp4"
    frames.write_raw(folder / file, sample)
    frames.write_video(folder / video, sample, fps)
    return file, video


def to_uint8(values: Any) -> np.ndarray:
    """Floats in [0, 1] of any shape as uint8, rounded; ValueError if some are not finite (a failed run)."""
    values = np.asarray(values, np.float32)
    if not np.isfinite(values).all():
        raise ValueError("the model made values that are not finite (NaN): try another dtype, float32 is the safest")
    return (values.clip(0, 1) * 255).round().astype(np.uint8)
