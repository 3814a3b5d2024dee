"""The command line. Heavy libraries are imported by the command that needs them, so that help is immediate."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .calibration_commands import calibrate
from .cli_options import Device, Features, Quiet, say
from .likelihood_command import likelihood

app = typer.Typer(
    name="pathline",
    help="Sample, train and compare diffusion, flow and bridge models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _words(text: str | None) -> tuple[str, ...] | None:
    """Split a list of specs at spaces; commas belong to the options of a spec."""
    return None if text is None else tuple(text.split())


def _integers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    from .settings import parse_integers

    return parse_integers(text)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)] = False,
) -> None:
    """Sample, train and compare diffusion, flow and bridge models."""
    if version:
        typer.echo(f"pathline {importlib.metadata.version('pathline')}")
        raise typer.Exit()


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(ctx: typer.Context) -> None:
    """Train a network on images; writes a diffusers pipeline folder (see `pathline train --help`)."""
    from pathline.training import cli as training

    command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    command.command(context_settings=training.CONTEXT_SETTINGS)(training.train)
    command(args=ctx.args, prog_name="pathline train")


@app.command()
def ema(
    run: Annotated[Path, typer.Argument(help="Folder of a run trained with --ema power, finished or not.")],
    *,
    std: Annotated[float, typer.Option(help="Length of the average: its standard deviation over the steps so far.")],
    out: Annotated[Path, typer.Option(help="Folder to write, as `pathline train` does.")],
    step: Annotated[int | None, typer.Option(help="Where the average ends; default the last snapshot.")] = None,
) -> None:
    """Average a run's weights over any length, after training, from its snapshots."""
    from pathline.training.power_averages import export_average

    typer.echo(f"saved {out} (profile within {export_average(run, std, out, step):.1%})")


@app.command()
def sweep(
    *,
    source: Annotated[
        str | None, typer.Argument(help="bed:NAME, a trained folder, or a diffusers pipeline name.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Settings file (.json or .toml); options override it.")] = None,
    methods: Annotated[
        str | None, typer.Option(help="Methods, as in 'ddim dpm++:order=3,variant=exact fitted-{nfe}.safetensors'.")
    ] = None,
    grids: Annotated[str | None, typer.Option(help="Grids, as in 'logsnr karras:rho=5'.")] = None,
    nfe: Annotated[str | None, typer.Option(help="Budgets, as in '3-6,8,10,20'.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds, as in '0-2'.")] = None,
    runners: Annotated[str | None, typer.Option(help="'sample', 'scheduler' or both.")] = None,
    samples: Annotated[int | None, typer.Option(help="Samples per cell.")] = None,
    features: Features = None,
    data: Annotated[str | None, typer.Option(help="Reference: statistics or sample .npz, folder, data set.")] = None,
    truth: Annotated[str | None, typer.Option(help="Method of the converged reference.")] = None,
    truth_steps: Annotated[int | None, typer.Option(help="Its steps; 0 leaves it out.")] = None,
    truth_grid: Annotated[str | None, typer.Option(help="Its grid; 'dense' by default.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Classifier-free guidance scale.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or float64.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples at once; changes no result.")] = None,
    device: Device = None,
    keep: Annotated[int | None, typer.Option(help="Images kept per cell for sample sheets.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Run tables fitted to another network or guidance.")] = False,
    out: Annotated[Path, typer.Option(help="Records file, appended to; a second run goes on.")] = Path(
        "out/records.jsonl"
    ),
    quiet: Quiet = False,
) -> None:
    """Compare methods over grids, budgets and seeds; results are appended to a records file."""
    overrides: dict[str, Any] = {k: v for k, v in locals().items() if k not in ("config", "out", "quiet")}
    from .settings import load_settings
    from .summary import sections
    from .sweep import run_sweep
    from .tables import print_sections

    overrides |= {"methods": _words(methods), "grids": _words(grids), "runners": _words(runners)}
    overrides |= {"nfe": _integers(nfe), "seeds": _integers(seeds), "force": force or None}
    settings = load_settings(config, overrides)
    try:
        result = run_sweep(settings, out, progress=not quiet, say=say)
    except KeyboardInterrupt:
        say(f"Interrupted; every finished result is in {out}. The same command goes on from there.")
        raise typer.Exit(130) from None
    if int(os.environ.get("RANK", "0")) == 0:
        print_sections(sections(result.records), keys=("fd", "rmse"))
        typer.echo(f"{len(result.records)} results in {out} ({result.new} new). Next: pathline report {out}")


@app.command()
def report(
    records: Annotated[list[Path], typer.Argument(help="Records files of sweeps.")],
    *,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("out/report"),
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "Sampler comparison",
) -> None:
    """Turn records into a table, PNG plots, sample sheets and one self-contained HTML page."""
    from .report import write_report
    from .tables import print_sections

    written = write_report(records, out, title)
    for text in written.warnings:
        say(f"warning: {text}")
    print_sections(written.sections, keys=("fd", "rmse"))
    typer.echo(f"Report: {written.page}")


