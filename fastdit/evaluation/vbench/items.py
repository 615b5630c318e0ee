"""The videos that some dimensions need: each prompt once, however many of the dimensions share it."""

from collections.abc import Sequence

from fastdit.evaluation.manifest import Item
from fastdit.evaluation.vbench.dimensions import FLICKERING_SAMPLES, SAMPLES
from fastdit.evaluation.vbench.names import Names
from fastdit.evaluation.vbench.suite import PromptSuite

MOST = 100  # samples of a prompt


def items_of(
    suite: PromptSuite,
    dimensions: Sequence[str],
    samples: int = SAMPLES,
    flickering: int | None = None,
    folds_case: bool = False,
) -> tuple[list[Item], list[str]]:
    """The items for the dimensions, named as VBench looks for them, seed = the video's index; and warnings about names.

    Every prompt's first video comes first, then every second one, so that a part of the run covers all prompts. An
    item's index depends on the suite alone: other dimensions or more samples never give it to another video.
    """
    for name, value in (("--samples", samples), ("--flickering-samples", flickering)):
        if value is not None and not 1 <= value <= MOST:
            raise ValueError(f"{name} must lie between 1 and {MOST}, got {value}")
    names = Names((prompt.prompt for prompt in suite.prompts), folds_case)
    wanted = {prompt.prompt: prompt.samples(dimensions, samples, flickering) for prompt in suite.of(dimensions)}
    items = [
        Item(k * len(suite.prompts) + number, prompt.text, seed=k, name=names.stem(prompt.prompt, k))
        for k in range(max(wanted.values()))
        for number, prompt in enumerate(suite.prompts)
        if k < wanted.get(prompt.prompt, 0)
    ]
    return items, names.warnings(wanted)


def count_of(suite: PromptSuite, dimension: str) -> int:
    """How many videos VBench's protocol makes for a dimension."""
    return sum(prompt.samples([dimension], SAMPLES, FLICKERING_SAMPLES) for prompt in suite.of([dimension]))
