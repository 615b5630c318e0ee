"""What a pipeline has besides its transformer: VAE, scheduler and names of classes, given or by default."""

from pathlib import Path
from typing import Any

from fastdit.pipelines.loading import first_line


def read_vae(source: str | None, channels: int) -> Any:
    """The VAE of an id, a folder or a pipeline's folder; ValueError where it is none or makes other latents."""
    if source is None:
        return None
    import diffusers

    try:
        vae = diffusers.AutoencoderKL.from_pretrained(source, **_inside(source, "vae"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--vae {source} cannot be loaded: {first_line(error)}") from error
    if vae.config.latent_channels != channels:
        raise ValueError(
            f"--vae {source} makes {vae.config.latent_channels} latent channels, the model needs {channels}"
        )
    return vae


def read_scheduler(source: str | None) -> Any:
    """The scheduler of an id, a folder or a pipeline's folder; by default DDIM on DiT's training schedule."""
    import diffusers

    if source is None:
        return diffusers.DDIMScheduler(
            num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False
        )
    try:
        config = diffusers.DDIMScheduler.load_config(source, **_inside(source, "scheduler"))  # of any class
    except (OSError, ValueError) as error:
        raise ValueError(f"--scheduler {source} cannot be loaded: {first_line(error)}") from error
    cls = getattr(diffusers, str(config.get("_class_name")), None)
    if cls is None or not hasattr(cls, "set_timesteps"):
        raise ValueError(f"--scheduler {source} is no diffusers scheduler, but {config.get('_class_name')}")
    return cls.from_config(config)


def read_labels(path: str | Path | None, classes: int) -> dict[str, str] | None:
    """Names of classes by number, as DiTPipeline takes them; ValueError where there are not as many as classes."""
    if path is None:
        return None
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--labels {path} cannot be read: {error}") from error
    names = [line.strip() for line in lines[: -1 if not lines[-1].strip() else None]]
    if len(names) != classes or not all(names):
        raise ValueError(f"--labels {path} must name one class a line, {classes} of them; it has {len(names)} lines")
    return {str(number): name for number, name in enumerate(names)}


def _inside(source: str, part: str) -> dict[str, str]:
    """Where in a pipeline's folder the part lies."""
    return {"subfolder": part} if (Path(source) / part).is_dir() else {}
