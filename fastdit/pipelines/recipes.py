"""Recipes: a list of methods and call defaults as a human-readable, versioned JSON file."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastdit.core.files import write_json
from fastdit.methods.base import Method

VERSION = 1
SHIPPED = Path(__file__).with_name("shipped")  # settings of papers, not measured by us, and our own
BESIDE_MODEL = "fastdit.json"  # the recipe that ships in a model's folder


@dataclass(frozen=True)
class Recipe:
    """Methods, defaults for the pipeline's call, and a note for people."""

    methods: tuple[Method, ...]
    call: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "fastdit_recipe": VERSION,
            "note": self.note,
            "methods": [method.to_dict() for method in self.methods],
            "call": self.call,
        }

    @classmethod
    def from_dict(cls, data: Any, where: str = "recipe", folder: Path | None = None) -> "Recipe":
        """The recipe of parsed JSON, of a file in `folder`; ValueError names the file, the field and the mend."""
        if not isinstance(data, dict) or "fastdit_recipe" not in data:
            raise ValueError(f"{where} is not a fastdit recipe: it needs the key 'fastdit_recipe' with its version")
        if not isinstance(data["fastdit_recipe"], int) or not 1 <= data["fastdit_recipe"] <= VERSION:
            raise ValueError(
                f"{where} has version {data['fastdit_recipe']}, this fastdit reads up to {VERSION}: update fastdit"
            )
        if unknown := set(data) - {"fastdit_recipe", "note", "methods", "call"}:
            raise ValueError(f"{where} has unknown keys {sorted(unknown)}; known: note, methods, call")
        if not isinstance(data.get("methods"), list) or not isinstance(data.get("call", {}), dict):
            raise ValueError(f"{where}: 'methods' must be a list and 'call' an object")
        try:
            methods = tuple(Method.from_dict(entry, folder) for entry in data["methods"])
        except (ValueError, TypeError) as error:
            raise ValueError(f"{where}: {error}") from None
        return cls(methods, data.get("call", {}), str(data.get("note", "")))

    @classmethod
    def load(cls, path: str | Path) -> "Recipe":
        path = Path(path)
        if not path.is_file():
            named = SHIPPED / f"{path}.json"
            if not named.is_file():
                raise ValueError(
                    f"recipe {path} does not exist: give the path of a JSON file, or one of {', '.join(shipped())}"
                )
            path = named
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"recipe {path} is not valid JSON: {error}") from None
        return cls.from_dict(data, f"recipe {path}", path.parent)

    def save(self, path: str | Path) -> None:
        """Write the file whole or not at all."""
        write_json(Path(path), self.to_dict())


def shipped() -> list[str]:
    """Names of the recipes that ship with fastdit."""
    return sorted(path.stem for path in SHIPPED.glob("*.json"))


def as_recipe(methods: Sequence[Method] | str | Path | Recipe | None) -> Recipe:
    """What users may give as `methods`: a list, a recipe, its path or published name, or None for nothing."""
    if isinstance(methods, Recipe):
        return methods
    if isinstance(methods, (str, Path)):
        return Recipe.load(methods)
    if isinstance(methods, Method):
        return Recipe((methods,))
    return Recipe(tuple(methods or ()))
