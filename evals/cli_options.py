"""Options that several commands take, and how commands speak beside their output."""

from __future__ import annotations

from typing import Annotated

import typer

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]
Device = Annotated[str | None, typer.Option(help="Where networks run: cpu, cuda, mps.")]
Features = Annotated[str | None, typer.Option(help="Feature space: raw, pca, pca:K, effnet-lite0, inception.")]


def say(text: str) -> None:
    """Print to standard error."""
    typer.echo(text, err=True)
