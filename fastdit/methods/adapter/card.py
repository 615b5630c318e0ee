"""The README.md beside an adapter: a model card for people and the Hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastdit.methods.base import load_methods

if TYPE_CHECKING:
    from fastdit.methods.adapter.folder import Adapter

KIND = {
    "routers": "the method's own parameters (the base stays as it is)",
    "lora": "the method's own parameters and low-rank changes of linear layers (the base stays as it is)",
    "full": "the method's own parameters and the whole transformer, which takes the place of the base's",
}


def model_card(adapter: Adapter, merged: bool = False) -> str:
    """The card's text; `merged`: the folder is a whole pipeline, which loads by itself."""
    known = load_methods()
    method = known[adapter.method].__name__ if adapter.method in known else adapter.method
    source, name = adapter.base.get("source") or "path/of/the/base", adapter.folder.name
    on_hub = source.count("/") == 1 and not source.startswith("fastdit/")
    front = ["library_name: fastdit", *([f"base_model: {source}"] if on_hub else []), "tags:", "- fastdit"]
    parts = [
        "\n".join(["---", *front, f"- {adapter.method}", "---", f"# {name}"]),
        f"{method} for {adapter.base['class']} ({source}), made with fastdit: {KIND[adapter.kind]}.",
    ]
    if merged:
        loading = f'from fastdit import FastDiTPipeline\npipe = FastDiTPipeline.from_pretrained("{name}")'
        parts += [f"```python\n{loading}\n```"]
    else:
        loading = f'FastDiTPipeline.from_pretrained("{source}", methods=[{method}(checkpoint="{name}")])'
        parts += [f"```python\nfrom fastdit import FastDiTPipeline, {method}\npipe = {loading}\n```"]
        parts += ["`checkpoint` is the path of this folder, or its id on the Hub."]
    if adapter.time_frequency_shift is not None:
        parts += [
            "These weights count on an embedding of the timestep with "
            f"`downscale_freq_shift={adapter.time_frequency_shift}`. fastdit sets it; plain diffusers does not, and "
            "gives other pictures with them."
        ]
    if adapter.training:
        parts += ["## Training", "\n".join(f"- {fact}: {value}" for fact, value in adapter.training.items())]
    parts += [f"The base's weights have the hash `{adapter.base.get('hash')}`."]
    return "\n\n".join(parts) + "\n"
