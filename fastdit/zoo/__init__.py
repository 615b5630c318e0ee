"""The zoo: small models inside the package, in diffusers format, named `fastdit/...`."""

from pathlib import Path

_HERE = Path(__file__).parent


def names() -> list[str]:
    """Names of the bundled models."""
    folders = [path for path in sorted(_HERE.iterdir()) if (path / "model_index.json").is_file()]
    return [f"fastdit/{path.name.replace('_', '-')}" for path in folders]


def folder_of(name: str) -> Path:
    """The folder of a bundled model; ValueError lists the known ones."""
    if name not in names():
        raise ValueError(f"unknown bundled model {name!r}; known: {', '.join(names())}")
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
