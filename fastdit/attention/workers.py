"""Running independent pieces of CPU work side by side, each on one thread.

PyTorch's own threads meet after every operation. For thousands of short operations that costs, and on a machine that
has other things to do it costs a multiple, because all wait for the thread that lost its core.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Space = TypeVar("Space")


def run(tasks: Iterable[Callable[[Space], None]], prepare: Callable[[], Space], threads: int) -> None:
    """Call every task; with more than one thread in any order, several at once, each with PyTorch on one thread.

    A task is handed what `prepare` has made for its thread: room for intermediate results, used again and again. The
    first exception ends the run and is raised here; an interrupt lets the tasks at work finish.
    """
    if threads == 1:
        space = prepare()
        for task in tasks:
            task(space)
        return
    source, lock, stop = iter(tasks), threading.Lock(), threading.Event()
    inference = torch.is_inference_mode_enabled()

    def work() -> None:
        torch.set_num_threads(1)  # of this thread, and what threads start with that are yet to come
        try:
            with torch.inference_mode(inference), torch.no_grad():
                space = prepare()
                while not stop.is_set():
                    with lock:
                        task = next(source, None)
                    if task is None:
                        return
                    task(space)
        except BaseException:
            stop.set()
            raise

    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, "fastdit") as pool:
            futures = [pool.submit(work) for _ in range(threads)]
            try:
                for future in futures:
                    future.result()
            finally:
                stop.set()
    finally:
        torch.set_num_threads(before)  # for threads that are yet to come
