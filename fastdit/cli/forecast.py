"""Printing what streaming would take: memory by model, and seconds on this machine."""

from pathlib import Path
from typing import Any

from fastdit.cli import options as o


def print_forecast(model: str, loaded: Any, methods: Any, geometry: Any, report: Any, dtype: str) -> None:
    """Memory and seconds for the load method among the methods, if there is one."""
    loading = next((method for method in methods if method.stage == "load"), None)
    if loading is None:
        return
    from rich.console import Console
    from rich.table import Table

    from fastdit.models import configs
    from fastdit.pipelines.forecast import forecast, measure
    from fastdit.pipelines.loading import locate

    torch_dtype = o.device_and_dtype("cpu", dtype)[1]
    folder = Path() if model in configs.names() else Path(locate(model))
    machine = measure(torch_dtype, list(folder.glob("*/*.safetensors")))
    found = forecast(model, loaded, loading, geometry, report, torch_dtype, machine)
    table = Table("", "weights", "units", "kept", "in memory", "read in a pass")
    for part in found.parts:
        table.add_row(
            part.label, _size(part.weights), str(part.units), str(part.kept), _size(part.held), _size(part.read)
        )
    console = Console(soft_wrap=True)
    console.print(table)
    held = max(part.held for part in found.parts)
    console.print(
        f"memory: weights at most {_size(held)}, activations of a transformer forward about {_size(found.activations)}"
        "; interpreter and libraries (about 0.6 GiB) and the other models' activations come on top",
        highlight=False,
    )
    computing, reading = found.per_pass
    rates = f"reads {machine.reading / 1e9:.2f} GB/s from cold files, computes {machine.computing / 1e9:.0f} GMAC/s"
    console.print(
        f"this machine {rates} in {str(torch_dtype).removeprefix('torch.')} (measured for a second each)",
        highlight=False,
    )
    console.print(
        f"time: a transformer pass computes {_time(computing)} and reads {_time(reading)} meanwhile; the steps "
        f"take about {_time(found.seconds)}, reading every weight once {_time(found.reading)}",
        highlight=False,
    )


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _size(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
