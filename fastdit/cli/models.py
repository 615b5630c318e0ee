"""fastdit models: families, bundled models and configs, and which method fits which family."""

from typing import Annotated

import typer


def models(
    prompts: Annotated[
        str | None, typer.Option("--prompts", metavar="NAME", help="captions a bundled model knows")
    ] = None,
) -> None:
    """List model families with the support matrix, bundled models, and configs for `fastdit profile`."""
    from fastdit import zoo

    if prompts:
        name = prompts if prompts.startswith("fastdit/") else f"fastdit/{prompts}"
        typer.echo("\n".join(zoo.prompts(name)))
        return

    from rich.console import Console
    from rich.table import Table

    from fastdit.methods.base import load_methods
    from fastdit.models.base import load_families
    from fastdit.models.configs import names

    console = Console()
    known = load_methods()
    table = Table("family", "transformer class", *known, "notes", title="families and the methods that fit them")
    for _, family in load_families().items():
        fits = ["no" if known[key]().missing(family) else "yes" for key in known]
        table.add_row(family.title, family.transformer_class.__name__, *fits, "; ".join(family.quirks))
    console.print(table)
    console.print("bundled models: " + ", ".join(zoo.names()), highlight=False)
    console.print("bundled adapters: " + (", ".join(zoo.adapters()) or "none"), highlight=False)
    console.print("configs for fastdit profile: " + ", ".join(names()), highlight=False)
