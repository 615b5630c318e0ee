"""Who may import whom, read from the source; and what `import fastdit` may load."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(importlib.util.find_spec("fastdit").origin).parent
LOWER = {"core", "ops", "models", "attention", "methods"}
MAY_IMPORT = {  # besides itself
    "core": set(),
    "ops": {"core.registry"},
    "models": {"core"},
    "attention": {"core", "ops", "models"},
    "methods": {"core", "ops", "models", "attention", "zoo"},
    "pipelines": LOWER | {"zoo"},
    "training": LOWER | {"pipelines", "zoo"},
    "evaluation": {"core"},
    "zoo": {"core"},
}
WITHOUT_DIFFUSERS = ("core", "ops")
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE)


def imports(path):
    """Dotted names of everything that a file imports, wherever in the file, imports for typing included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide who imports whom"
            # `from fastdit.core import registry` may name a module: the longer name is the one to judge
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from (name if importlib_finds(name) else node.module for name in names)


def importlib_finds(name):
    path = PACKAGE.parent.joinpath(*name.split("."))
    return name.startswith("fastdit.") and (path.is_dir() or path.with_suffix(".py").is_file())


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_imports_upward(path):
    folder = path.relative_to(PACKAGE).parts[0]
    if folder == "cli":
        return
    for name in imports(path):
        if folder in WITHOUT_DIFFUSERS:
            assert name.split(".")[0] not in ("diffusers", "transformers"), f"{path} imports {name}"
        if name.split(".")[0] != "fastdit":
            continue
        inside = name.removeprefix("fastdit").removeprefix(".")
        allowed = MAY_IMPORT[folder] | {folder}
        assert any(inside == a or inside.startswith(a + ".") for a in allowed), f"{path} imports {name}"


def test_every_folder_has_its_place_in_the_layers():
    assert {path.relative_to(PACKAGE).parts[0] for path in FILES} <= {*MAY_IMPORT, "cli"}


def test_no_method_names_a_model_and_no_file_replaces_what_is_not_ours():
    families = {path.stem for path in (PACKAGE / "models").glob("*.py")} - {"__init__", "base"}
    for path in (PACKAGE / "methods").rglob("*.py"):
        named = {name for name in imports(path) if name.startswith("fastdit.models.")}
        assert not {name.split(".")[2] for name in named} & families, path
        assert not any(name.split(".")[0] == "diffusers" for name in imports(path)), path
    for path in FILES:
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        used |= {node.id for node in nodes if isinstance(node, ast.Name)}
        assert not used & {"set_attention_backend", "HookRegistry"}, path


HEAVY = ("torch", "diffusers", "transformers", "numpy", "accelerate")


def loaded(code: str) -> set[str]:
    """Modules of sys.modules after `code` in a fresh interpreter, those of `python -c pass` left out."""
    script = f"import sys; before = set(sys.modules); {code}; print(*(set(sys.modules) - before))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    return set(run.stdout.split())


@pytest.mark.parametrize("module", ["fastdit", "fastdit.cli"])
def test_import_is_lean(module):
    modules = loaded(f"import {module}")
    assert module in modules
    assert not modules & set(HEAVY)


def test_a_method_by_its_public_name_loads_no_cuda_and_no_pipelines():
    modules = loaded("import fastdit; fastdit.TokenMerging(density=0.5)")
    assert "fastdit.methods.token_merging.config" in modules
    assert not [name for name in modules if name.split(".")[0] in ("triton", "xformers", "flash_attn", "sageattention")]
    assert not {"fastdit.pipelines", "diffusers"} & modules


def test_public_names():
    import fastdit

    for name in fastdit.__all__:
        assert getattr(fastdit, name) is not None and name in dir(fastdit)
    with pytest.raises(AttributeError, match="no attribute 'Accelerate'"):
        fastdit.Accelerate  # noqa: B018
