"""Writing pictures and videos whole or not at all, and printing reports."""

import os
import shutil
from pathlib import Path
from typing import Any

PICTURES, VIDEOS = (".png", ".jpg", ".jpeg", ".webp"), (".mp4", ".gif")


def check_output(path: Path, expected_bytes: int = 8 << 20) -> None:
    """Before any work: the folder exists, the file type is known, and there is room on the disk."""
    if path.suffix.lower() not in PICTURES + VIDEOS:
        raise ValueError(f"-o {path}: unknown file type {path.suffix!r}, use one of {' '.join(PICTURES + VIDEOS)}")
    folder = path.parent
    if not folder.is_dir():
        raise ValueError(f"-o {path}: folder {folder} does not exist, make it first")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"-o {path}: folder {folder} is not writable")
    free = shutil.disk_usage(folder).free
    if free < expected_bytes:
        raise ValueError(f"-o {path}: only {free >> 20} MiB free on that disk, {expected_bytes >> 20} MiB needed")


def check_kind(path: Path, videos: bool) -> None:
    """The file type fits what the model makes."""
    if path.suffix.lower() not in (VIDEOS if videos else PICTURES):
        made, fitting = ("videos", VIDEOS) if videos else ("pictures", PICTURES)
        raise ValueError(f"-o {path}: this model makes {made}, use one of {' '.join(fitting)}")


def numbered(path: Path, index: int, count: int) -> Path:
    """out.png, or out-0.png, out-1.png, ... where there are several."""
    return path if count == 1 else path.with_name(f"{path.stem}-{index}{path.suffix}")


def save_picture(image: Any, path: Path, settings: dict[str, Any]) -> None:
    """Write a PIL picture; a PNG carries its settings in the text chunk `fastdit`."""
    import numpy as np

    from fastdit.evaluation.frames import write_picture

    write_picture(path, np.asarray(image.convert("RGB")), settings)


def save_video(frames: Any, path: Path, fps: int, settings: dict[str, Any] | None = None) -> None:
    """Write frames (F, H, W, 3), floats in [0, 1], arrays or PIL pictures; an mp4 carries its settings as comment."""
    import numpy as np

    from fastdit.evaluation.frames import write_video
    from fastdit.evaluation.generate import to_uint8

    frames = np.asarray(frames)
    write_video(path, frames if frames.dtype == np.uint8 else to_uint8(frames), fps, text=settings)


def print_report(report: Any) -> None:
    """The report of a run as a table."""
    from rich.console import Console
    from rich.table import Table

    from fastdit.core.report import human

    console = Console(soft_wrap=True)
    spent = f", {report.seconds:.2f} s" if report.seconds else ""
    saved = f", {report.macs_dense / report.macs_executed:.2f}x fewer" if report.macs_executed else ""
    console.print(
        f"{report.progress}, {report.evaluations} evaluations{spent}; "
        f"{human(report.macs_executed)}MAC of {human(report.macs_dense)}MAC dense{saved}",
        highlight=False,
    )
    if report.methods:
        table = Table("method", "layers", "calls", "density", "backend")
        for name, method in report.methods.items():
            density = "" if method.density is None else f"{method.density:.3f}"
            table.add_row(name, str(method.layers or "-"), str(method.calls), density, method.backend)
        console.print(table)
        for name, method in report.methods.items():
            if note := method.reason or method.note:
                console.print(f"{name}: {note}", highlight=False)
    for text in report.warnings:
        console.print(f"[yellow]warning:[/] {text}", highlight=False)


def print_timing(timing: Any) -> None:
    """Dense against accelerated: seconds, MACs and their ratios."""
    from rich.console import Console
    from rich.table import Table

    from fastdit.core.report import human

    (dense, fast), report = timing.seconds, timing.reports[0][1]
    table = Table("", "dense", "accelerated", "ratio")
    table.add_row(f"seconds, median of {len(timing.reports)}", f"{dense:.2f}", f"{fast:.2f}", timing.ratio)
    saved = f"{report.macs_dense / report.macs_executed:.2f}x" if report.macs_executed else ""
    table.add_row("MACs, transformer", human(report.macs_dense), human(report.macs_executed), saved)
    Console().print(table)
