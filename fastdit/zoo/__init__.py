"""The zoo: small models inside the package, in diffusers format, and adapters for them, named `fastdit/...`."""

from pathlib import Path

ADAPTER = "fastdit_adapter.json"  # the file that makes a folder an adapter
_HERE = Path(__file__).parent


def names() -> list[str]:
    """Names of the bundled models."""
    return _holding("model_index.json")


def adapters() -> list[str]:
    """Names of the bundled adapters of trained methods."""
    return _holding(ADAPTER)


def folder_of(name: str) -> Path:
    """The folder of a bundled model; ValueError lists the known ones."""
    if name not in names():
        if name in adapters():
            raise ValueError(f"{name} is an adapter and no model: give it to its method, as checkpoint={name}")
        raise ValueError(f"unknown bundled model {name!r}; known: {', '.join(names())}")
    return _folder(name)


def adapter_folder(name: str) -> Path:
    """The folder of a bundled adapter; ValueError lists the known ones."""
    if name not in adapters():
        raise ValueError(f"unknown bundled adapter {name!r}; known: {', '.join(adapters()) or 'none'}")
    return _folder(name)


def name_of(folder: Path) -> str | None:
    """The name of a bundled model or adapter by its folder, None for any other folder."""
    return _name(folder) if folder.parent == _HERE else None


def _holding(file: str) -> list[str]:
    return [_name(path) for path in sorted(_HERE.iterdir()) if (path / file).is_file()]


def _name(folder: Path) -> str:
    return f"fastdit/{folder.name.replace('_', '-')}"


def _folder(name: str) -> Path:
    return _HERE / name.removeprefix("fastdit/").replace("-", "_")


def prompts(name: str) -> list[str]:
    """The captions that a bundled model was trained on."""
    return (folder_of(name) / "prompts.txt").read_text(encoding="utf-8").split("\n")[:-1]


def reference(name: str) -> Path:
    """The pictures that a bundled model was trained on, as ADM npz, in the order of its prompts; ValueError if none."""
    path = folder_of(name) / "reference.npz"
    if not path.is_file():
        raise ValueError(f"{name} has no reference pictures: give a folder, an npz or statistics")
    return path
