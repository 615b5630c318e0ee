"""fastdit profile: what a run would cost, from the config alone."""

from typing import Annotated

import typer

from fastdit.cli import options as o


def profile(
    model: o.ModelOption = o.DEFAULT_MODEL,
    height: o.HeightOption = None,
    width: o.WidthOption = None,
    num_frames: o.FramesOption = None,
    steps: o.StepsOption = None,
    method: o.MethodOption = None,
    recipe: o.RecipeOption = None,
    guidance: Annotated[bool, typer.Option(help="count the guidance passes")] = True,
    dtype: o.DtypeOption = "auto",
    attention_recall: Annotated[
        str | None,
        typer.Option(
            "--attention-recall",
            metavar="PROMPT",
            help="run the model dense on this prompt and measure which share of its attention radial masks would keep",
        ),
    ] = None,
) -> None:
    """Predict MACs per forward and per run, dense and accelerated, on the meta device: no weights are needed."""
    if attention_recall is not None:
        from fastdit.cli.recall import measure_recall

        given = {"height": height, "width": width, "num_frames": num_frames, "num_inference_steps": steps}
        measure_recall(attention_recall, model, o.recipe_from(method, recipe), given)
        return
    from rich.console import Console

    from fastdit.cli.forecast import print_forecast
    from fastdit.cli.output import print_report
    from fastdit.core.report import human
    from fastdit.methods.token_merging import TokenMerging
    from fastdit.models import configs
    from fastdit.pipelines.loading import locate, recipe_beside
    from fastdit.pipelines.profiling import profile as predict
    from fastdit.pipelines.profiling import read_model

    loaded = read_model(model)
    beside = None if model in configs.names() else recipe_beside(locate(model))
    chosen = o.recipe_from(method, recipe) or beside
    methods = list(chosen.methods) if chosen else [TokenMerging()]
    geometry = loaded.geometry(height, width, num_frames, steps)
    report = predict(loaded, methods, geometry, guidance)
    console = Console(soft_wrap=True)
    console.print(
        f"{model} ({loaded.family.title}): latents {geometry.frames} x {geometry.height} x {geometry.width}, predicted "
        "from the config",
        highlight=False,
    )
    run = [row for row in report.rows if row.passes]
    dense = sum(row.macs_dense for row in run) / report.evaluations
    per_forward = sorted({row.macs_executed / row.passes for row in run})
    spread = human(per_forward[0]) + ("" if len(per_forward) == 1 else f" to {human(per_forward[-1])}")
    console.print(f"per forward: {human(dense)}MAC dense, {spread}MAC accelerated", highlight=False)
    print_report(report)
    print_forecast(model, loaded, methods, geometry, report, dtype)
