"""What a run executed: steps, evaluations, seconds, memory, MACs, and what each method did."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class MethodReport:
    """What one method did in a run; `reason` says why it did nothing, where it did nothing, `note` how it did it.

    `cautions` are what the user should know of this run beforehand; the run's report repeats them as warnings.
    `sample_steps` says how many steps each sample took part in, by a method that ends some of them early.
    """

    layers: int = 0
    calls: int = 0
    density: float | None = None
    backend: str = ""
    reason: str = ""
    note: str = ""
    cautions: list[str] = field(default_factory=list)
    sample_steps: list[int] = field(default_factory=list)
    _rows: float = field(default=0.0, repr=False)

    @property
    def share(self) -> str:
        """The density as text."""
        return "-" if self.density is None else f"{self.density:.3f}"

    def book(self, calls: int, density: float) -> None:
        """Add `calls` layer calls at a share `density` of the tokens kept."""
        self.calls += calls
        self._rows += calls * density
        self.density = self._rows / self.calls if self.calls else None

    def density_below(self, share: float) -> bool:
        """Whether the mean density is below a share, but for rounding."""
        return self.density is not None and self.density < share - 1e-9

    def correct(self, calls: int, difference: float) -> None:
        """Change the density that was booked with the last `calls` calls by a difference."""
        self._rows += calls * difference
        self.density = self._rows / self.calls if self.calls else None


@dataclass
class StepRow:
    """One scheduler step."""

    step: int
    noise: float | None
    passes: int = 0
    macs_dense: int = 0
    macs_executed: int = 0
    density: dict[str, float] = field(default_factory=dict)


@dataclass
class RunReport:
    """Report of one run; `print(report)` shows it as a table. MACs count the transformers only.

    `steps` were run of `steps_asked`; dense MACs are those of all that were asked for, where a method ended the run.
    """

    steps: int = 0
    steps_asked: int = 0
    evaluations: int = 0
    seconds: float = 0.0
    peak_memory: int | None = None
    macs_dense: int = 0
    macs_executed: int = 0
    methods: dict[str, MethodReport] = field(default_factory=dict)
    rows: list[StepRow] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def book(self, step: int, noise: float | None, dense: int, executed: int) -> StepRow:
        """Enter one transformer forward and its MACs; returns the row of its step."""
        if not self.rows or self.rows[-1].step != step:
            self.rows.append(StepRow(step, noise))
        row = self.rows[-1]
        row.passes += 1
        self.evaluations += 1
        for entry in (row, self):
            entry.macs_dense += dense
            entry.macs_executed += executed
        return row

    def skip(self, noises: Sequence[float]) -> None:
        """Enter steps that a method left out: each at the mean dense cost of those that were run, nothing executed."""
        if not noises or not self.rows:
            return
        mean = round(self.macs_dense / len(self.rows))
        for step, noise in enumerate(noises, self.rows[-1].step + 1):
            self.rows.append(StepRow(step, noise, macs_dense=mean))
            self.macs_dense += mean

    @property
    def progress(self) -> str:
        """The steps as text, with the number asked for where the run ended earlier."""
        return f"{self.steps} of {self.steps_asked} steps" if self.steps < self.steps_asked else f"{self.steps} steps"

    def to_dict(self) -> dict[str, Any]:
        data = asdict(self)
        for method in data["methods"].values():
            method.pop("_rows")
        return data

    def __str__(self) -> str:
        share = f" ({self.macs_dense / self.macs_executed:.2f}x fewer)" if self.macs_executed else ""
        memory = "" if self.peak_memory is None else f", peak {self.peak_memory / 2**20:.0f} MiB"
        lines = [
            f"{self.progress}, {self.evaluations} evaluations, {self.seconds:.2f} s{memory}",
            f"MACs {human(self.macs_executed)} of {human(self.macs_dense)} dense{share}",
        ]
        header = ("method", "layers", "calls", "density", "backend", "note")
        cells = [
            (name, m.layers or "-", m.calls, m.share, m.backend or "-", m.reason or m.note)
            for name, m in self.methods.items()
        ]
        if cells:
            table = [tuple(map(str, row)) for row in (header, *cells)]
            widths = [max(len(row[i]) for row in table) for i in range(len(header))]
            lines += ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in table]
        return "\n".join(lines + [f"warning: {text}" for text in self.warnings])


def human(macs: float) -> str:
    """1_234_000_000 -> '1.23 G'."""
    for unit in ("", "k", "M", "G", "T", "P"):
        if abs(macs) < 1000 or unit == "P":
            return f"{macs:.3g} {unit}".strip()
        macs /= 1000
    raise AssertionError
