"""Adapters are written whole or not at all, and pushed to the Hub."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastdit.core.files import write_folder
from fastdit.methods.adapter.base import describe_base
from fastdit.methods.adapter.card import model_card
from fastdit.methods.adapter.folder import CARD, FILE, FILES, HOST, KINDS, LORA, OWN, Adapter, first_line, read_adapter
from fastdit.methods.adapter.host_weights import check_in_memory

_OF_GIT = (".git", ".gitattributes", ".cache")  # what may lie in a copy from the Hub besides


def check_replaceable(folder: str | Path, known: Mapping[str, Any] | tuple[str, ...] = FILES) -> None:
    """ValueError for a folder that holds anything but an adapter, as writing one would remove it."""
    folder = Path(folder)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file: give a folder for the adapter")
    names = sorted(path.name for path in folder.iterdir())
    foreign = [name for name in names if name not in known and name not in _OF_GIT]
    if foreign or (names and FILE not in names):
        raise ValueError(f"{folder} is no adapter's folder (it holds {(foreign or names)[0]}): give a new or empty one")


def write_adapter(
    folder: str | Path,
    *,
    method: str,
    kind: str,
    structure: dict[str, Any],
    transformer: nn.Module,
    own_state: Mapping[str, Tensor],
    lora_state: Mapping[str, Tensor] | None = None,
    time_frequency_shift: int | None = None,
    training: dict[str, Any] | None = None,
    base: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> Path:
    """Write an adapter, whole or not at all; one that is in the folder already is replaced.

    `dtype` is that of the whole transformer (kind "full"); the method's parameters and low-rank factors are kept in
    float32, since a gate near its threshold flips when rounded. `base` is `describe_base(transformer)` from before a
    training that changed the weights themselves.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if (kind == "lora") != bool(lora_state):
        raise ValueError(f"lora_state must be given for the kind lora, and for no other; the kind is {kind}")
    check_replaceable(folder)
    transformer = getattr(transformer, "_orig_mod", transformer)
    tensors = {OWN: (own_state, torch.float32)}
    if lora_state:
        tensors[LORA] = (lora_state, torch.float32)
    if kind == "full":
        check_in_memory(transformer, "the whole transformer cannot be written")
        tensors[HOST] = (transformer.state_dict(), dtype)
    adapter = Adapter(
        Path(folder).resolve(),
        method,
        kind,
        structure,
        base or describe_base(transformer),
        time_frequency_shift,
        training or {},
    )

    def write(temporary: Path) -> None:
        from safetensors.torch import save_file

        for name, (state, as_dtype) in tensors.items():
            save_file({key: _plain(value, as_dtype) for key, value in state.items()}, temporary / name)
        write_texts(adapter, temporary)

    return write_folder(Path(folder), write)


def write_texts(adapter: Adapter, folder: Path, merged: bool = False) -> None:
    """The adapter's JSON file and model card, into a folder that nobody reads yet."""
    text = json.dumps(adapter.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")
    (folder / CARD).write_text(model_card(adapter, merged), encoding="utf-8")


def push_adapter(folder: str | Path, repo_id: str, private: bool = False, token: str | None = None) -> str:
    """Upload an adapter (or a merged pipeline) to the Hub, where its id is then a checkpoint; returns the address."""
    import huggingface_hub

    read_adapter(folder)
    try:
        address = huggingface_hub.create_repo(repo_id, private=private, exist_ok=True, token=token)
        huggingface_hub.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message="Upload with fastdit", token=token
        )
    except Exception as error:  # the client's errors have no class in common
        raise ValueError(f"{folder} could not be pushed to {repo_id}: {first_line(error)}") from error
    return str(address)


def _plain(value: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy on the CPU that shares memory with no other tensor; floating-point values in `dtype`."""
    value = value.detach()
    return value.to("cpu", dtype if value.is_floating_point() else value.dtype, copy=True).contiguous()
