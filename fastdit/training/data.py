"""Samples of a training run: latents and conditions, encoded once by the pipeline's own models and kept on disk."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fastdit.core.files import read_json, write_json
from fastdit.core.ledger import PatchLedger
from fastdit.models.base import family_of
from fastdit.training.cache import CachedRows, Rows, cached_rows, fingerprint, key_of
from fastdit.training.conditions.base import (
    Conditions,
    Geometry,
    call_arguments,
    conditions_of,
    part,
    transformer_of,
    vae_scale,
)
from fastdit.training.pictures import fitted
from fastdit.training.sizes import Size, check_channels, size_of
from fastdit.training.sources import Source, first_of, only_captions, open_source

Progress = Callable[[str, int, int], None]  # "files", "latents" or "captions"; how many are done, of how many


class Samples:
    """Latents and conditions by number. All samples have the same shape, `latent_shape`, as the transformer takes it.

    `captions` or `labels` are what the samples show, whichever the model is told; the other is None.
    """

    def __init__(
        self, source: Source, size: Size, conditions: Conditions, pipe: Any, told: list[Any], latents: CachedRows,
        rows: CachedRows, distinct: list[Any], text_drop: float, guidance: float,
    ) -> None:  # fmt: skip
        self._source, self._size, self._conditions = source, size, conditions
        self._transformer, self._guidance, self._text_drop = transformer_of(pipe), guidance, text_drop
        self._latents, self._rows = latents, rows
        places = {value: place for place, value in enumerate(distinct)}
        self._places, self._nothing = [places[value] for value in told], len(distinct) - 1
        self.captions: list[str] | None = told if conditions.told == "captions" else None
        self.labels: list[int] | None = told if conditions.told == "labels" else None
        scale = vae_scale(pipe)
        self.geometry = Geometry((size.height, size.width), (size.height // scale, size.width // scale))
        self.latent_shape = tuple(latents[[0]]["latents"].shape[1:])

    def __len__(self) -> int:
        return len(self._places)

    def batch(
        self,
        indices: Sequence[int],
        generator: torch.Generator | None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> dict[str, Any]:
        """{"latents": (B, ...) float32, "conditions": {transformer argument: value}} on a device, these in a dtype.

        Of a share `text_drop` of the samples, drawn with the CPU generator, the conditions tell nothing; without a
        generator all are told.
        """
        latents = self._latents[indices]["latents"]
        conditions = self.conditions(indices, generator, device=device, dtype=dtype)
        return {"latents": latents.to(device or "cpu"), "conditions": conditions}

    def conditions(
        self,
        indices: Sequence[int],
        generator: torch.Generator | None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> dict[str, Any]:
        """The conditions of `batch` alone, with a draw of their own."""
        places = [self._places[index] for index in indices]
        if generator is not None:
            dropped = torch.rand(len(places), generator=generator) < self._text_drop
            places = [self._nothing if drop else place for place, drop in zip(places, dropped.tolist(), strict=True)]
        arguments = self._conditions.arguments(self._transformer, self._rows[places], self.geometry, self._guidance)
        return _moved(arguments, device, dtype)

    def ready(self, transformer: nn.Module, ledger: PatchLedger) -> None:
        """Keep a transformer that is trained on these samples from dropping classes itself."""
        self._conditions.ready(transformer, ledger)

    @property
    def reference(self) -> np.ndarray | None:
        """The pictures (n, H, W, 3) uint8 as they were encoded, read anew; None of videos."""
        if self._conditions.video:
            return None
        found = np.stack([_pixels(self._source, number, self._size) for number in range(len(self))])
        self._source.forget()
        return found


def _moved(value: Any, device: Any, dtype: torch.dtype | None) -> Any:
    """Tensors, in dicts too, on a device; those of real numbers in a dtype."""
    if isinstance(value, dict):
        return {name: _moved(inner, device, dtype) for name, inner in value.items()}
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(device or "cpu", dtype if value.is_floating_point() else None)


def open_samples(
    pipe: Any,
    data: Path,
    cache: Path,
    *,
    text_drop: float = 0.1,
    progress: Progress = lambda what, done, total: None,
    only: Path | None = None,
    size: int | tuple[int, int] | None = None,
    frames: int | None = None,
    guidance: float = 1.0,
    skip_unreadable: bool = False,
    batch: int = 8,
) -> Samples:
    """Open pictures or videos with captions or classes for a pipeline; what `cache` does not hold is encoded now.

    `data` is a folder (captions in metadata.jsonl, in a .txt beside each file, or the names of sub-folders, which are
    also the classes) or an npz (x, and c or y). `only` is a file of captions, one a line: these samples alone, in that
    order. `size` is a side or (height, width) in pixels, by default that of an npz as it is or else the model's own;
    pictures are resized to cover it and cropped at the centre. Of videos the first `frames` frames are taken.
    `guidance` is what models with embedded guidance are shown: 1 is data as they are. ValueError, one line, for data
    that cannot be used, before anything is encoded; files that cannot be read are counted, or left out with
    `skip_unreadable`.
    """
    transformer = transformer_of(pipe)
    family = family_of(transformer)
    conditions = conditions_of(family)
    for name in ("vae", *conditions.models):
        part(pipe, name)
    check_channels(pipe, conditions)
    if not 0 <= text_drop <= 1:
        raise ValueError(f"--text-drop must lie between 0 and 1, got {text_drop:g}")
    source = open_source(data, conditions.video)
    if only is not None:
        if conditions.told != "captions":
            raise ValueError(f"--only: {family.title} is told classes and no captions; choose folders or rows instead")
        source = only_captions(source, only)
    told = source.told(conditions.told)
    _check_labels(conditions, pipe, told, source)
    shape = size_of(pipe, conditions, source, size, frames)
    vae = pipe.vae
    key = key_of(family.name, source.stats, source.names, shape.to_list(), fingerprint(vae))
    folder = Path(cache) / f"latents-{key}"
    kept = _readable(source, shape, folder, skip_unreadable, progress)
    source, told = source.take(kept), [told[number] for number in kept]

    @torch.no_grad()
    def encode(numbers: range) -> Rows:
        pixels = torch.from_numpy(np.stack([_pixels(source, number, shape) for number in numbers]))
        pixels = pixels.movedim(-1, 1).float() / 127.5 - 1  # (B, 3, [F,] H, W)
        return {"latents": conditions.packed(conditions.latents(vae, pixels)).cpu()}

    latents = cached_rows(folder, len(source), batch, encode, lambda done, total: progress("latents", done, total))
    source.forget()
    distinct = [*dict.fromkeys(told), conditions.nothing(pipe)]
    rows = _told_rows(pipe, conditions, distinct, Path(cache), batch, progress)
    return Samples(source, shape, conditions, pipe, told, latents, rows, distinct, text_drop, guidance)


def _told_rows(
    pipe: Any, conditions: Conditions, distinct: list[Any], cache: Path, batch: int, progress: Progress
) -> CachedRows:
    """A row for each distinct caption or class, encoded as a call of the pipeline encodes it."""
    models = [fingerprint(model) for name, model in sorted(pipe.components.items()) if name.startswith(("text", "tok"))]
    how = call_arguments(pipe, "clean_caption", "max_sequence_length", "prompt_template")

    @torch.no_grad()
    def encode(numbers: range) -> Rows:
        rows = conditions.encode(pipe, [distinct[number] for number in numbers])
        return {name: values.cpu() for name, values in rows.items()}

    folder = cache / f"{conditions.told}-{key_of(conditions.family, distinct, models, how)}"
    return cached_rows(folder, len(distinct), batch, encode, lambda done, total: progress("captions", done, total))


def _pixels(source: Source, number: int, size: Size) -> np.ndarray:
    """A sample as uint8 (H, W, 3) or (F, H, W, 3) of the run's size; ValueError if it cannot be."""
    pixels = source.read(number, size.frames)
    if size.frames is not None and len(pixels) < size.frames:
        raise ValueError(f"{source.names[number]} has {len(pixels)} frames, and {size.frames} are wanted")
    return fitted(pixels, size.height, size.width)


