"""Running independent pieces of CPU work side by side, each on one thread.

PyTorch's own threads meet after every operation. For thousands of short operations that costs, and on a machine that
has other things to do it costs a multiple, because all wait for the thread that lost its core.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

Space = TypeVar("Space")


def run(tasks: Iterable[Callable[[Space], None]], prepare: Callable[[], Space], threads: int) -> None:
    """Call every task; with more than one thread in any order, several at once, each with PyTorch on one thread.

    A task is handed what `prepare` has made for its thread: room for intermediate results, used again and again. The
    first exception ends the run and is raised here; an interrupt lets the tasks at work finish. A task must not call
    this function: it would wait for the thread that it holds.
    """
    if threads == 1:
        space = prepare()
        for task in tasks:
            task(space)
        return
    source, lock, stop = iter(tasks), threading.Lock(), threading.Event()
    inference = torch.is_inference_mode_enabled()

    def work() -> None:
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

    futures = _POOL.submit(work, threads)
    try:
        for future in futures:
            future.result()
    finally:
        stop.set()
        for future in futures:
            future.cancel()  # those that another caller has kept from beginning
        wait(futures)


class _Pool:
    """Threads that live as long as the process, each with PyTorch on one thread; as many as were ever asked for."""

    def __init__(self) -> None:
        self._forget()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)  # threads do not live on in a forked process

    def _forget(self) -> None:
        self._lock, self._size = threading.Lock(), 0
        self._threads: ThreadPoolExecutor | None = None

    def submit(self, work: Callable[[], None], count: int) -> list[Future[None]]:
        """Start `work` on `count` threads."""
        with self._lock:
            if self._threads is None or self._size < count:
                with ThreadPoolExecutor(1) as fresh:
                    larger = fresh.submit(_start, count).result()
                if self._threads:
                    self._threads.shutdown(wait=False)  # it finishes what it has
                self._threads, self._size = larger, count
            return [self._threads.submit(work) for _ in range(count)]


def _start(count: int) -> ThreadPoolExecutor:
    """`count` threads with PyTorch on one thread; to be called in a thread that has not used PyTorch yet.

    torch.set_num_threads also sets what every thread begins with that uses PyTorch for the first time later. That
    number can be read and put back only in such a thread, and is put back before there is any work.
    """
    usual = torch.get_num_threads()
    pool, together = ThreadPoolExecutor(count, "fastdit"), threading.Barrier(count)

    def settle() -> None:
        torch.get_num_threads()  # the first use takes the usual number over, which must not happen after the next line
        torch.set_num_threads(1)
        together.wait()  # so that each thread gets one of these calls

    try:
        for future in [pool.submit(settle) for _ in range(count)]:
            future.result()
    except BaseException:
        together.abort()
        pool.shutdown(wait=False)
        raise
    finally:
        torch.set_num_threads(usual)
    return pool


_POOL = _Pool()
