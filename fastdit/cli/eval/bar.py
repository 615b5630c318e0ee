"""A progress bar on stderr, so that stdout holds the result alone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bar(text: str) -> Iterator[Callable[[int, int], None]]:
    """Gives `progress(done, total)` (0 if unknown), whose first call shows the bar; it disappears at the end."""
    from rich.console import Console
    from rich.progress import Progress

    shown = Progress(console=Console(stderr=True), transient=True)
    task = shown.add_task(text, total=None)

    def progress(done: int, total: int) -> None:
        if not shown.live.is_started:  # bad input is found before, and leaves one line alone
            shown.start()
        shown.update(task, completed=done, total=total or None)

    try:
        yield progress
    finally:
        if shown.live.is_started:
            shown.stop()
