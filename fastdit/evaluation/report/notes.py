"""How it was measured, in words: what n is, what an interval is, and how seconds came about."""

from collections import Counter
from collections.abc import Sequence

from fastdit.evaluation.intervals import DRAWS
from fastdit.evaluation.report.runs import Run
from fastdit.evaluation.report.speed import WARM, batches


def notes(runs: Sequence[Run], base: Run | None, more: Sequence[str], same_n: bool) -> list[str]:
    """Paragraphs that a reader needs to judge the table; `same_n`: all quality is over the runs' common samples."""
    return [_samples(runs, base, same_n), _intervals(runs), *_timing(runs, base), *more]


def _samples(runs: Sequence[Run], base: Run | None, same_n: bool) -> str:
    records = list(runs[0].samples.records.values())
    prompts = len({(record.prompt, record.label) for record in records})
    seeds = "one sample each" if prompts == len(records) else f"{len(records) / prompts:.3g} samples of each on average"
    counted = f"n = {len(records)} samples of {prompts} prompts ({seeds})"
    if same_n:
        text = f"Every figure of quality is over the same {counted}"
    else:
        text = f"The runs share {counted}, and a figure of quality over another number of samples says its own n"
    if base is None:
        return text + ". There is no dense run to compare with."
    return text + f"; a sample has the same prompt and seed in every run. The reference is the run {base.name}."


def _intervals(runs: Sequence[Run]) -> str:
    return (
        f"Intervals are 95 % percentile bootstrap intervals from {DRAWS} draws: of quality over prompts (samples of "
        "one prompt stay together), of speed over batches. They say how far a figure would move with other prompts, "
        "or at another moment on the same machine. No more digits are printed than the interval supports."
    )


def _timing(runs: Sequence[Run], base: Run | None) -> list[str]:
    sizes = Counter(run.settings.get("batch") for run in runs)
    found = {run.name: batches(run.records) for run in runs}
    if not any(found.values()):
        return []
    size = next(iter(sizes)) if len(sizes) == 1 else None
    each = f" of {size} sample{'s' if size != 1 else ''}" if isinstance(size, int) else ""
    counts = sorted({len(own) for own in found.values()})
    number = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    text = (
        f"Seconds are of the whole call that makes a batch, from prompts to pixels, over {number} batches{each} a run"
    )
    text += f"; the first batch of a run in a process holds warming up and is left out where {WARM} others are there."
    if base is not None:
        text += (
            " Where runs took turns batch by batch in one process, a speed-up is the ratio of the medians over these "
            "pairs of batches, so that other work on the machine slows both alike."
        )
    return [text]
