"""Options that several commands take, and how commands speak beside their output."""

from __future__ import annotations

from typing import Annotated

import typer

from .devices import check_device


def _checked(device: str | None) -> str | None:
    if device is not None:
        check_device(device)
    return device


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]
Device = Annotated[str | None, typer.Option(help="Where networks run: cpu, cuda, mps.", callback=_checked)]
Features = Annotated[str | None, typer.Option(help="Feature space: raw, pca, pca:K, effnet-lite0, inception.")]


def say(text: str) -> None:
    """Print to standard error."""
    typer.echo(text, err=True)
