"""fastdit profile --attention-recall: what radial masks would keep of a model's own attention."""

from typing import Any

import typer

from fastdit.cli import options as o


def measure_recall(prompt: str, model: str, method: list[str] | None, given: dict[str, Any]) -> None:
    """Run the model dense and print, by layer, the share of attention kept in raster and tile order at one density."""
    from rich.console import Console
    from rich.table import Table

    from fastdit.methods.radial_attention import RadialAttention
    from fastdit.methods.radial_attention.recall import by_layer, probe

    recipe = o.recipe_from(method, None)
    methods = [m for m in recipe.methods if isinstance(m, RadialAttention)] if recipe else [RadialAttention()]
    if len(methods) != 1:
        raise ValueError("--attention-recall measures masks: give their settings by -m radial_attention:decay=0.2,...")
    watching = probe(methods[0])
    pipe = o.load(model, [watching], "auto", "auto")
    arguments = {**o.call_arguments(pipe, given), **o.prompt_arguments(pipe, [prompt])}
    pipe(**arguments, generator=o.generators(0, 1))

    found = watching.found
    names = list(dict.fromkeys(item.mask for item in found))
    densities = {item.mask: item.density for item in found}
    table = Table("layer", *(f"{name}, {part}" for name in names for part in ("mean of heads", "least head")))
    layers = by_layer(found)
    for layer in range(len(layers[names[0]])):
        heads = [layers[name][layer] for name in names]
        table.add_row(str(layer), *(f"{x:.3f}" for own in heads for x in (float(own.mean()), float(own.min()))))
    table.add_row("all", *(f"{x:.3f}" for n in names for x in (float(layers[n].mean()), float(layers[n].min()))))
    Console().print(table)
    kept = ", ".join(f"{name} {densities[name]:.3f} of the blocks" for name in names)
    noises = sorted({item.noise for item in found}, reverse=True)
    typer.echo(f"share of the attention among video tokens that is kept: {kept}; {len(noises)} steps looked at")
