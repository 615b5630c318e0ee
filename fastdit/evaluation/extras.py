"""Optional packages: imported where they are used, and asked for by the extra that installs them."""

import importlib
from typing import Any


def require(module: str, what: str, extra: str = "eval") -> Any:
    """The imported module; ValueError that says which extra installs it, or why it does not load."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if getattr(error, "name", None) == module.split(".")[0]:
            raise ValueError(f'{what} needs the package {module}: pip install "fastdit[{extra}]"') from error
        raise ValueError(f"{what} needs {module}, which does not load here: {error}") from error
