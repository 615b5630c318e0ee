"""An adapter's folder, found and read: safetensors files and one JSON file that says what they are."""

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from fastdit.core.files import read_json
from fastdit.zoo import ADAPTER as FILE
from fastdit.zoo import adapter_folder, adapters

VERSION = 1
KINDS = ("routers", "lora", "full")
OWN, LORA, HOST = "method.safetensors", "lora.safetensors", "transformer.safetensors"
CARD = "README.md"
FILES = (FILE, OWN, LORA, HOST, CARD)


@dataclass(frozen=True)
class Adapter:
    """An adapter's folder; tensors are read when asked for.

    `structure` is what its method builds its module from. `base` is the transformer that it was made for: its class,
    the `config` that shapes depend on, the `hash` of its weights and its `source`. `time_frequency_shift` is set where
    the weights count on other frequencies of the timestep's embedding than the host's. `training` is for people.
    """

    folder: Path
    method: str
    kind: str
    structure: dict[str, Any]
    base: dict[str, Any]
    time_frequency_shift: int | None = None
    training: dict[str, Any] = field(default_factory=dict)

    def own_state(self) -> dict[str, Tensor]:
        """The method's own parameters."""
        return self._tensors(OWN)

    def lora_state(self) -> dict[str, Tensor]:
        """Low-rank factors of the host's linear layers (see `fastdit.methods.lora`); none unless of the kind "lora"."""
        return self._tensors(LORA) if self.kind == "lora" else {}

    def host_state(self) -> dict[str, Tensor]:
        """The whole transformer; none unless of the kind "full"."""
        return self._tensors(HOST) if self.kind == "full" else {}

    def host_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of `host_state()`, from the file's header."""
        from safetensors import safe_open

        try:
            with safe_open(self.folder / HOST, "pt") as file:
                return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except Exception as error:
            raise self._damaged(HOST, error) from error

    def to_dict(self) -> dict[str, Any]:
        """What stands in the JSON file."""
        names = ("method", "kind", "structure", "base", "time_frequency_shift", "training")
        return {"fastdit_adapter": VERSION, **{name: getattr(self, name) for name in names}}

    def _tensors(self, name: str) -> dict[str, Tensor]:
        from safetensors.torch import load_file

        try:
            return load_file(self.folder / name)
        except Exception as error:  # safetensors has an error class of its own
            raise self._damaged(name, error) from error

    def _damaged(self, name: str, error: Exception) -> ValueError:
        return ValueError(f"adapter {self.folder}: {name} is missing or damaged ({first_line(error)}): fetch it again")


def locate_adapter(checkpoint: str | Path) -> Path:
    """The folder of an adapter: a folder itself, a bundled `fastdit/...` name, or a Hub id, which is fetched."""
    text = str(checkpoint)
    path = Path(text).expanduser()
    if path.is_dir():
        return path
    if text.startswith("fastdit/"):
        return adapter_folder(text)
    if text.startswith((".", "/", "~")) or text.count("/") != 1:
        known = "".join(f", or one of {', '.join(names)}" for names in [adapters()] if names)
        raise ValueError(f"adapter {text} does not exist: give a folder, a Hub id (owner/name){known}")
    try:
        return _fetched(text)
    except Exception as error:  # the client's errors have no class in common
        raise ValueError(
            f"adapter {text} is no folder here and cannot be fetched from the Hub: {first_line(error)}"
        ) from error


@functools.cache  # a method is bound anew each time that it is attached; the Hub is asked once
def _fetched(repo_id: str) -> Path:
    import huggingface_hub

    return Path(huggingface_hub.snapshot_download(repo_id, allow_patterns=list(FILES)))


def read_adapter(checkpoint: str | Path) -> Adapter:
    """The adapter of a folder, bundled name or Hub id; ValueError where there is none, or none that can be read."""
    folder = locate_adapter(checkpoint)
    where = f"adapter {checkpoint}"
    if not (folder / FILE).is_file():
        raise ValueError(f"{where} is no adapter: it has no {FILE}, which `fastdit train` and `fastdit convert` write")
    data = read_json(folder / FILE)
    version = data.get("fastdit_adapter") if isinstance(data, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ValueError(f"{where}: {FILE} must be an object with the key 'fastdit_adapter', a version")
    if version > VERSION:
        raise ValueError(f"{where} is of version {version}, this fastdit reads up to {VERSION}: update fastdit")
    given = {"time_frequency_shift": None, "training": {}, **data}
    if given.get("kind") not in KINDS:
        raise ValueError(f"{where}: kind must be one of {', '.join(KINDS)}, got {given.get('kind')!r}")
    types = {"method": str, "structure": dict, "base": dict, "training": dict, "time_frequency_shift": int | None}
    for name, kind in types.items():
        if not isinstance(given.get(name), kind):
            raise ValueError(f"{where}: {name} in {FILE} is missing or of the wrong kind, got {given.get(name)!r}")
    if not isinstance(given["base"].get("class"), str) or not isinstance(given["base"].get("config"), dict):
        raise ValueError(f"{where}: base in {FILE} must name the class and config of a transformer")
    return Adapter(folder, kind=given["kind"], **{name: given[name] for name in types})


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return str(error).strip().split("\n")[0]
