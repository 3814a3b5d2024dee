"""Samples of a source as a PNG grid or an .npz."""

from __future__ import annotations

from pathlib import Path

from pathline.samplers import Table
from pathline.samplers.fitted import is_table
from pathline.training import save_preview

from .choice import untuned_choice
from .images import save_samples
from .runners import check_table_fits, run_cell, table_of
from .settings import SweepSettings
from .sources import open_source

_CALLS = 20


def default_calls(method: str | None) -> int:
    """Network calls of a run that names none: those of a table's file, else 20."""
    if method is None or not is_table(method) or not Path(method).is_file():
        return _CALLS
    return Table.load(Path(method)).evaluations


def draw_samples(
    settings: SweepSettings, count: int, out: Path, progress: bool = True, *, untuned: bool = False
) -> float:
    """Draw ``count`` samples of the first cell of ``settings``, write them, return counted evaluations per sample.

    With ``untuned``, method and grid are those that ``pathline.samplers.sample`` chooses for the budget.

    Raises
    ------
    ValueError
        If the file is neither .png nor .npz, or the samples are not images.
    """
    if out.suffix not in (".png", ".npz"):
        raise ValueError(f"samples are written to .png or .npz, got {out.name!r}")
    source = open_source(settings.source, settings.device)
    if len(source.shape) != 3 or source.shape[0] not in (1, 3):
        raise ValueError(f"{source.name} makes samples of shape {source.shape}, which are not images")
    cell = next(settings.cells())
    if untuned:
        # pipelines of flow models have no place for an analytic first step
        method, grid = untuned_choice(source, cell.nfe, guidance=settings.guidance, analytic=cell.runner == "sample")
        cell = cell._replace(method=method, grid=grid)
    table_of(source, cell)
    check_table_fits(source, cell, settings)
    if progress:
        from tqdm.auto import tqdm

        with tqdm(total=settings.samples, desc=str(cell.method), unit="sample") as bar:
            outcome = run_cell(source, cell, settings, bar.update)
    else:
        outcome = run_cell(source, cell, settings)
    images = outcome.samples[:count]
    if out.suffix == ".png":
        save_preview(out, images)
    else:
        save_samples(out, images, seed=cell.seed, nfe=outcome.nfe, method=str(cell.method), grid=str(cell.grid))
    return outcome.nfe