def _readable(source: Source, size: Size, folder: Path, skip: bool, progress: Progress) -> list[int]:
    """Numbers of the samples that can be used, one ValueError for all others; a file is looked at but once."""
    if source.shape is not None:
        return list(range(len(source)))
    file = folder / "unreadable.json"
    failed: dict[str, str] = read_json(file) if file.is_file() else _failures(source, size, progress)
    if failed:
        count = f"{len(failed)} of {len(source)} files in {source.path} cannot be used{first_of(list(failed))}"
        reason = next(iter(failed.values()))
        if not skip or len(failed) == len(source):
            mend = "mend or remove them" if skip else "mend or remove them, or leave them out with --skip-unreadable"
            raise ValueError(f"--data: {count}; {mend}. The first: {reason}")
        warnings.warn(f"{count}: left out. The first: {reason}", stacklevel=3)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, failed)
    return [number for number, name in enumerate(source.names) if name not in failed]


def _failures(source: Source, size: Size, progress: Progress) -> dict[str, str]:
    """Names of samples that cannot be used, and why."""
    failed = {}
    for number, name in enumerate(source.names):
        progress("files", number, len(source))
        try:
            _pixels(source, number, size)
        except ValueError as error:
            failed[name] = " ".join(str(error).split())
    progress("files", len(source), len(source))
    return failed


def _check_labels(conditions: Conditions, pipe: Any, told: list[Any], source: Source) -> None:
    """ValueError for a class that the model does not have."""
    if conditions.told != "labels":
        return
    classes = conditions.nothing(pipe)
    wrong = [name for name, label in zip(source.names, told, strict=True) if not 0 <= label < classes]
    if wrong:
        raise ValueError(
            f"--data: {len(wrong)} of {len(source)} samples in {source.path} have a class outside of 0 to {classes - 1}"
            f"{first_of(wrong)}, which this model does not have"
        )
