"""What the tests of BlockStreaming share: saved tiny pipelines, their smallest budgets, threads and open files."""

import os
import re
import threading
from pathlib import Path
from typing import NamedTuple

from helpers import BY_NAME

from fastdit import BlockStreaming, FastDiTPipeline


class SmallestBudgets(NamedTuple):
    """The least that works, and the least that reads while it computes, in bytes."""

    least: int
    prefetching: int


def saved(name: str, folder: Path, **how: object) -> Path:
    """A tiny pipeline in a folder."""
    BY_NAME[name].make().save_pretrained(folder, **how)
    return folder


def smallest_budgets(folder: Path, **kwargs: object) -> SmallestBudgets:
    """What the error of a budget that is too small says."""
    try:
        FastDiTPipeline.from_pretrained(folder, methods=[BlockStreaming(1)], **kwargs)
    except ValueError as error:
        least, prefetching = re.findall(r"(\d+)KiB", str(error))
        return SmallestBudgets(int(least) * 1024, int(prefetching) * 1024)
    raise AssertionError("one byte held a model")


def streaming_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("fastdit")]


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))
