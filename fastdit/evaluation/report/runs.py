"""Which runs a report is about: found in folders, the dense one among them, cut to the samples that all have."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from fastdit.evaluation.manifest import Record, flat
from fastdit.evaluation.samples import Samples

Describe = Callable[[Sequence[dict[str, Any]]], str]


@dataclass(frozen=True)
class Run:
    """A run's folder under the name that stands in the report; `samples` are those that all runs have."""

    name: str
    samples: Samples
    whole: Samples

    @property
    def records(self) -> list[Record]:
        """Of all its samples: seconds are paired by batch, not by sample."""
        return list(self.whole.records.values())

    @property
    def head(self) -> dict[str, Any]:
        """settings.json."""
        return self.samples.settings or {}

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the pixels."""
        return self.head["settings"]

    @property
    def hash(self) -> str:
        return self.head["hash"]

    @property
    def methods(self) -> list[dict[str, Any]]:
        return self.settings.get("methods") or []


def find_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs of these folders: a folder is a run, or holds runs. ValueError if one is neither, or has no samples."""
    folders: dict[Path, Path] = {}
    for path in paths:
        inside = sorted(file.parent for file in path.glob("*/settings.json")) if path.is_dir() else []
        found = [path] if (path / "settings.json").is_file() else inside
        if not found:
            raise ValueError(f"{path} is no run and holds none: give folders that `fastdit eval generate` wrote")
        folders.update((folder.resolve(), folder) for folder in found)
    opened = [Samples.open(folder) for folder in folders.values()]
    named = zip(_names(list(folders), [samples.settings or {} for samples in opened]), opened, strict=True)
    return [Run(name, samples, samples) for name, samples in named]


def _names(folders: Sequence[Path], heads: Sequence[dict[str, Any]]) -> list[str]:
    """The runs' own names, or as much of their folders' names as tells them apart."""
    forms = (
        [str(head["name"]) for head in heads],
        [folder.name for folder in folders],
        [f"{folder.parent.name}/{folder.name}" for folder in folders],
        [f"{folder.name} ({head['hash']})" for folder, head in zip(folders, heads, strict=True)],
    )
    return next((names for names in forms if len(set(names)) == len(names)), [str(i) for i in range(len(folders))])


def choose_dense(runs: Sequence[Run], given: str | None = None, without: bool = False) -> Run | None:
    """The reference: `given` by name or folder, else the only run without methods; None for one run, or `without`.

    ValueError if there is none or if there are several to choose from.
    """
    if without:
        return None
    names = ", ".join(run.name for run in runs)
    if given is not None:
        found = [run for run in runs if given == run.name or Path(given).resolve() == run.samples.root.resolve()]
        if len(found) != 1:
            raise ValueError(f"--dense {given}: the runs are {names}; give one's name or folder")
        return found[0]
    dense = [run for run in runs if not run.methods]
    if len(dense) == 1:
        return dense[0]
    if len(dense) > 1:
        names = ", ".join(run.name for run in dense)
        raise ValueError(f"{len(dense)} runs are without methods ({names}): say with --dense which is the reference")
    if len(runs) == 1:
        return None
    raise ValueError(f"none of the runs ({names}) is dense: give one with --dense, or --no-dense for no comparison")


