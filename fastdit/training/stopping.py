"""Kill and Ctrl-C: finish the step, save, and only then stop."""

import signal
import threading
from types import FrameType
from typing import Any


class Stopping:
    """Within, SIGTERM and SIGINT only set `signal`; the second one has its usual effect."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stopping":
        if threading.current_thread() is threading.main_thread():  # only there Python lets signals be caught
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._give_back()

    def _give_back(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def __exit__(self, *error: Any) -> None:
        self._give_back()