@app.command()
def rerun(
    records: Annotated[Path, typer.Argument(help="Records file.")],
    key: Annotated[str, typer.Argument(help="Id of a record, or its beginning.")],
    *,
    source: Annotated[str | None, typer.Option(help="Where the source is now, if it moved.")] = None,
    device: Device = None,
) -> None:
    """Compute a stored result again from its record alone and print both."""
    from .rerun import rerun_record

    for name, (stored, fresh) in rerun_record(records, key, source, device or "cpu").items():
        typer.echo(f"{name:14s} stored {stored!s:24s} now {fresh}")


@app.command()
def stats(
    data: Annotated[str, typer.Argument(help="Statistics .npz, sample .npz, image folder or data set name.")],
    against: Annotated[str | None, typer.Argument(help="Second set: print the distance between the two.")] = None,
    *,
    features: Features = "raw",
    out: Annotated[Path | None, typer.Option(help="Write the statistics of the first set to this .npz.")] = None,
    device: Device = None,
) -> None:
    """Show or write reference statistics (mu, sigma, metadata), or compare two sets."""
    from .statistics import describe_statistics

    typer.echo(describe_statistics(data, against, features or "raw", out, device or "cpu"))


@app.command()
def methods(
    *,
    format: Annotated[str, typer.Option("--format", help="text, markdown, json or bibtex.")] = "text",
) -> None:
    """List every registered method with order, options and reference."""
    from .catalogue import method_table

    typer.echo(method_table(format), nl=False)


@app.command()
def inspect(
    method: Annotated[str, typer.Argument(help="A method, as in 'dpm++:order=3'.")],
    *,
    path: Annotated[
        str,
        typer.Option(help="Path by name, as in 'linear' or 'vp:beta_max=10'; a bridge: brownian, ddbm-vp, ddbm-ve."),
    ] = "linear",
    grid: Annotated[str, typer.Option(help="Grid, as in 'logsnr' or 'karras:rho=5'.")] = "logsnr",
    nfe: Annotated[int, typer.Option(help="Budget of evaluations.")] = 5,
    stats: Annotated[str | None, typer.Option(help="Data for the Gaussian transfer: as `pathline rank` takes.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw stability and transfer to this .png.")] = None,
    save: Annotated[Path | None, typer.Option(help="Write the table to .json or .safetensors.")] = None,
) -> None:
    """Compile a method, print its rows and what they say: orders, exactness, stability, Gaussian transfer."""
    from .catalogue import compile_table, inspect_table

    table = compile_table(method, path, grid, nfe)
    typer.echo(table.describe())
    found = inspect_table(table, stats)
    typer.echo(f"\n{found}")
    if plot is not None:
        from .analysis_plots import draw_analysis
        from .plots import png_bytes, save_png

        save_png(png_bytes(draw_analysis(found)), plot)
        typer.echo(f"Plot written to {plot}")
    if save is not None:
        table.save(save)
        typer.echo(f"Table written to {save}")


@app.command(context_settings={"allow_extra_args": True})
def rank(
    ctx: typer.Context,
    *,
    stats: Annotated[str, typer.Option(help="Statistics or sample .npz, image folder, data set or bed:NAME.")],
    nfe: Annotated[str, typer.Option(help="Budgets, as in 5 8 10 or 5,8,10 or 4-8.")] = "5 8 10",
    path: Annotated[str, typer.Option(help="Path by name, as in 'linear' or 'vp:beta_max=10'.")] = "linear",
    methods: Annotated[str | None, typer.Option(help="Methods; every declared configuration by default.")] = None,
    grids: Annotated[str | None, typer.Option(help="Grids, as in 'time gaussian'; all by default.")] = None,
    afs: Annotated[bool, typer.Option(help="Rank analytic first steps too (where methods are not named).")] = True,
    top: Annotated[int, typer.Option(min=1, help="Rows shown for each budget.")] = 15,
    save: Annotated[Path | None, typer.Option(help="Write all rows to .csv or .json.")] = None,
) -> None:
    """Rank methods and grids for a data set from its covariance alone; no network, no samples."""
    from .ranking import rank_data_set, ranking_text, save_ranking

    budgets = _integers(",".join([*nfe.split(), *ctx.args]))  # what follows `--nfe 5` as in `--nfe 5 8 10`
    found = rank_data_set(stats, path, budgets or (), _words(methods), _words(grids), afs=afs)
    typer.echo(ranking_text(found, top))
    if save is not None:
        save_ranking(found, save)
        typer.echo(f"All rows written to {save}")


