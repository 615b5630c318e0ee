"""The model card of a converted checkpoint: what it is, how to load it, and what it does not do elsewhere."""

from typing import Any

from fastdit.pipelines.convert.base import CONVERTERS, Converted

CARD = """\
---
library_name: diffusers
tags:
- fastdit
- {name}
---
# {title}, converted

{summary}. The weights are those of `{origin}`, which its authors published under their own licence; `fastdit convert`
gave them diffusers' names and left their values alone.

```python
from fastdit import FastDiTPipeline

pipe = FastDiTPipeline.from_pretrained("this/folder"{vae})
```

`fastdit.json` turns {title} on; its own parameters are in `method.safetensors`.

## What to know

{notes}
"""
FREQUENCIES = (
    "The timestep's frequencies are those of the authors (`downscale_freq_shift=0`), which no field of diffusers' "
    "config says: fastdit sets them, {plain}"
)
NOTES = {
    True: "plain diffusers does not, and loads the folder as a dense DiT whose output is about 6 % off.",
    False: "plain diffusers does not, and knows no sparse token grid: its pictures are wrong.",
}
SIGMA = (
    "The model predicts a learned variance too ({outputs} output channels for {inputs}). diffusers' DiTPipeline drops "
    "it and samples with the scheduler's own, so figures of the authors' sampler do not carry over."
)
GUIDANCE = (
    "The authors guide the first three latent channels only, DiTPipeline guides all. `guidance_channels=3` of the "
    "method (or `fastdit convert {name} ... --guidance-channels 3`) does as the authors do."
)
NO_VAE = "No VAE is in this folder: pass `vae=AutoencoderKL.from_pretrained(...)` when loading, as decoding needs it."
CLASSES = (
    "DiTPipeline's guidance takes label 1000 for no class, and this model has {classes} classes: the recipe sets "
    "`guidance_scale=1.0`, without which the pipeline fails."
)


def summary(converted: Converted) -> str:
    """One line about the model."""
    g = converted.geometry
    size = g.side * g.patch
    return (
        f"{CONVERTERS[converted.method.name].title}: {g.blocks} blocks of width {g.width}, {g.heads} heads, patches of "
        f"{g.patch} x {g.patch}, latents of {size} x {size}, {g.classes} classes"
    )


def model_card(converted: Converted, origin: str, has_vae: bool, call: dict[str, Any]) -> str:
    """Markdown for README.md."""
    g, method = converted.geometry, converted.method
    has_dense: bool = getattr(method, "has_dense", True)
    notes = [FREQUENCIES.format(plain=NOTES[has_dense])]
    if g.out_channels != g.in_channels:
        notes.append(SIGMA.format(outputs=g.out_channels, inputs=g.in_channels))
    notes.append(GUIDANCE.format(name=method.name))
    if not has_vae:
        notes.append(NO_VAE)
    if call:
        notes.append(CLASSES.format(classes=g.classes))
    return CARD.format(
        title=CONVERTERS[method.name].title,
        summary=summary(converted),
        origin=origin,
        name=method.name,
        vae="" if has_vae else ", vae=vae",
        notes="\n".join(f"- {note}" for note in notes),
    )
