"""fastdit eval: what an accelerated model did to quality, in the field's own numbers."""

import typer

from fastdit.cli.eval import clip, fid, fidelity, generate, pack, report, vbench

app = typer.Typer(help="Measure quality: samples, fidelity, FID/KID, CLIP, VBench, reports.", no_args_is_help=True)
app.command("generate")(generate.generate)
app.command("fidelity")(fidelity.fidelity)
app.command("fid")(fid.fid)
app.command("clip")(clip.clip)
app.command("pack")(pack.pack)
app.command("report")(report.report)
app.add_typer(vbench.app, name="vbench")
