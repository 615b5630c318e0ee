"""Checkpoints of a run: written whole or not at all, the newest few kept, and what a run must be to go on from one."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fastdit.core.files import read_json, write_folder, write_json
from fastdit.training.options import MAY_CHANGE, flag

RUN, STATE, FOLDER = "run.json", "state.json", "checkpoints"
VERSION = 1
Tensors = Mapping[str, Mapping[str, Tensor]]  # of each file by its stem


def steps_saved(out: Path) -> list[int]:
    """The steps of the checkpoints in a run's folder, in order."""
    found = (out / FOLDER).glob("step-*") if (out / FOLDER).is_dir() else ()
    return sorted(int(path.name[5:]) for path in found if path.name[5:].isdigit() and (path / STATE).is_file())


def folder_of(out: Path, step: int) -> Path:
    return out / FOLDER / f"step-{step:07d}"


def save(out: Path, step: int, tensors: Tensors, state: Mapping[str, Any], keep: int) -> Path:
    """Write the checkpoint of a step, then remove all but the newest `keep`; OSError names the folder."""
    folder = folder_of(out, step)
    if not (folder / STATE).is_file():

        def write(temporary: Path) -> None:
            from safetensors.torch import save_file

            for name, content in tensors.items():
                plain = {key: value.detach().cpu().contiguous() for key, value in content.items()}
                if plain:
                    save_file(plain, temporary / f"{name}.safetensors")
            (temporary / STATE).write_text(json.dumps({"version": VERSION, "step": step, **state}) + "\n")

        write_folder(folder, write)
    for old in steps_saved(out)[:-keep]:
        shutil.rmtree(folder_of(out, old), ignore_errors=True)
    return folder


def load(out: Path, step: int) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """(tensors, state) of a checkpoint; ValueError names a damaged one and the mend."""
    from safetensors.torch import load_file

    folder = folder_of(out, step)
    try:
        state = read_json(folder / STATE)
        return {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}, state
    except Exception as error:  # safetensors has an error class of its own
        raise ValueError(
            f"checkpoint {folder} cannot be read ({error}): remove it to go on from an older one"
        ) from error


def begin(out: Path, run: Mapping[str, Any]) -> None:
    """Write what the run in this folder is, and remove what a killed process has left half-written."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / RUN, {"version": VERSION, **run})
    for left in (out / FOLDER).glob(".*"):
        shutil.rmtree(left, ignore_errors=True)


def check_same_run(out: Path, run: Mapping[str, Any]) -> None:
    """ValueError where the folder holds another run than this one, naming what differs.

    `run` has the entries METHOD, --model and so on by the words of the command line, and all options under "options".
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"-o {out} is a file, give a folder")
    if not (out / RUN).is_file():
        return
    found = read_json(out / RUN)
    if not isinstance(found, dict) or found.get("version") != VERSION:
        raise ValueError(f"{out / RUN} is no run of this version of fastdit: give another folder with -o")
    there, now = _flat(found), _flat(run)
    differ = [f"{name} is {there.get(name)} there and {now[name]} now" for name in now if there.get(name) != now[name]]
    if differ:
        raise ValueError(
            f"-o {out} holds another run ({'; '.join(differ)}): give its options to go on with it, or another folder"
        )


def _flat(run: Mapping[str, Any]) -> dict[str, Any]:
    options = {flag(name): value for name, value in run["options"].items() if name not in MAY_CHANGE}
    return {**{name: value for name, value in run.items() if name not in ("options", "version")}, **options}
