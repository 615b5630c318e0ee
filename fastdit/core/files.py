"""Files appear whole or not at all: written under a temporary name, on the disk, then renamed."""

import json
import os
import secrets
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
