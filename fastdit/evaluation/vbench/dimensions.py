"""VBench's 16 dimensions: what each weighs, how it is normalised, and what it loads.

The numbers are facts of VBench (Vchitect/VBench 45e79ec, `scripts/constant.py`: NORMALIZE_DIC, DIM_WEIGHT, the lists of
both groups and their weights); the hosts are those of `vbench/utils.py` in the wheel 0.1.5.
"""

import difflib
from dataclasses import dataclass

SAMPLES = 5  # videos of a prompt that VBench looks at, numbered 0 to 4
FLICKERING = "temporal_flickering"
FLICKERING_SAMPLES = 25  # made for each prompt of temporal flickering: VBench's static filter keeps 5 of them
QUALITY_WEIGHT, SEMANTIC_WEIGHT = 4, 1


@dataclass(frozen=True)
class Dimension:
    """One dimension: its score is normalised from low..high to 0..1 and weighted inside its group."""

    name: str
    group: str  # "quality" or "semantic"
    low: float
    high: float
    loads: str
    hosts: tuple[str, ...] = ()  # where vbench fetches that from
    weight: float = 1
    per_video: float = 1  # a video's own number over what it adds to the mean: imaging_quality lists 0 to 100
    auxiliary: bool = False  # its prompts carry the facts that are looked for in the video

    def normalise(self, score: float) -> float:
        """VBench's normalised score; not clipped, as VBench does not clip."""
        return (score - self.low) / (self.high - self.low)


_GRIT, _GRIT_HOSTS = "GRiT, BERT tokenizer; detectron2", ("datarelease.blob.core.windows.net", "huggingface.co")
_VICLIP, _VICLIP_HOSTS = "ViCLIP, CLIP's vocabulary", ("huggingface.co", "raw.githubusercontent.com")
_CLIP = ("openaipublic.azureedge.net",)
_RAFT = ("dl.dropboxusercontent.com",)
_HUB = ("huggingface.co",)

DIMENSIONS = {
    dimension.name: dimension
    for dimension in (
        Dimension(
            "subject_consistency", "quality", 0.1462, 1, "DINO ViT-B/16", ("github.com", "dl.fbaipublicfiles.com")
        ),
        Dimension("background_consistency", "quality", 0.2615, 1, "CLIP ViT-B/32", _CLIP),
        Dimension(FLICKERING, "quality", 0.6293, 1, "nothing (its static filter: RAFT)"),
        Dimension("motion_smoothness", "quality", 0.706, 0.9975, "AMT-S", _HUB),
        Dimension("dynamic_degree", "quality", 0, 1, "RAFT", _RAFT, weight=0.5),
        Dimension("aesthetic_quality", "quality", 0, 1, "CLIP ViT-L/14, LAION's head", (*_CLIP, "github.com")),
        Dimension("imaging_quality", "quality", 0, 1, "MUSIQ-SPAQ", ("github.com",), per_video=100),
        Dimension("object_class", "semantic", 0, 1, _GRIT, _GRIT_HOSTS, auxiliary=True),
        Dimension("multiple_objects", "semantic", 0, 1, _GRIT, _GRIT_HOSTS, auxiliary=True),
        Dimension("human_action", "semantic", 0, 1, "UMT-L/16", _HUB),
        Dimension("color", "semantic", 0, 1, _GRIT, _GRIT_HOSTS, auxiliary=True),
        Dimension("spatial_relationship", "semantic", 0, 1, _GRIT, _GRIT_HOSTS, auxiliary=True),
        Dimension("scene", "semantic", 0, 0.8222, "Tag2Text, BERT", _HUB, auxiliary=True),
        Dimension("appearance_style", "semantic", 0.0009, 0.2855, "CLIP ViT-B/32", _CLIP, auxiliary=True),
        Dimension("temporal_style", "semantic", 0, 0.364, _VICLIP, _VICLIP_HOSTS),
        Dimension("overall_consistency", "semantic", 0, 0.364, _VICLIP, _VICLIP_HOSTS),
    )
}


def group(name: str) -> list[str]:
    """The names of the dimensions of a group."""
    return [dimension.name for dimension in DIMENSIONS.values() if dimension.group == name]


def parse(text: str) -> list[str]:
    """`subject_consistency,scene`, `quality`, `semantic` or `all` as names in VBench's order; ValueError if unknown."""
    asked: set[str] = set()
    for word in (word.strip() for word in text.split(",")):
        if word in ("all", "quality", "semantic"):
            asked |= set(DIMENSIONS) if word == "all" else set(group(word))
        elif word in DIMENSIONS:
            asked.add(word)
        else:
            close = difflib.get_close_matches(word, DIMENSIONS, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            known = ", ".join(("all", "quality", "semantic", *DIMENSIONS))
            raise ValueError(f"--dims: VBench has no dimension {word!r}; use {known}{hint}")
    return [name for name in DIMENSIONS if name in asked]
