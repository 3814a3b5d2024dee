"""`pathline calibrate`, the command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .cli_options import Device, Features, Quiet, say


def calibrate(
    source: Annotated[str | None, typer.Argument(help="bed:NAME, a trained folder, or a pipeline name.")] = None,
    *,
    model: Annotated[str | None, typer.Option(help="The same, by name.")] = None,
    nfe: Annotated[int, typer.Option(help="Network calls of the table that is sought.")],
    budget: Annotated[int, typer.Option(help="Network calls for everything; a guided pair is one.")] = 20_000,
    method: Annotated[str, typer.Option(help="auto, or one fit: learned, iia, dc, gits ...")] = "auto",
    between: Annotated[
        str | None, typer.Option(help="No fit: a table between these, as in 'a.safetensors b.safetensors'.")
    ] = None,
    guidance: Annotated[float | None, typer.Option(help="Classifier-free guidance scale.")] = None,
    afs: Annotated[bool, typer.Option(help="Analytic first steps too; flow pipelines of diffusers run none.")] = True,
    class_means: Annotated[bool, typer.Option("--class-means", help="May need class means when it is run.")] = False,
    stats: Annotated[str | None, typer.Option(help="The data, for tables without calls: as `pathline rank`.")] = None,
    objective: Annotated[
        str, typer.Option(help="What is compared: error (to converged ends), or distance (of features to the data).")
    ] = "error",
    features: Features = None,
    images: Annotated[int | None, typer.Option(help="Samples of a table for the distance; default 500.")] = None,
    data: Annotated[str | None, typer.Option(help="The data of the distance, as for `pathline sweep`.")] = None,
    samples: Annotated[int | None, typer.Option(help="Start noises, a third (up to half of few) to judge.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the start noises.")] = 0,
    out: Annotated[Path, typer.Option(help="A .safetensors or .json file.")] = Path("table.safetensors"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file of --out.")] = False,
    batch_size: Annotated[int, typer.Option(help="Samples at once.")] = 256,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Find the best table of a number of calls for a network, by its error on noises kept out, and save it."""
    from .calibration import CalibrationSettings, calibrate_source, parts_folder, summary_of

    given = [name for name in (source, model) if name is not None]
    if len(given) != 1:
        raise ValueError("name the source once: pathline calibrate SOURCE, or pathline calibrate --model SOURCE")
    settings = CalibrationSettings(
        given[0], nfe, guidance, budget, samples, seed, batch_size, device or "cpu", method, afs, class_means, stats,
        objective, features, images, data,
    )  # fmt: skip
    if between is not None:
        from .calibration_between import calibrate_between

        typer.echo(calibrate_between(settings, [Path(name) for name in between.split()], out, overwrite=overwrite))
        return
    try:
        choice = calibrate_source(settings, out, progress=not quiet, overwrite=overwrite)
    except KeyboardInterrupt:
        say(f"Interrupted; what is finished is in {parts_folder(out)}. The same command goes on from there.")
        raise typer.Exit(130) from None
    typer.echo(summary_of(choice, out))
