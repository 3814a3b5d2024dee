"""Producing the samples of one cell, through the library or through a diffusers loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pathline.samplers import START_NOISE, Table, keyed_normal, list_adaptive, plan, sample
from pathline.samplers.anchors import missing_anchors
from pathline.samplers.fitted import check_fit

from .counting import CountedGuidance, CountedModel
from .scheduler_loop import SchedulerRun
from .settings import Cell, SweepSettings
from .sources import Source

Report = Callable[[int], None]


@dataclass(frozen=True)
class Outcome:
    """Samples of a cell, the counted evaluations per sample, network rows per sample and seconds."""

    samples: Tensor
    nfe: float
    network_rows: float
    seconds: float


def start_state(source: Source, seed: int, indices: range, dtype: torch.dtype, device: str = "cpu") -> Tensor:
    """The state at node 0 of some global sample indices: depends on seed and index alone, not on the batch."""
    z = keyed_normal(source.shape, seed, indices, START_NOISE, dtype=dtype, device=device)
    return z * float(source.path.noise(0.0))


def batches(count: int, size: int, start: int = 0) -> Iterator[range]:
    """Consecutive index ranges of at most ``size`` that cover start...start + count - 1."""
    for first in range(start, start + count, size):
        yield range(first, min(first + size, start + count))


def table_of(source: Source, cell: Cell) -> Table:
    """The table a cell runs; every refusal happens here, before any network call."""
    table = _table_of(source, cell)
    if table.stochastic and (source.flow_only or source.coupled):
        raise ValueError(
            f"method {str(cell.method)!r} adds noise, which asks for a score; {source.name} is a flow alone and gives "
            "none (an interpolant between two laws, a Schrödinger bridge, a potential, coupled noise and data): choose "
            "a deterministic method, such as heun with --grid time"
        )
    return table


def _table_of(source: Source, cell: Cell) -> Table:
    if cell.table_file is not None:
        return _stored_table(cell, cell.table_file)
    check_budgeted(cell)
    if cell.method.options.keys() & _RESERVED:
        wrong = ", ".join(sorted(cell.method.options.keys() & _RESERVED))
        raise ValueError(f"{wrong} cannot be an option of method {cell.method.name!r}; sweeps set it themselves")
    return plan(
        source.path,
        cell.method.name,
        nfe=cell.nfe,
        grid=cell.grid.name,
        grid_options=cell.grid.options,
        **cell.method.options,
    )


def _stored_table(cell: Cell, file: Path) -> Table:
    if cell.method.options:
        raise ValueError(f"{cell.method} is the file of a table, which takes no options")
    if not file.is_file():
        raise ValueError(f"table file {file} does not exist")
    table = Table.load(file)
    if table.evaluations != cell.nfe:
        raise ValueError(f"the table in {file} makes {table.evaluations} calls and runs at no other number")
    return table


def check_table_fits(source: Source, cell: Cell, settings: SweepSettings) -> None:
    """Refuse a stored table that belongs to another path, prediction, guidance or network.

    Raises
    ------
    ValueError
        With what differs. With `settings.force` only another path is refused, and a table that needs anchors.
    """
    if cell.table_file is None or not cell.table_file.is_file():
        return
    table = Table.load(cell.table_file)
    if missing := missing_anchors(table):
        raise ValueError(f"{cell.table_file} needs {', '.join(sorted(missing))} whenever it is run; use sample(...)")
    try:
        check_fit(
            table.released() if settings.force else table,
            path=source.path,
            prediction=source.prediction,
            guidance=source.guidance(settings.guidance),
            network=source.identity,
        )
    except ValueError as error:
        raise ValueError(f"{cell.table_file} does not belong to {source.name}: {error} (here --force)") from None


def check_budgeted(cell: Cell) -> None:
    """Refuse methods that choose their own steps.

    What such a method costs is known only after its run, and where it steps depends on the whole batch: a cell, which
    is named by its budget and the same for any batch size, cannot hold one.

    Raises
    ------
    ValueError
        Saying what to do instead.
    """
    name = cell.method.name
    if name in list_adaptive():
        raise ValueError(
            f"method {name!r} chooses its own steps, so no budget of evaluations can be set for it; run it with "
            f"pathline.samplers.sample(model, x, path=..., method={name!r}, rtol=..., full=True), whose result counts "
            "its evaluations, beside table methods at that nfe"
        )


_RESERVED = {"nfe", "steps", "grid", "grid_options", "prediction", "seed", "sample_offset", "model_kwargs", "path"}


def run_cell(source: Source, cell: Cell, settings: SweepSettings, report: Report | None = None) -> Outcome:
    """Sample one cell in batches and count what it cost.

    Parameters
    ----------
    source : Source
    cell : Cell
    settings : SweepSettings
        samples, batch_size, dtype, device and guidance are read.
    report : callable, optional
        Called with the number of samples finished after every batch.
    """
    dtype = getattr(torch, settings.dtype)
    model = CountedModel(source.model)
    guidance = source.guidance(settings.guidance)
    guide = CountedGuidance(guidance) if guidance is not None else None
    loop = SchedulerRun(source, cell, table_of(source, cell)) if cell.runner == "scheduler" else None
    parts = []
    began = time.perf_counter()
    with torch.no_grad():
        for indices in batches(settings.samples, settings.batch_size):
            x = start_state(source, cell.seed, indices, dtype, settings.device)
            kwargs = source.kwargs(indices, settings.device)
            if loop is not None:
                out = loop(x, indices, kwargs)
            else:
                out = _by_library(source, model, cell, x, indices, kwargs, guide)
            parts.append(out.cpu())
            if report is not None:
                report(len(indices))
    seconds = time.perf_counter() - began
    rows = (model.rows if loop is None else loop.rows) / settings.samples
    nfe = rows if guide is None else guide.rows / settings.samples
    return Outcome(torch.cat(parts), nfe, rows, seconds)


def _by_library(
    source: Source, model: CountedModel, cell: Cell, x: Tensor, indices: range, kwargs: dict[str, Any], guide: Any
) -> Tensor:
    if cell.table_file is None:
        method: dict[str, Any] = {
            "method": cell.method.name,
            "nfe": cell.nfe,
            "grid": cell.grid.name,
            "grid_options": cell.grid.options,
            **cell.method.options,
        }
    else:
        method = {"method": table_of(source, cell).released()}  # checked before the first call
    out = sample(
        model,
        x,
        path=source.path,
        prediction=source.prediction,
        model_kwargs=kwargs,
        guidance=guide,
        seed=cell.seed,
        sample_offset=indices.start,
        **method,
    )
    assert isinstance(out, Tensor)
    return out
