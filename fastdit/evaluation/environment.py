"""Where figures come from: machine, device and versions, to stand beside every figure."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("fastdit", "torch", "diffusers", "transformers", "numpy", "pillow")


def processor() -> str:
    """The CPU's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def environment(device: str = "cpu") -> dict[str, str]:
    """One text a fact: processor, cores and threads, the device and its name, system, Python and package versions."""
    import torch

    facts = {
        "processor": processor(),
        "cores": f"{os.cpu_count()}, torch uses {torch.get_num_threads()} threads",
        "device": f"{device} ({torch.cuda.get_device_name(device)})" if device.startswith("cuda") else device,
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    return facts
