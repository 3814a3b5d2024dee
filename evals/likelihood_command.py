"""`pathline likelihood`, the command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .cli_options import Device, Quiet


def likelihood(
    source: Annotated[str, typer.Argument(help="bed:NAME, a trained folder, or a pipeline name.")],
    *,
    data: Annotated[str | None, typer.Option(help="As in digits:test; default what the source was made for.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Number of samples.")] = 64,
    method: Annotated[str, typer.Option(help="dopri5 and its like, or the method of a table.")] = "dopri5",
    steps: Annotated[int | None, typer.Option(help="Steps of a table.")] = None,
    grid: Annotated[str, typer.Option(help="Grid of a table.")] = "logsnr",
    rtol: Annotated[float, typer.Option(help="Tolerance of an adaptive method.")] = 1e-4,
    divergence: Annotated[
        str | None, typer.Option(help="exact, rademacher or gaussian; default exact up to 64 dimensions.")
    ] = None,
    probes: Annotated[int, typer.Option(min=1, help="Random probes of a sample.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the choice of data, of dequantisation and probes.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples at once.")] = 64,
    device: Device = None,
    out: Annotated[Path | None, typer.Option(help="Also write the numbers as JSON.")] = None,
    quiet: Quiet = False,
) -> None:
    """Log-density and bits per dimension of data under a model, by its probability flow."""
    from .likelihoods import LikelihoodSettings, measure_likelihood, save_report, summary_lines

    settings = LikelihoodSettings(
        source, data, count, method, steps, grid, rtol, divergence, probes, seed, batch_size, device or "cpu"
    )
    if quiet:
        found = measure_likelihood(settings)
    else:
        from tqdm.auto import tqdm

        with tqdm(total=count, desc=method, unit="sample") as bar:
            found = measure_likelihood(settings, bar.update)
    typer.echo(summary_lines(found))
    if out is not None:
        save_report(found, settings, out)
        typer.echo(f"Numbers written to {out}")
