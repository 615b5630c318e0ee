"""fastdit profile --attention-recall: what radial masks would keep of a model's own attention."""

from typing import Any

import typer

from fastdit.cli import options as o


def measure_recall(prompt: str, model: str, recipe: Any, given: dict[str, Any]) -> None:
    """Run the model dense and print, by layer, the share of attention kept in raster and tile order at one density."""
    from rich.console import Console
    from rich.table import Table

    from fastdit.cli.video import check_num_frames
    from fastdit.methods.radial_attention import RadialAttention
    from fastdit.methods.radial_attention.recall import by_layer, probe
    from fastdit.pipelines.recipes import Recipe

    methods = recipe.methods if recipe else (RadialAttention(),)
    if len(methods) != 1 or not isinstance(methods[0], RadialAttention):
        raise ValueError("--attention-recall measures masks: give their settings by -m radial_attention:decay=0.2,...")
    watching = probe(methods[0])
    pipe = o.load(model, Recipe((watching,), recipe.call if recipe else {}), "auto", "auto")
    given = o.call_arguments(pipe, given)
    check_num_frames(pipe, given)
    pipe(**given, **o.prompt_arguments(pipe, [prompt]), generator=o.generators(0, 1), output_type="latent")

    console, found = Console(), watching.found
    names = list(dict.fromkeys(item.mask for item in found))
    for transformer in dict.fromkeys(item.transformer for item in found):
        title = "" if transformer == "transformer" else transformer
        table = Table(
            "layer", *(f"{n}, {part}" for n in names for part in ("mean of heads", "least head")), title=title
        )
        shares = by_layer(found, transformer)  # (layers, heads) each
        for layer in range(len(shares[names[0]])):
            table.add_row(str(layer), *_cells([shares[name][layer] for name in names]))
        table.add_row("all", *_cells([shares[name] for name in names]))
        console.print(table)
    densities = {item.mask: item.density for item in found}
    kept = ", ".join(f"{name} {densities[name]:.3f} of the blocks" for name in names)
    noises = {item.noise for item in found}
    typer.echo(f"share of the attention among video tokens that is kept; {kept}; {len(noises)} steps looked at")


def _cells(shares: list[Any]) -> list[str]:
    return [f"{float(value):.3f}" for heads in shares for value in (heads.mean(), heads.min())]
