"""The curves of a run: one line of JSON for each point, a picture drawn from them, and scalars for TensorBoard."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastdit.core.files import write_whole

LOG, PICTURE = "log.jsonl", "curves.png"
PANELS = {  # title of a panel: (name in the log, label)
    "loss": (("data", "training"), ("complete", "complete model"), ("validation", "validation (averaged weights)")),
    "share executed": (
        ("share", "of the routable work"),
        ("routed", "of the routable work, validation"),
        ("target", "target, of the routable work"),
        ("executed", "of all MACs"),
        ("macs", "of all MACs, validation"),
    ),
    "learning rate": (("lr", "learning rate"),),
}


def check_extra() -> None:
    """ValueError where what draws the curves is not installed."""
    for name in ("matplotlib", "tensorboard"):
        if find_spec(name) is None:
            raise ValueError(f'training needs {name}: pip install "fastdit[train]"')


class Curves:
    """Points of a run in `out`; those after `step` are dropped first, as the run goes on from there."""

    def __init__(self, out: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.out = out
        rows = [row for row in read_rows(out) if row["step"] <= step] if step else []
        write_whole(out / LOG, lambda path: path.write_text("".join(json.dumps(row) + "\n" for row in rows)))
        self.board = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)

    def add(self, step: int, **values: float) -> None:
        """Enter the values of a step."""
        with open(self.out / LOG, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def draw(self) -> None:
        """Draw the picture anew."""
        self.board.flush()
        draw(read_rows(self.out), self.out / PICTURE)

    def close(self) -> None:
        self.board.close()


def read_rows(out: Path) -> list[dict[str, Any]]:
    """The points of a run's log; a torn last line is left out."""
    rows = []
    if (out / LOG).is_file():
        for line in (out / LOG).read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return rows


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the panels that have values, one above the other."""
    from matplotlib.figure import Figure

    names = {name for row in rows for name in row}
    panels = {title: lines for title, lines in PANELS.items() if names & {name for name, _ in lines}}
    if not panels:
        return
    figure = Figure(figsize=(8, 2.6 * len(panels)), layout="constrained")
    for axes, (title, lines) in zip(figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0], panels.items()):
        for name, label in lines:
            points = [(row["step"], row[name]) for row in rows if name in row]
            if points:
                axes.plot(*zip(*points), label=label, linewidth=1, marker="." if len(points) < 30 else None)
        axes.set_ylabel(title)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    axes.set_xlabel("step")
    write_whole(path, lambda temporary: figure.savefig(temporary, dpi=100))
