"""Samples of a source as a PNG grid or an .npz."""

from __future__ import annotations

from pathlib import Path

from pathline.samplers.defaults import GUIDED, default_settings
from pathline.training import save_preview

from .images import save_samples
from .runners import check_table_fits, run_cell, table_of
from .settings import Cell, Spec, SweepSettings
from .sources import Source, open_source


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
        cell = _untuned(cell, source, settings.guidance)
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


def _untuned(cell: Cell, source: Source, guidance: float | None) -> Cell:
    if source.flow_only:  # the defaults may take the start for a standard normal that knows nothing of the data
        return cell._replace(method=Spec("heun" if cell.nfe > 1 else "euler", {}), grid=Spec("time", {}))
    found = default_settings(
        cell.nfe,
        source.path,
        prediction=source.prediction,
        guided=guidance is not None and guidance > GUIDED,
        analytic=cell.runner == "sample",  # pipelines of flow models have no place for an analytic first step
    )
    method, grid = Spec(found.method, dict(found.options)), Spec(found.grid, dict(found.grid_options))
    return cell._replace(method=method, grid=grid)
