"""fastdit env: versions, devices, and which backends load and why not."""

import typer


def env() -> None:
    """Show versions, devices and optional backends."""
    import importlib
    import os
    import platform
    from importlib.metadata import PackageNotFoundError, version

    typer.echo(f"python {platform.python_version()} on {platform.platform()}, {os.cpu_count()} CPUs")
    for package in (
        "fastdit",
        "torch",
        "torchvision",
        "diffusers",
        "transformers",
        "accelerate",
        "safetensors",
        "peft",
    ):
        try:
            typer.echo(f"{package} {version(package)}")
        except PackageNotFoundError:
            typer.echo(f"{package} is not installed")

    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            typer.echo(f"cuda:{index} {torch.cuda.get_device_name(index)}")
    else:
        typer.echo(f"no CUDA device (torch is built for CUDA {torch.version.cuda})")
    typer.echo(f"MPS {'available' if torch.backends.mps.is_available() else 'not available'}")
    typer.echo(f"CPU capability {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads")
    for package in ("xformers", "flash_attn", "sageattention", "triton"):
        try:
            importlib.import_module(package)
            typer.echo(f"{package} {getattr(importlib.import_module(package), '__version__', '')} loads")
        except Exception as error:  # a broken optional package may raise anything; say why
            typer.echo(f"{package} does not load: {(str(error) or type(error).__name__).splitlines()[0]}")

    from fastdit.attention.backends.base import BACKENDS

    for name, backend in BACKENDS.items():
        typer.echo(f"sparse attention, {name}: {backend.missing() or 'loads'} ({backend.summary})")