@app.command()
def sample(
    source: Annotated[str, typer.Argument(help="bed:NAME, a trained folder, or a diffusers pipeline name.")],
    *,
    out: Annotated[Path, typer.Option(help="A .png grid or an .npz with arr_0 (uint8, NHWC).")] = Path("samples.png"),
    count: Annotated[int, typer.Option(min=1, help="Number of samples.")] = 64,
    method: Annotated[
        str | None,
        typer.Option(help="A method, as in 'unipc:order=3', or the file of a table; by default chosen for the budget."),
    ] = None,
    grid: Annotated[str | None, typer.Option(help="Grid of the method; 'logsnr' by default.")] = None,
    nfe: Annotated[int | None, typer.Option(help="Evaluations per sample, at most; a table's own, else 20.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Run a table fitted to another network or guidance.")] = False,
    seed: Annotated[int, typer.Option(help="Seed; sample i is the same for any batch size.")] = 0,
    guidance: Annotated[float | None, typer.Option(help="Classifier-free guidance scale.")] = None,
    runner: Annotated[str, typer.Option(help="'sample' or 'scheduler'.")] = "sample",
    batch_size: Annotated[int, typer.Option(help="Samples at once.")] = 256,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Draw samples and write a PNG grid or an .npz."""
    from .drawing import default_calls, draw_samples
    from .settings import SweepSettings

    if method is None and grid is not None:
        raise ValueError(f"--grid {grid} needs a --method; without one both are chosen for the budget")
    settings = SweepSettings(
        source,
        methods=(method or "ddim",),
        grids=(grid or "logsnr",),
        nfe=(default_calls(method) if nfe is None else nfe,),
        seeds=(seed,),
        runners=(runner,),
        samples=max(2, count),
        guidance=guidance,
        batch_size=batch_size,
        device=device or "cpu",
        force=force,
    )
    spent = draw_samples(settings, count, out, progress=not quiet, untuned=method is None)
    typer.echo(f"{count} samples at {spent:g} evaluations each written to {out}")


app.command()(calibrate)
app.command()(likelihood)


@app.command()
def bench(
    *,
    repeats: Annotated[int, typer.Option(min=3, help="Interleaved repeats; the median counts.")] = 15,
    steps: Annotated[int, typer.Option(min=2, help="Steps of each run.")] = 20,
    device: Annotated[str, typer.Option(help="Where the latents are, such as cuda.")] = "cpu",
    fused: Annotated[bool, typer.Option("--fused", help="Also time rows compiled by torch.compile.")] = False,
    out: Annotated[Path | None, typer.Option(help="Also write the numbers as JSON.")] = None,
) -> None:
    """Time scheduler overhead against diffusers in one process, as ratios."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy: its threads would take torch's cores in turn
    from .overhead import run_overhead

    run_overhead(repeats=repeats, steps=steps, out=out, device=device, fused=fused)


@app.command()
def demo(
    *,
    out: Annotated[Path, typer.Option(help="Folder to write; what it already holds is reused.")] = Path("out/demo"),
    quiet: Quiet = False,
) -> None:
    """Train a small generator on digit images, compare samplers on it and write a report (minutes on a CPU)."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads starve each other
    from .demo import run_demo

    try:
        run_demo(out, progress=not quiet, say=typer.echo)
    except KeyboardInterrupt:
        say(f"Interrupted; what is finished is in {out}. The same command goes on from there.")
        raise typer.Exit(130) from None


@app.command()
def agree(
    classes: Annotated[list[str] | None, typer.Argument(help="Classes of diffusers; all by default.")] = None,
    *,
    out: Annotated[Path | None, typer.Option(help="Also write the page of the documentation here.")] = None,
    all_steps: Annotated[bool, typer.Option("--all-steps", help="Every setting at all steps from 1 to 50.")] = False,
    quiet: Quiet = False,
) -> None:
    """Compare our tables with the schedulers of diffusers, class by class (minutes)."""
    from pathline.samplers.files import replacing

    from .agreement import agreement, agreement_page, print_agreement

    results = agreement(classes or None, all_steps=all_steps, report=None if quiet else say)
    print_agreement(results)
    if out is not None:
        page = agreement_page(results, all_steps)
        with replacing(out, "wb") as stream:
            stream.write(page.encode())
        typer.echo(f"Page written to {out}")


@app.command()
def zoo(
    *,
    out: Annotated[Path, typer.Option(help="Folder of the pictures; the page goes beside it.")] = Path("docs/zoo"),
    methods: Annotated[str | None, typer.Option(help="Only these methods, as in 'unipc heun'.")] = None,
    quiet: Quiet = False,
) -> None:
    """Write the page of all methods: facts, stability regions and error per evaluation (minutes)."""
    from .zoo import write_zoo

    page, count = write_zoo(out, _words(methods), None if quiet else say)
    typer.echo(f"{count} methods written to {page}")


def main() -> None:
    """Entry point of the console script; failures end with one sentence and a non-zero code."""
    try:
        app()
    except (ValueError, ArithmeticError, OSError, ImportError, MemoryError) as error:
        if os.environ.get("PATHLINE_DEBUG"):
            raise
        say(f"pathline: error: {error}")
        sys.exit(1)
