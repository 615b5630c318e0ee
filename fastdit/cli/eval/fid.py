"""fastdit eval fid: the distance of samples to reference pictures."""

from pathlib import Path
from typing import Annotated, Any

import typer

from fastdit.cli import options as o

ENGINES = ("fastdit", "torch-fidelity")


def fid(
    samples: Annotated[Path, typer.Argument(metavar="SAMPLES", help="run folder, folder of pictures, or ADM npz")],
    ref: Annotated[
        Path, typer.Option("--ref", help="reference: folder, run, ADM npz, or statistics (ours, clean-fid's, ADM's)")
    ],
    features: Annotated[
        str, typer.Option("--features", help="inception, inception-tf, efficientnet-lite0 (works offline) or clip")
    ] = "inception",
    inception: Annotated[Path | None, typer.Option("--inception", help="Inception's weights file")] = None,
    resize: Annotated[
        str | None, typer.Option("--resize", help="of inception: clean (the default) or legacy_tensorflow")
    ] = None,
    clip: Annotated[str | None, typer.Option("--clip", metavar="ID_OR_PATH", help="CLIP checkpoint")] = None,
    engine: Annotated[str, typer.Option("--engine", help="fastdit, or torch-fidelity as a cross-check")] = "fastdit",
    num: Annotated[int | None, typer.Option("--num", min=2, help="only the first N samples")] = None,
    frames: Annotated[
        str, typer.Option("--frames", help="of a video, each frame being a picture: middle, or all")
    ] = "middle",
    kid_subset_size: Annotated[
        int | None, typer.Option("--kid-subset-size", min=2, help="also KID over 100 random subsets, as others do it")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="pictures at once")] = 32,
    workers: Annotated[int, typer.Option("--workers", min=0, help="processes that read and resize")] = 2,
    device: o.DeviceOption = "auto",
    save_stats: Annotated[
        Path | None, typer.Option("--save-stats", metavar="OUT.npz", help="keep the samples' statistics and features")
    ] = None,
    save_ref_stats: Annotated[
        Path | None, typer.Option("--save-ref-stats", metavar="OUT.npz", help="the reference's, to give as --ref")
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", metavar="OUT", help="the figures as JSON")] = None,
) -> None:
    """FID, KID (with a 95 % interval), precision and recall of SAMPLES against a reference.

    Only Inception's distances are FID and KID; others carry their features' name. The interval draws the samples (all
    of one prompt together) and holds the reference fixed. The result of a run is kept in SAMPLES/results.
    """
    if engine not in ENGINES:
        raise ValueError(f"--engine {engine}: use {' or '.join(ENGINES)}")
    if frames not in ("middle", "all"):
        raise ValueError(f"--frames {frames}: use middle or all")
    for option, path in (("--save-stats", save_stats), ("--save-ref-stats", save_ref_stats), ("--json", json)):
        if path and not path.parent.is_dir():
            raise ValueError(f"{option} {path}: folder {path.parent} does not exist, make it first")
        if path and option != "--json" and path.suffix != ".npz":
            raise ValueError(f"{option} {path}: statistics are saved as .npz")
        if path and option != "--json" and engine != "fastdit":
            raise ValueError(f"{option} needs --engine fastdit: the other engine keeps its statistics to itself")

    from fastdit.cli.eval.bar import bar
    from fastdit.core.files import write_json
    from fastdit.evaluation.distribution import groups_of, measure, open_reference
    from fastdit.evaluation.features.base import open_extractor
    from fastdit.evaluation.features.extract import first, kept_features
    from fastdit.evaluation.frechet import Statistics
    from fastdit.evaluation.manifest import read_settings
    from fastdit.evaluation.samples import Samples, keep_result

    target = o.device_and_dtype(device, "float32")[0]
    opened = Samples.open(samples)
    first(opened, num)  # before the reference, whose features may take an hour
    ref = o.reference_from(ref)
    extractor = open_extractor(features, inception=inception, resize=resize, clip=clip)
    if engine == "torch-fidelity":
        result, warnings = _second_engine(opened, ref, extractor, batch, target, num, frames, kid_subset_size)
    else:
        options: dict[str, Any] = {"batch_size": batch, "workers": workers, "device": target, "frames": frames}
        with bar("features of the reference") as progress:
            reference, said = open_reference(ref, extractor, **options, progress=progress)
        if save_ref_stats:
            reference.save(save_ref_stats)
        with bar("features of the samples") as progress:
            found = kept_features(opened, extractor, **options, num=num, progress=progress)
        groups = groups_of(opened, found)
        if save_stats:
            Statistics.of(found.values, found.extractor, groups).save(save_stats)
        with bar("distances") as progress:
            progress(0, 0)
            result = measure(found, reference, extractor, groups, kid_subset_size)
        warnings = [*said, *found.warnings, *result.warnings]
    warnings = [*opened.warnings, *warnings]
    metric = f"distances.{features}" + ("" if engine == "fastdit" else f".{engine}")
    data = {
        "metric": metric,
        "features": extractor.identity,
        "engine": engine,
        "against": read_settings(ref)["hash"] if (ref / "settings.json").is_file() else str(ref),
        "num": num,
        "frames": frames,
        "n": result.n,
        "n_videos": result.videos,
        "n_reference": result.n_reference,
        "n_reference_pictures": result.pictures,
        # by what the distances are called, so that no reader can take another extractor's for FID
        "values": {result.names.get(key, key): value.to_dict() for key, value in result.values.items()},
        "warnings": warnings,
    }
    written = [json, keep_result(opened, metric, data)]  # first: a table that fails to print must not cost them
    if json:
        write_json(json, data)
    show(result, extractor, warnings)
    for path in filter(None, written):
        typer.echo(str(path))


def _second_engine(
    samples: Any, ref: Path, extractor: Any, batch: int, device: str, num: int | None, frames: str, subset: int | None
) -> tuple[Any, list[str]]:
    """The result of torch-fidelity, and what to know about it."""
    from fastdit.cli.eval.bar import bar
    from fastdit.evaluation.distribution import arrays, open_pictures
    from fastdit.evaluation.second_engine import measure

    if frames != "middle":
        raise ValueError("--frames all needs --engine fastdit")
    if "mu" in arrays(ref):
        raise ValueError(f"--ref {ref}: --engine torch-fidelity needs the reference's pictures, not statistics")
    reference = open_pictures(ref)
    with bar("torch-fidelity") as progress:
        progress(0, 0)
        result = measure(
            samples, reference, extractor, batch_size=batch, device=device, num=num, kid_subset_size=subset
        )
    return result, ["figures are torch-fidelity's: its loading, loops and arithmetic", *result.warnings]


def show(result: Any, extractor: Any, warnings: list[str]) -> None:
    """The figures as a table, then the warnings."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(soft_wrap=True)
    names = {"precision": "precision (looks real)", "recall": "recall (variety)", **result.names}
    digits = {"fd": 3, "kid": 5, "kid_across": 5, "kid_subsets": 5, "precision": 3, "recall": 3}
    title = f"{result.title()}; features: {extractor.identity}"
    table = Table("", "value (95 % interval)", title=escape(title))
    for key, value in result.values.items():
        table.add_row(escape(names[key]), value.text(digits[key]))
    console.print(table)
    for text in warnings:
        console.print("[yellow]warning:[/]", escape(text), highlight=False)
