"""Method: a frozen dataclass *is* the method; fields are options, the class says where it acts and what it needs."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from fastdit.core.ledger import PatchLedger
from fastdit.core.registry import Registry, discover
from fastdit.core.schedule import Schedule
from fastdit.methods.runtime import Host, PartForecast, Runtime, StepRuntime, Weights
from fastdit.models.base import ModelFamily

Stage = Literal["load", "step", "block tokens", "attention tokens", "attention kernel"]
STAGES: tuple[Stage, ...] = ("load", "step", "block tokens", "attention tokens", "attention kernel")


def option(default: Any, help: str, **about: Any) -> Any:
    """A dataclass field with its advice; `choices=` or `range=` are shown by `fastdit methods`.

    `path=True`: a value that begins with "." is, in a file, relative to that file's folder.
    """
    return dataclasses.field(default=default, metadata={"help": help, **about})


@dataclass(frozen=True)
class Method:
    """Base of all methods. Subclasses are frozen dataclasses that name their `stage` and what they need of a family."""

    name: ClassVar[str]
    summary: ClassVar[str]
    version: ClassVar[int] = 1
    under_sharding: ClassVar[frozenset[str]] = frozenset()  # "ulysses", "ring": how the sequence may be split
    sharding_reason: ClassVar[str] = "so tokens cannot be matched"  # why it may not be split at all

    @property
    def stage(self) -> Stage:
        """Where in the plan this method acts."""
        raise NotImplementedError

    @property
    def needs(self) -> frozenset[str]:
        """What a family must offer for these settings (`fastdit.models.base.OFFERS`)."""
        return frozenset()

    @property
    def uses_guidance(self) -> bool:
        """Whether the method asks which forwards are two halves of one guidance (`Forward.guided`)."""
        return False

    @property
    def for_one_transformer(self) -> bool:
        """Whether these settings hold what is one transformer's own, so that a second one cannot have it too."""
        return False

    @property
    def neutral(self) -> bool:
        """True where these settings leave the model exactly as it is."""
        raise NotImplementedError

    def bind(self, host: Host) -> Runtime:
        """What carries the method out on one transformer."""
        raise NotImplementedError

    def bring_weights(self, host: Host, ledger: PatchLedger) -> None:
        """Change the host's own weights, where the method brings some; they stay while it is set aside by `dense()`."""

    @property
    def replaces_weights(self) -> bool:
        """Whether the host's own weights are others while this method is attached."""
        return False

    def dense_reason(self) -> str | None:
        """Why there is no dense form of a host under this method, or None."""
        return None

    def bind_steps(self, pipe: Any) -> StepRuntime:
        """What carries a method of the stage "step" out on a pipeline; ValueError where this one has no such steps."""
        raise NotImplementedError

    def open(self, folder: Path, options: dict[str, Any]) -> Weights:
        """For the stage "load": the models of a diffusers folder, made before any weight is read."""
        raise NotImplementedError

    def adopt(self, models: dict[str, Any]) -> Weights:
        """For the stage "load": take over models that are in memory, or a ValueError that says what is missing."""
        raise NotImplementedError

    def forecast(self, models: dict[str, Any], dtype: Any) -> list[PartForecast]:
        """For the stage "load": what it would hold and read of models that are on the meta device, in this dtype."""
        raise NotImplementedError

    def foresee(self, noises: Sequence[float], held: int = 0) -> tuple[int, str]:
        """For the stage "step": how many steps of a run are made for sure, and a note; the first `held` must be."""
        raise NotImplementedError

    def missing(self, family: ModelFamily) -> frozenset[str]:
        """What this method needs and the family does not offer; what its model predicts counts as offered."""
        return self.needs - family.offers - {family.prediction}

    @property
    def spares_tokens(self) -> bool:
        """Whether some attention calls still see every token, in order (False: all of them see fewer)."""
        return True

    def clash(self, other: "Method") -> str | None:
        """Why this method cannot run together with another, or None."""
        if self.stage == other.stage and self.stage not in ("step", "load"):
            return f"both act on {self.stage}"
        return None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description with the method's name and version; options at their default are kept too."""
        values = {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}
        return {"method": self.name, "version": self.version, **values}

    @staticmethod
    def from_dict(data: dict[str, Any], folder: Path | None = None) -> "Method":
        """The method of a description, which a file in `folder` holds; errors name the field and the mend."""
        if not isinstance(data, dict) or not isinstance(data.get("method"), str):
            raise ValueError(f"a method is an object with the key 'method', one of: {', '.join(load_methods())}")
        data = dict(data)
        cls = load_methods()[data.pop("method")]
        version = data.pop("version", cls.version)
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise ValueError(f"{cls.name}: version must be a whole number of at least 1, got {version!r}")
        if version > cls.version:
            raise ValueError(f"{cls.name} is of version {version}, this fastdit knows {cls.version}: update fastdit")
        for field in dataclasses.fields(cls):
            value = data.get(field.name)
            if folder is None:
                break
            if field.metadata.get("path") and isinstance(value, str) and value.startswith("."):
                data[field.name] = str((folder / value).resolve())
        return cls.of(**data)

    @classmethod
    def of(cls, **options: Any) -> "Method":
        """The method with options by name; unknown names are an error that lists the known ones."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in options:
            if name not in known:
                raise ValueError(f"{cls.name} has no option {name!r}; it has: {', '.join(known)}")
        return cls(**options)

    @staticmethod
    def parse(text: str) -> "Method":
        """A method as the command line gives it: `token_merging:density=linear:0.4:0.9,reducer=pool`."""
        name, _, rest = text.partition(":")
        cls = load_methods()[name.strip().replace("-", "_")]
        options: dict[str, Any] = {}
        types = {field.name: field for field in dataclasses.fields(cls)}
        for part in filter(None, rest.split(",")):
            key, equals, value = part.partition("=")
            if not equals:
                raise ValueError(f"-m {text}: {part!r} is not option=value; options of {cls.name}: {', '.join(types)}")
            options[key.strip().replace("-", "_")] = _value(value.strip())
        return cls.of(**options)


def checked_range(name: str, value: Any) -> tuple[float, float]:
    """An option that is a range within 0 and 1; ValueError names it."""
    try:
        low, high = (float(x) for x in value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a range LOW:HIGH within 0 and 1, got {value!r}") from None
    if not 0 <= low < high <= 1:
        raise ValueError(f"{name} must satisfy 0 <= low < high <= 1, got {low:g}:{high:g}")
    return low, high


def checked_count(name: str, value: Any, least: int) -> None:
    """ValueError naming an option that is no whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def _plain(value: Any) -> Any:
    if isinstance(value, Schedule):
        return value.to_dict()
    return list(value) if isinstance(value, tuple) else value


def _value(text: str) -> Any:
    """A command-line value: number, true/false, a range `0.2:1`, or a word."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    head, *tail = text.split(":")
    if tail and all(_is_number(part) for part in (head, *tail)):
        return tuple(_value(part) for part in (head, *tail))
    return text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


METHODS: Registry[type[Method]] = Registry("method")


def register_method(cls: type[Method]) -> type[Method]:
    """Class decorator: make a method known under its name."""
    METHODS.register(cls.name, cls)
    return cls


def load_methods() -> Registry[type[Method]]:
    """All methods, the package's own ones imported."""
    import fastdit.methods

    discover(fastdit.methods)
    return METHODS
