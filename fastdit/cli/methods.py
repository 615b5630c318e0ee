"""fastdit methods: what there is, with options, ranges and advice."""

from typing import Annotated

import typer


def methods(name: Annotated[str | None, typer.Argument(help="show only this one")] = None) -> None:
    """List methods and reducers with their options."""
    import dataclasses

    from rich.console import Console
    from rich.table import Table

    from fastdit.methods.base import load_methods
    from fastdit.ops.reducers import REDUCERS
    from fastdit.pipelines.recipes import Recipe, shipped

    console = Console()
    known = load_methods()
    chosen = [known[name.replace("-", "_")]] if name else [known[key] for key in known]
    for cls in chosen:
        console.print(f"[bold]{cls.name}[/]  {cls.summary}", highlight=False)
        table = Table("option", "default", "values", "advice")
        for field in dataclasses.fields(cls):
            choices = field.metadata.get("choices")
            low, high = field.metadata.get("range", ("", ""))
            values = (
                ", ".join(choices)
                if choices
                else f"{low}..{'' if high is None else high}"
                if high != ""
                else "true, false"
                if isinstance(field.default, bool)
                else ""
            )
            default = field.default
            default = "-" if default is None else default
            shown = ":".join(f"{x:g}" for x in default) if isinstance(default, tuple) else str(default)
            table.add_row(field.name, shown, values, field.metadata["help"])
        console.print(table)
    if name is None:
        table = Table("recipe", "what it holds", title="recipes that ship, for --recipe")
        for key in shipped():
            table.add_row(key, Recipe.load(key).note)
        console.print(table)
    table = Table("reducer", "what it does", title="reducers of token_merging")
    for key, reducer in REDUCERS.items():
        table.add_row(key, reducer.summary)
    console.print(table)
