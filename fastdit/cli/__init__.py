"""The command line. Commands import what they need when they run, so that `fastdit --help` is instant."""

import os
import sys

import typer

from fastdit.cli import compare, convert, env, generate, methods, models, profile, train
from fastdit.cli import eval as evaluation

app = typer.Typer(
    name="fastdit",
    help="Make diffusion transformers fast, and see what it cost and what it saved.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("generate")(generate.generate)
app.command("compare")(compare.compare)
app.command("methods")(methods.methods)
app.command("models")(models.models)
app.command("profile")(profile.profile)
app.command("train")(train.train)
app.command("env")(env.env)
app.add_typer(convert.app, name="convert")
app.add_typer(evaluation.app, name="eval")


def main() -> None:
    """Run a command; bad input is one line on stderr and exit code 2 (FASTDIT_DEBUG=1 shows where)."""
    try:
        app()
    except Exception as error:
        if os.environ.get("FASTDIT_DEBUG"):
            raise
        text = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, (ValueError, OSError, RuntimeError)):  # not bad input as far as we know
            text = f"{type(error).__name__}: {text} (FASTDIT_DEBUG=1 shows where)"
        print(f"fastdit: {text}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("fastdit: interrupted", file=sys.stderr)
        sys.exit(130)
