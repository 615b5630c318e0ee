"""File names as VBench looks for them, `{prompt}-{index}.mp4`, and safe ones where such a file cannot exist."""

import hashlib
import os
import secrets
import unicodedata
from collections.abc import Iterable
from pathlib import Path

LONGEST = 255  # bytes of a file name on the usual file systems
_ENDING = len("-24.mp4")
_FORBIDDEN = "/\\" + ('<>:"|?*' if os.name == "nt" else "")


def unsafe(prompt: str) -> str | None:
    """Why no file can carry this prompt as its name, or None; what VBench would look for cannot exist then."""
    if bad := [sign for sign in prompt if sign in _FORBIDDEN]:
        return f"it holds {bad[0]!r}"
    if any(unicodedata.category(sign) in ("Cc", "Cs") for sign in prompt):
        return "it holds a control character"
    if prompt.startswith("."):
        return "it begins with a dot"
    if len(prompt.encode()) > LONGEST - _ENDING:
        return f"it has {len(prompt.encode())} bytes, a file name at most {LONGEST}"
    return None


class Names:
    """Stems of prompts' videos: the prompt itself where it can be, else a safe one that ends in a digest.

    `other` says which prompts have such a stem and why: VBench cannot find their videos, so it is a counted warning.
    No two prompts share a name; `folds_case`: not even on a file system that takes A and a for one letter (VBench's own
    suite holds "a fantasy landscape" and "A fantasy landscape").
    """

    def __init__(self, prompts: Iterable[str], folds_case: bool = False) -> None:
        self.other: dict[str, str] = {}
        self._stems: dict[str, str] = {}
        taken: dict[str, str] = {}
        for prompt in dict.fromkeys(prompts):
            stem, reason = prompt, unsafe(prompt)
            if not reason and (first := taken.get(_key(stem, folds_case))) is not None:
                reason = f"this file system takes its name for that of {first!r}"
            if reason:
                self.other[prompt] = reason
                stem = _safe(prompt)
                while _key(stem, folds_case) in taken:  # a prompt that spells another one's safe stem
                    stem = _safe(stem + prompt)
            taken[_key(stem, folds_case)] = prompt
            self._stems[prompt] = stem

    def stem(self, prompt: str, index: int) -> str:
        """The name without `.mp4` of a prompt's video."""
        return f"{self._stems[prompt]}-{index}"

    def warnings(self, among: Iterable[str] | None = None) -> list[str]:
        """One line for all prompts (of `among`) with a name of their own, or none."""
        prompts = list(self._stems if among is None else among)
        other = [prompt for prompt in prompts if prompt in self.other]
        if not other:
            return []
        shown = other[0] if len(other[0]) <= 60 else other[0][:57] + "..."
        return [
            f"{len(other)} of {len(prompts)} prompts cannot name a file, so VBench will not find their videos; "
            f"the first is {shown!r}: {self.other[other[0]]}"
        ]


def exact(prompt: str, index: int, suffix: str = ".mp4") -> str:
    """The file name that VBench looks for (`build_full_info_json` in vbench/__init__.py)."""
    return f"{prompt}-{index}{suffix}"


def folds_case(folder: Path) -> bool:
    """Whether the file system of an existing folder takes A and a for one letter; False where it cannot be tried."""
    name = f".fastdit-{secrets.token_hex(4)}"
    try:
        (folder / name).touch()
        try:
            return (folder / name.upper()).exists()
        finally:
            (folder / name).unlink()
    except OSError:
        return False


def _key(stem: str, folds: bool) -> str:
    """Equal for two stems that may be one file: the same signs composed otherwise, and with `folds` in other case."""
    key = unicodedata.normalize("NFC", stem)
    return unicodedata.normalize("NFC", key.casefold()) if folds else key


def _safe(prompt: str) -> str:
    """What a person still recognises of the prompt, and ten hex digits of all of it."""
    odd = ("Cc", "Cs")
    kept = "".join("_" if sign in _FORBIDDEN or unicodedata.category(sign) in odd else sign for sign in prompt)
    kept = kept.lstrip(". ").encode()[:120].decode(errors="ignore")
    return f"{kept}~{hashlib.sha256(prompt.encode(errors='surrogatepass')).hexdigest()[:10]}"
