"""Loading: names to folders, diffusers' own loaders, and one clear error where a file is missing or damaged."""

import json
from pathlib import Path
from typing import Any

import torch

from fastdit.pipelines.recipes import BESIDE_MODEL, Recipe
from fastdit.zoo import folder_of, names


def locate(model: str | Path) -> str | Path:
    """`fastdit/...` names resolve to the package's zoo before anything asks the Hub; ids stay as they are."""
    text = str(model)
    if text.startswith("fastdit/") and not Path(text).exists():
        return folder_of(text)
    if text.startswith((".", "/", "~")) or Path(text).exists():
        path = Path(text).expanduser()
        if not (path / "model_index.json").is_file():
            what = "has no model_index.json" if path.is_dir() else "does not exist"
            raise ValueError(f"model {text} {what}: give a diffusers folder, a Hub id, or one of {', '.join(names())}")
        return path
    if text.count("/") != 1:
        raise ValueError(f"unknown model {text!r}: give a diffusers folder, a Hub id, or one of {', '.join(names())}")
    return text


def recipe_beside(path: str | Path, **kwargs: Any) -> Recipe | None:
    """The recipe that ships in a model's folder, here or on the Hub, if there is one; `kwargs` are the loader's own."""
    folder = Path(path)
    if isinstance(path, str) and not folder.exists() and path.count("/") == 1:
        fetched = _recipe_folder(path, **kwargs)
        if fetched is None:
            return None
        folder = fetched
    file = folder / BESIDE_MODEL
    return Recipe.load(file) if file.is_file() else None


def _recipe_folder(repo_id: str, **kwargs: Any) -> Path | None:
    """Where the Hub's client keeps a model's recipe and the adapter at its root, which the recipe may name by "."."""
    import huggingface_hub

    from fastdit.methods.adapter.folder import FILES

    names = ("cache_dir", "local_files_only", "token", "revision")
    options: dict[str, Any] = {name: kwargs[name] for name in names if name in kwargs}
    try:
        huggingface_hub.hf_hub_download(repo_id, BESIDE_MODEL, **options)
    except Exception:  # no recipe, no connection or no such model, of which the model's own loader tells
        return None
    try:
        files = [BESIDE_MODEL, *FILES]
        return Path(huggingface_hub.snapshot_download(repo_id, allow_patterns=files, **options))
    except Exception as error:  # the client's errors have no class in common
        raise ValueError(f"cannot fetch what {BESIDE_MODEL} of model {repo_id} needs: {first_line(error)}") from error


def local_folder(path: str | Path, **kwargs: Any) -> Path:
    """The folder itself, or where the Hub's client has put the files of an id."""
    if isinstance(path, Path) or Path(path).is_dir():
        return Path(path)
    import diffusers

    more = {name: kwargs[name] for name in ("variant",) if name in kwargs}
    try:
        return Path(diffusers.DiffusionPipeline.download(path, **_hub_options(kwargs), **more))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot fetch model {path}: {first_line(error)}") from error


def load_pipeline(path: str | Path, **kwargs: Any) -> Any:
    """DiffusionPipeline.from_pretrained with null components passed as None and, unless given, fp32 throughout."""
    import diffusers

    if "dtype" not in kwargs and "torch_dtype" not in kwargs:
        kwargs["dtype"] = torch.float32
    try:
        index = diffusers.DiffusionPipeline.load_config(path, **_hub_options(kwargs))
        for name, entry in index.items():
            if isinstance(entry, (list, tuple)) and list(entry) == [None, None]:
                kwargs.setdefault(name, None)
        # By the class itself: through DiffusionPipeline, diffusers 0.42 drops a given component that the class calls
        # optional (Wan's transformer) and loads the folder's instead.
        host = getattr(diffusers, str(index.get("_class_name")), diffusers.DiffusionPipeline)
        return host.from_pretrained(path, **kwargs)
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"cannot load model {path}: {first_line(error)}") from error
    except Exception as error:
        if type(error).__name__ == "SafetensorError":
            raise ValueError(f"cannot load model {path}: a weight file is damaged ({error}); fetch it again") from error
        raise


def load_single_file(file: str | Path, config: str | Path, **kwargs: Any) -> Any:
    """A pipeline whose transformer comes from one original checkpoint file and the rest from the folder `config`."""
    import diffusers

    if not str(file).startswith("http") and not Path(file).is_file():
        raise ValueError(f"checkpoint {file} does not exist: give the path of a .safetensors file")
    dtype = kwargs.pop("dtype", None) or kwargs.pop("torch_dtype", None) or torch.float32
    class_name = diffusers.DiffusionPipeline.load_config(config, **_hub_options(kwargs))["transformer"][1]
    cls = getattr(diffusers, class_name)
    if not hasattr(cls, "from_single_file"):
        raise ValueError(
            f"diffusers reads no single file for {class_name}: load the diffusers folder by from_pretrained"
        )
    try:
        transformer = cls.from_single_file(str(file), config=str(config), subfolder="transformer", dtype=dtype)
    except (OSError, KeyError) as error:
        raise ValueError(f"cannot load checkpoint {file}: {first_line(error)}") from error
    except Exception as error:
        if type(error).__name__ == "SafetensorError":
            raise ValueError(f"cannot load checkpoint {file}: the file is damaged ({error}); fetch it again") from error
        raise
    return load_pipeline(config, transformer=transformer, dtype=dtype, **kwargs)


_HUB = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision")


def _hub_options(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: kwargs[name] for name in _HUB if name in kwargs}


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return str(error).strip().split("\n")[0]