def common(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """The runs cut to the samples that all of them have, and counted warnings of what that left out.

    ValueError if one index stands for other prompts or seeds, or if the runs share nothing.
    """
    first = runs[0]
    tables = [{record.index: record for record in run.records} for run in runs]
    for run, table in zip(runs, tables, strict=True):
        for index, record in table.items():
            other = tables[0].get(index, record)
            if (other.prompt, other.seed) != (record.prompt, record.seed):
                raise ValueError(
                    f"sample {index} is {other.prompt!r} with seed {other.seed} in {first.name} and {record.prompt!r} "
                    f"with seed {record.seed} in {run.name}: report runs of one list of prompts"
                )
    shared = set.intersection(*map(set, tables))
    if not shared:
        raise ValueError(f"no sample is in all runs ({', '.join(run.name for run in runs)}): let them finish first")
    warnings = [
        f"{run.name}: {len(table) - len(shared)} of {len(table)} samples are left out, as not every run has them"
        for run, table in zip(runs, tables, strict=True)
        if len(table) > len(shared)
    ]
    return [_cut(run, shared) for run in runs], warnings


def _cut(run: Run, shared: set[int]) -> Run:
    records = {name: record for name, record in run.samples.records.items() if record.index in shared}
    return replace(run, samples=replace(run.samples, names=list(records), records=records))


def differences(dense: Run, run: Run) -> list[str]:
    """What differs in two runs' settings besides their methods, which a speed-up or a fidelity would hide."""
    a, b = flat(dense.settings), flat(run.settings)
    keys = [key for key in {**a, **b} if a.get(key) != b.get(key) and key.partition(".")[0] != "methods"]
    shown = [(key, *(published(side.get(key, "absent")) for side in (b, a))) for key in keys]
    return [f"{key} is {mine!r}, not {theirs!r}" for key, mine, theirs in shown]


def shared_settings(runs: Sequence[Run]) -> dict[str, str]:
    """What all runs have in common besides methods, one text a setting: words and numbers short enough for a line."""
    tables = [flat(run.settings) for run in runs]
    same = {key: value for key, value in tables[0].items() if all(t.get(key) == value for t in tables)}
    same = {key: value for key, value in same.items() if key.partition(".")[0] != "methods"}
    named = {key.removeprefix("call.").replace("_", " ").removeprefix("num "): value for key, value in same.items()}
    shown = {key: value for key, value in named.items() if isinstance(value, (str, int, float))}
    return {k: str(published(v)) for k, v in shown.items() if not isinstance(v, bool) and len(str(published(v))) <= 60}


def published(value: Any) -> Any:
    """Settings as they may be shown: of an absolute path only its last part, as the rest is the machine's affair."""
    if isinstance(value, dict):
        return {key: published(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [published(inner) for inner in value]
    if isinstance(value, str) and (PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute()):
        return PureWindowsPath(value).name
    return value


def without_paths(text: str, runs: Sequence[Run] = ()) -> str:
    """A message with the runs' names for their folders, and of other absolute paths the last part."""
    for run in sorted(runs, key=lambda run: -len(str(run.samples.root))):
        text = text.replace(str(run.samples.root), run.name)
    return re.sub(r"(?<![\w.:/])(?:[A-Za-z]:)?(?:[/\\][^\s/\\:,;'\")]+)*[/\\]([^\s/\\:,;'\")]+)", r"\1", text)


def describe_methods(methods: Sequence[dict[str, Any]]) -> str:
    """Methods in the form of `-m` with every option; the command line, which knows the defaults, has a shorter one."""
    if not methods:
        return "dense"
    texts = []
    for method in methods:
        options = {key: value for key, value in method.items() if key not in ("method", "version")}
        tail = ",".join(f"{key}={value}" for key, value in options.items())
        texts.append(f"{method.get('method', 'method')}{':' if tail else ''}{tail}")
    return " + ".join(texts)


def environments(runs: Sequence[Run]) -> tuple[dict[str, str], list[str]]:
    """One text a fact, as the runs recorded it; where they differ, one a run, and a warning that names the facts."""
    facts: dict[str, str] = {}
    differing = []
    for fact in dict.fromkeys(key for run in runs for key in run.head.get("environment", {})):
        told = {run.name: str(run.head.get("environment", {}).get(fact, "unknown")) for run in runs}
        if len(set(told.values())) == 1:
            facts[fact] = told[runs[0].name]
            continue
        differing.append(fact)
        counts = Counter(told.values())
        facts[fact] = "; ".join(f"{text} ({', '.join(n for n, t in told.items() if t == text)})" for text in counts)
    text = f"the runs come from different environments, which a speed-up should not: see {', '.join(differing)}"
    return facts, [text] if differing else []
