"""FastDiTPipeline: a diffusers pipeline, loaded as diffusers loads it, whose instance also carries methods."""

import contextlib
import dataclasses
import functools
import inspect
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastdit.core.report import RunReport
from fastdit.methods.base import Method
from fastdit.methods.runtime import Weights
from fastdit.models.base import family_of
from fastdit.pipelines.engine import Engine
from fastdit.pipelines.hosts import transformers_of
from fastdit.pipelines.loading import load_pipeline, load_single_file, local_folder, locate, recipe_beside
from fastdit.pipelines.recipes import Recipe, as_recipe

Methods = Sequence[Method] | str | Path | Recipe | None


class FastDiTPipeline:
    """What fastdit adds to the class of a diffusers pipeline instance. Get one by `from_pretrained` or `accelerate`."""

    _fastdit: Engine
    _fastdit_call: dict[str, Any]

    @classmethod
    def from_pretrained(cls, model: str | Path, methods: Methods = None, **kwargs: Any) -> Any:
        """Load a pipeline by Hub id, folder or `fastdit/...` name, with methods or a recipe (or the one beside it).

        `kwargs` are diffusers' own. The result is an instance of FastDiTPipeline and of the class in model_index.json.
        Without methods and without a recipe (fastdit.json) beside the model it runs dense, and says so.
        """
        path = locate(model)
        recipe = _recipe_for(path, methods, kwargs)
        loading = _load_method(recipe)
        if loading is None:
            return extend(load_pipeline(path, **kwargs), recipe)
        folder = local_folder(path, **kwargs)
        weights = loading.open(folder, kwargs)
        return extend(load_pipeline(folder, **{**kwargs, **weights.models}), recipe, weights)

    @classmethod
    def from_single_file(cls, file: str | Path, config: str | Path, methods: Methods = None, **kwargs: Any) -> Any:
        """Load the transformer from one original checkpoint file, the rest from the diffusers folder `config`."""
        path = locate(config)
        recipe = _recipe_for(path, methods, kwargs)
        if loading := _load_method(recipe):
            raise ValueError(
                f"{loading.name} reads a diffusers folder, and not a file with another library's names: save the "
                "pipeline once with save_pretrained(...), and load that folder"
            )
        return extend(load_single_file(file, path, **kwargs), recipe)

    @property
    def report(self) -> RunReport:
        """What the last run executed; `print(pipe.report)` is a table."""
        return self._fastdit.report

    @property
    def methods(self) -> tuple[Method, ...]:
        """The methods at work."""
        return tuple(self._fastdit.methods)

    @property
    def call_defaults(self) -> dict[str, Any]:
        """Call arguments that are used where the caller gives none, from the recipe and the model family."""
        return dict(self._fastdit_call)

    def dense(self) -> contextlib.AbstractContextManager[None]:
        """Within this context the model runs unaccelerated, bit-exact."""
        return self._fastdit.dense()

    def set_methods(self, methods: Methods) -> None:
        """Exchange the methods; a refusal leaves the old ones in place. Call it too after changing the model itself.

        Call defaults stay, but for those that a recipe gives.
        """
        recipe = as_recipe(methods)
        defaults = call_defaults(self, recipe)
        self._fastdit.set_methods(recipe.methods)
        self._fastdit_call = {**self._fastdit_call, **defaults}

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """Diffusers' own, without the methods; refused while the weights are streamed from disk."""
        if self._fastdit.weights is not None:
            self._fastdit.weights.refuse_saving()
        for method in self.methods:
            if method.replaces_weights:
                warnings.warn(
                    f"save_pretrained writes the weights that {method.name} brought, without the method that they were "
                    "trained for: use fastdit.pipelines.merged.save_merged(pipe, folder)",
                    stacklevel=2,
                )
        return super().save_pretrained(*args, **kwargs)  # type: ignore[misc]

    def restore(self) -> None:
        """Remove the methods and all that they installed; the class stays, so that methods can be set again."""
        self._fastdit.set_methods([])


def _recipe_for(path: str | Path, methods: Methods, kwargs: dict[str, Any]) -> Recipe:
    """The given methods or the recipe beside the model; the call defaults beside the model hold in both cases."""
    beside = recipe_beside(path, **kwargs)
    if methods is None and beside is None:
        warnings.warn(
            f"no methods were given and {path} has no fastdit.json beside it: the pipeline runs dense. Pass "
            "methods=[TokenMerging()] to accelerate it, or methods=[] to say that dense is meant",
            stacklevel=3,
        )
    beside = beside or Recipe(())
    recipe = beside if methods is None else as_recipe(methods)
    return dataclasses.replace(recipe, call={**beside.call, **recipe.call})


def _load_method(recipe: Recipe) -> Method | None:
    """The method that acts while the model is loaded, if there is one."""
    found = [method for method in recipe.methods if method.stage == "load"]
    if len(found) > 1:
        raise ValueError(f"{found[0].name} and {found[1].name} cannot run together: {found[0].clash(found[1])}")
    return found[0] if found else None


