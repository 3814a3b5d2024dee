"""`pathline calibrate --between`: a table for a number of calls or a guidance scale between those that were fitted."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pathline.samplers import Table
from pathline.samplers.fitted import check_fit, described_fit

from .calibration import CalibrationSettings, check_settings
from .runners import start_state
from .sources import Source, open_source

if TYPE_CHECKING:
    from pathline.samplers.calibrate.interpolation import Interpolated

_JUDGING = 16  # samples at most
_FIRST = 1_000_000  # index of the first of them: none that a table was fitted to
_VERSIONS = ("pathline", "torch")


def calibrate_between(
    settings: CalibrationSettings, files: Sequence[Path], out: Path, *, overwrite: bool = False
) -> str:
    """Interpolate between fitted tables, keep what is best on a few samples, and save it; returns what to tell.

    Parameters
    ----------
    settings : CalibrationSettings
        What is wanted; `nfe` is interpolated, or, where all tables have it, the guidance scale.
    files : sequence of at least 2 Path
        Tables fitted to this network from one base, such as those of --method rows.
    out : Path
    overwrite : bool
        Replace `out` where it exists.

    Raises
    ------
    ValueError
        Before any network call: an `out` that exists, files that are no tables, tables of another network, path or
        prediction, of different bases, or too far from what is wanted; options that belong to a fit.
    BudgetError
        The budget does not pay for judging on 2 samples.
    """
    check_settings(settings, out, overwrite)
    if settings.method != "auto" or settings.objective != "error":
        raise ValueError("--between fits nothing; leave out --method and --objective")
    tables = [Table.load(file) for file in files]
    source = open_source(settings.source, settings.device)
    for file, table in zip(files, tables, strict=True):
        _check_origin(file, table, source)
    found = _judged(settings, source, tables)
    facts: dict[str, Any] = {"network": source.identity, "source": source.name, "nfe": found.table.evaluations}
    facts |= {"holdout_error": found.holdout_error, "untuned_error": found.base_error, "calls": found.calls}
    facts |= {"seed": settings.seed, "versions": {name: importlib.metadata.version(name) for name in _VERSIONS}}
    guidance = source.guidance(settings.guidance)
    fit = described_fit(path=source.path, prediction=source.prediction, guidance=guidance, **facts)
    table = replace(found.table, provenance={**found.table.provenance, **fit})
    out.parent.mkdir(parents=True, exist_ok=True)
    table.save(out)
    lines = [*found.notes, f"{table.method}: error {found.holdout_error:.5g}, best untuned {found.base_error:.5g}"]
    lines[-1] += f", for {found.calls} network calls; written to {out}"
    return "\n".join(lines)


def _judged(settings: CalibrationSettings, source: Source, tables: Sequence[Table]) -> Interpolated:
    from pathline.samplers.anchors import missing_anchors
    from pathline.samplers.calibrate.interpolation import interpolate_tables, judged_interpolation, judging_calls
    from pathline.samplers.calibrate.learned import start_prediction
    from pathline.samplers.calibrate.trajectories import Problem

    asked: dict[str, Any] = {"nfe": settings.nfe}
    if all(table.evaluations == settings.nfe for table in tables):
        if settings.guidance is None:
            raise ValueError(f"all tables take {settings.nfe} calls; name the scale between theirs with --guidance")
        scales = [table.provenance.get("guidance") for table in tables]
        asked = {"guidance": settings.guidance, "guidances": [1.0 if s is None else s for s in scales]}
    else:
        for table in tables:
            check_fit(table, guidance=source.guidance(settings.guidance))
    interpolate_tables(source.path, tables, **asked)  # refuses before the first call what cannot be interpolated
    guidance = source.guidance(settings.guidance)
    whole = Problem(source.model, source.path, source.prediction, guidance, budget=settings.budget)
    count = int(min(settings.samples or _JUDGING, settings.budget // judging_calls(whole, settings.nfe)))
    indices = range(_FIRST, _FIRST + max(count, 2))
    problem = replace(whole, model_kwargs=source.kwargs(indices, settings.device))
    x = start_state(source, settings.seed, indices, torch.float32, settings.device)
    mean = start_prediction(problem, x, settings.batch_size) if any(map(missing_anchors, tables)) else None
    return judged_interpolation(problem, x, tables, mean=mean, chunk=settings.batch_size, **asked)


def _check_origin(file: Path, table: Table, source: Source) -> None:
    if "network" not in table.provenance:
        raise ValueError(f"{file} does not say which network it was fitted to; --between takes tables of calibrate")
    try:
        check_fit(table, path=source.path, prediction=source.prediction, network=source.identity)
    except ValueError as error:
        raise ValueError(f"{file} does not belong to {source.name}: {error}") from None
