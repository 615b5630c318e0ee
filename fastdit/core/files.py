"""Files and folders appear whole or not at all: written under a temporary name, on the disk, then renamed."""

import json
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_whole(path: Path, write: Callable[[Path], Any]) -> Path:
    """Let `write(temporary)` write a file beside `path` (same suffix), then rename it; OSError names `path`."""
    # short, as a name may be as long as allowed already; random, as other machines may write into this folder
    temporary = path.with_name(f".{secrets.token_hex(6)}{path.suffix}")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OSError(f"{path} could not be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_folder(path: Path, write: Callable[[Path], Any]) -> Path:
    """Let `write(temporary)` fill a folder beside `path`, then put it in the place of `path`; OSError names `path`.

    What was there before is removed once the new folder is in place, and stays as it was if anything fails.
    """
    target = path.resolve()  # behind a link, so that the link stays
    temporary = target.with_name(f".{secrets.token_hex(6)}")
    old = temporary.with_name(temporary.name + ".old")
    try:
        if target.exists() and not target.is_dir():
            raise NotADirectoryError("a file of that name is there")
        temporary.mkdir(parents=True)
        write(temporary)
        for file in filter(Path.is_file, temporary.rglob("*")):
            with open(file, "rb+") as opened:
                os.fsync(opened.fileno())
        if target.exists():
            target.rename(old)
        temporary.rename(target)
    except BaseException as error:
        if old.exists() and not target.exists():
            old.rename(target)
        if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":  # its own word for a full disk
            raise OSError(f"{path} could not be written: {error}") from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
    return path


def write_json(path: Path, data: Any) -> Path:
    """Write data as readable JSON, whole; a number that is not finite is refused, as JSON has none."""
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)
    return write_whole(path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))


def read_json(path: Path) -> Any:
    """Read a JSON file; ValueError names the file if it is absent or torn."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no JSON file that can be read: {error}") from error
