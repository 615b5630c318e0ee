"""Peak memory of a run, and waiting for the GPUs that took part in it."""

import sys
from collections.abc import Iterable

import torch


def cuda_devices(devices: Iterable[torch.device]) -> list[torch.device]:
    """The distinct CUDA devices among these."""
    return list({device for device in devices if device.type == "cuda"})


def start_measuring(devices: Iterable[torch.device]) -> None:
    for device in devices:
        torch.cuda.reset_peak_memory_stats(device)


def wait_for(devices: Iterable[torch.device]) -> None:
    """Kernels run behind the CPU's back: wait, so that seconds are seconds of work."""
    for device in devices:
        torch.cuda.synchronize(device)


def peak_memory(devices: list[torch.device]) -> int | None:
    """Peak bytes: allocated on these CUDA devices, otherwise resident in this process since its start."""
    if devices:
        return sum(torch.cuda.max_memory_allocated(device) for device in devices)
    try:  # Linux: getrusage would start at the peak of the process that has started this one
        with open("/proc/self/status", encoding="ascii") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
    except (OSError, StopIteration):
        pass
    try:
        import resource  # absent on Windows
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