def call_defaults(pipe: Any, recipe: Recipe) -> dict[str, Any]:
    """Call arguments that the family and the recipe give where the user gives none (the recipe wins)."""
    family = family_of(next(iter(transformers_of(pipe).values())))
    defaults = {**family.defaults(pipe), **recipe.call}
    known = inspect.signature(type(pipe).__call__).parameters
    if unknown := set(recipe.call) - set(known):
        raise ValueError(f"the recipe's call arguments {sorted(unknown)} are unknown to {type(pipe).__name__}")
    return {name: value for name, value in defaults.items() if name in known}


_CONSTRUCTORS = ("from_pretrained", "from_single_file", "from_pipe")


def check_size(pipe: Any, given: dict[str, Any]) -> None:
    """ValueError for a height or width that the VAE and the patches do not divide, before any work starts."""
    if given.get(
        "use_resolution_binning", "use_resolution_binning" in inspect.signature(type(pipe).__call__).parameters
    ):
        return  # the pipeline itself goes to the nearest size that it knows
    transformer = next(iter(transformers_of(pipe).values()))
    scale: int = getattr(pipe, "vae_scale_factor_spatial", getattr(pipe, "vae_scale_factor", 8))
    multiple = scale * family_of(transformer).patch(transformer.config)
    for name in ("height", "width"):
        value = given.get(name)
        if value is not None and value % multiple:
            lower = max(multiple, value // multiple * multiple)
            raise ValueError(f"{name} {value} is not divisible by {multiple}: use {lower} or {lower + multiple}")


def check_vae(pipe: Any, given: dict[str, Any]) -> None:
    """ValueError where nothing could decode the latents at the end, before any work starts."""
    if pipe.components.get("vae", pipe) is None and given.get("output_type") != "latent":
        raise ValueError("this pipeline has no VAE to decode with: load it with vae=AutoencoderKL.from_pretrained(...)")


@functools.cache
def _extended(host: type) -> type:
    """The host's class with FastDiTPipeline in front: same name, same signatures, no `__init__` of its own."""

    @functools.wraps(host.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(host.__call__).bind_partial(self, *args, **kwargs).arguments
        defaults = {name: value for name, value in self._fastdit_call.items() if name not in given}
        check_size(self, {**given, **defaults})
        check_vae(self, {**given, **defaults})
        with self._fastdit.run():
            return host.__call__(self, *args, **kwargs, **defaults)

    body = {
        "__call__": call,
        "__module__": host.__module__,
        "__qualname__": host.__qualname__,
        "__doc__": host.__doc__,
        # a new pipeline is always of diffusers' own class: loading and from_pipe go through it
        **{name: getattr(host, name) for name in _CONSTRUCTORS if hasattr(host, name)},
        "__reduce__": _no_pickle,
    }
    return type(host.__name__, (FastDiTPipeline, host), body)


def _no_pickle(self: Any) -> Any:
    raise TypeError("an accelerated pipeline cannot be pickled or deep-copied: restore it first, or load it again")


def extend(pipe: Any, recipe: Recipe, weights: Weights | None = None) -> Any:
    """Attach a recipe to a loaded pipeline and extend the class of this one instance."""
    if isinstance(pipe, FastDiTPipeline):
        raise ValueError("this pipeline is already accelerated: use pipe.set_methods([...])")
    defaults = call_defaults(pipe, recipe)
    engine = Engine(pipe, recipe.methods, weights)
    engine.identity.set_class(pipe, _extended(type(pipe)))  # type: ignore[arg-type]
    pipe._fastdit, pipe._fastdit_call = engine, defaults
    return pipe


class Handle:
    """An acceleration in place: a context manager; `restore()` undoes everything, the class included."""

    def __init__(self, target: Any, methods: Methods) -> None:
        self._target, self._is_pipe = target, hasattr(target, "components")
        recipe = as_recipe(methods)
        if self._is_pipe:
            self._engine: Engine = extend(target, recipe)._fastdit
            return
        self._engine = Engine(target, recipe.methods)
        self._engine.identity.set_attribute(getattr(target, "_orig_mod", target), "_fastdit_handle", self)

    @property
    def report(self) -> RunReport:
        """The last run's report; of a bare transformer, everything since it was accelerated."""
        return self._engine.report

    def dense(self) -> contextlib.AbstractContextManager[None]:
        return self._engine.dense()

    def restore(self) -> None:
        """Put everything back; calling it twice is allowed."""
        if not self._is_pipe:
            self._engine.give_back()
            self._engine.detach()
            self._engine.identity.undo()
        elif isinstance(self._target, FastDiTPipeline) and self._target._fastdit is self._engine:
            restore(self._target)

    def __enter__(self) -> "Handle":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.restore()


def accelerate(target: Any, methods: Methods) -> Handle:
    """Accelerate a diffusers pipeline or a bare transformer in place; undone by `with` or by `handle.restore()`."""
    return Handle(target, methods)


def restore(target: Any) -> None:
    """Undo `accelerate` or FastDiTPipeline's methods on a pipeline (class included) or a transformer."""
    if isinstance(target, FastDiTPipeline):
        engine = target._fastdit
        engine.give_back()  # first: where memory does not suffice, all stays as it was
        engine.detach()
        del target._fastdit, target._fastdit_call
        engine.identity.undo()
        return
    handle = getattr(getattr(target, "_orig_mod", target), "_fastdit_handle", None)
    if handle is None:
        raise ValueError(f"this {type(target).__name__} is not accelerated by fastdit: there is nothing to restore")
    handle.restore()
