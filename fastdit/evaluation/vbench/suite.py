"""VBench's prompts, read from the user's own copy of VBench_full_info.json; the package itself is never imported."""

import importlib.util
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdit.core.files import read_json
from fastdit.evaluation.vbench.dimensions import DIMENSIONS, FLICKERING, FLICKERING_SAMPLES, SAMPLES

FILE, VARIABLE = "VBench_full_info.json", "VBENCH_FULL_INFO_JSON"


@dataclass(frozen=True)
class Prompt:
    """A prompt, which names its videos; the text they are made from (itself, or an extended one); its dimensions."""

    prompt: str
    text: str
    dimensions: tuple[str, ...]

    def samples(self, dimensions: Iterable[str], each: int = SAMPLES, flickering: int | None = None) -> int:
        """How many videos the dimensions want of it: `each`, and for temporal flickering five times as many."""
        if FLICKERING in self.dimensions and FLICKERING in dimensions:
            return each * FLICKERING_SAMPLES // SAMPLES if flickering is None else flickering
        return each


@dataclass(frozen=True)
class PromptSuite:
    """Distinct prompts in the file's order; one that stands there twice has the dimensions of both."""

    path: Path
    prompts: tuple[Prompt, ...]

    @staticmethod
    def find(
        path: str | Path | None = None, of_python: Path | None = None, extended: Path | None = None
    ) -> "PromptSuite":
        """Read the suite of `path`, $VBENCH_FULL_INFO_JSON, another interpreter's vbench, or the one installed here."""
        given = path or os.environ.get(VARIABLE) or of_python or installed()
        if given is None:
            raise ValueError(
                f"VBench's prompts were not found: give --prompts {FILE} (it is in the vbench wheel and in its "
                f"repository), set {VARIABLE}, or name an interpreter that has vbench with --python"
            )
        return PromptSuite.read(Path(given), extended)

    @staticmethod
    def read(path: Path, extended: Path | None = None) -> "PromptSuite":
        """Read and check a file in VBench's schema; ValueError names the entry and what is wrong with it."""
        entries = read_json(path)
        if not isinstance(entries, list) or not entries:
            raise ValueError(f"{path} is no VBench prompt file: a list of prompts is expected, as in {FILE}")
        for number, entry in enumerate(entries, 1):
            if wrong := _wrong(entry):
                raise ValueError(f"{path}, entry {number}: {wrong}")
        texts = _extended(extended, [entry["prompt_en"] for entry in entries]) if extended else None
        found: dict[str, Prompt] = {}
        for number, entry in enumerate(entries):
            name = entry["prompt_en"]
            known = found.get(name, Prompt(name, texts[number] if texts else name, ()))
            found[name] = Prompt(name, known.text, tuple(dict.fromkeys((*known.dimensions, *entry["dimension"]))))
        return PromptSuite(path, tuple(found.values()))

    def of(self, dimensions: Iterable[str]) -> list[Prompt]:
        """The prompts of any of the dimensions; ValueError for a dimension without prompts."""
        wanted = set(dimensions)
        found = [prompt for prompt in self.prompts if wanted & set(prompt.dimensions)]
        if empty := wanted - {name for prompt in found for name in prompt.dimensions}:
            raise ValueError(f"{self.path} has no prompts for {', '.join(sorted(empty))}")
        return found

    @property
    def dimensions(self) -> list[str]:
        """The dimensions that have prompts, in VBench's order."""
        there = {name for prompt in self.prompts for name in prompt.dimensions}
        return [name for name in DIMENSIONS if name in there]


def installed() -> Path | None:
    """The prompt file of the vbench that is installed here, found without importing it; None if there is none."""
    try:
        spec = importlib.util.find_spec("vbench")
    except (ImportError, ValueError):
        return None
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder) / FILE).is_file():
            return path
    return None


def _wrong(entry: Any) -> str | None:
    """What is wrong with an entry of the file, or None."""
    if not isinstance(entry, dict):
        return f"an object with prompt_en and dimension is expected, got {type(entry).__name__}"
    prompt, dimensions = entry.get("prompt_en"), entry.get("dimension")
    if not isinstance(prompt, str) or not prompt.strip():
        return "prompt_en must be a text"
    if not isinstance(dimensions, list) or not dimensions:
        return "dimension must be a list of dimension names"
    if unknown := [name for name in dimensions if name not in DIMENSIONS]:
        return f"VBench has no dimension {unknown[0]!r} (VBench-I2V and VBench-2.0 are other benchmarks)"
    auxiliary = entry.get("auxiliary_info", {})
    for name in dimensions:  # VBench stops with "exceptions must derive from BaseException" where this is missing
        if DIMENSIONS[name].auxiliary and not (isinstance(auxiliary, dict) and isinstance(auxiliary.get(name), dict)):
            return f"{name} needs auxiliary_info.{name}, which says what to look for in the video"
    return None


def _extended(path: Path, prompts: list[str]) -> list[str]:
    """The long texts in the order of the file's entries: one a line, or a JSON object of prompt: text."""
    if path.suffix.lower() == ".json":
        texts = read_json(path)
        if not isinstance(texts, dict) or not all(isinstance(text, str) and text.strip() for text in texts.values()):
            raise ValueError(f"{path}: an object of prompt: extended text is expected")
        if missing := [prompt for prompt in dict.fromkeys(prompts) if prompt not in texts]:
            raise ValueError(f"{path} has no text for {len(missing)} prompts, the first is {missing[0]!r}")
        return [texts[prompt] for prompt in prompts]
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines would also cut at a text's own odd separators
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"extended prompts {path} cannot be read: {error}") from error
    lines = [line.strip() for line in (lines[:-1] if lines[-1] == "" else lines)]
    if len(lines) != len(prompts):
        raise ValueError(f"{path} has {len(lines)} lines and the suite {len(prompts)} prompts: line i extends prompt i")
    if "" in lines:
        raise ValueError(f"{path}, line {lines.index('') + 1} is empty")
    return lines
