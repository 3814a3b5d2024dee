"""The fits that a calibration can try, by name; a new one is a function here and a line in `FITTERS`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..analysis import Spectrum
from ..ems import ModelStatistics
from ..files import replacing
from ..nodes import Nodes
from ..sampling import plan
from ..table import Table
from .ays import align_steps
from .bns import bespoke_solver
from .compensation import search_ratios
from .decision_search import search_steps
from .decisions import DecisionSpace
from .extractor import Extractor
from .gaussian_optimal import gaussian_table
from .gradient import train_rows
from .integration import fit_integration
from .ld3 import learn_levels
from .learned import learn_rows, start_prediction
from .level_search import gits
from .model_statistics import measure_statistics
from .objectives import FeatureDistance, GaussianError
from .row_fits import Reference
from .trajectories import Problem
from .untuned import STARTS

_RATIO_SAMPLES = 10  # as published
_GROUPS = (1, 3)
_STATISTICS_LEVELS, _STATISTICS_BATCH = 61, 16
_SHRINKAGES = (1e-3, 1e-6)
_HELD = 0.25  # of the trajectories decide within a fit


@dataclass(frozen=True, eq=False)
class FitTask:
    """What a fit is given.

    Attributes
    ----------
    problem : Problem
        Of the samples to fit to. What judging the fit costs is reserved.
    x_init : Tensor (B, ...)
        Their starts.
    nfe : int
        Network calls of the table that is sought, at most.
    base : Table
        The best untuned method with `nfe` steps.
    on : str
        Its name.
    grids : tuple of Nodes
        Its levels, and those of the next best on other grids.
    reference : callable
        Converged trajectories of `x_init` at many levels; paid for by the first fit that asks.
    arrays : bool
        Whether the table may hold arrays.
    analytic : bool
        Whether its first call may come after an analytic first step.
    condition_means : bool
        Whether it may need an anchor at run time, the mean of each sample's condition.
    chunk : int, optional
        Largest batch given to the network.
    spectrum : Spectrum, optional
        Of the data, for tables that need no network call.
    distance : FeatureDistance, optional
        What chooses in the place of the error to converged end points.
    file : callable
        Where a fit of this name keeps what it has measured so far, None where nothing is kept.
    """

    problem: Problem
    x_init: Tensor
    nfe: int
    base: Table
    on: str
    grids: tuple[Nodes, ...]
    reference: Callable[[], Reference]
    arrays: bool = True
    analytic: bool = True
    condition_means: bool = False
    chunk: int | None = None
    spectrum: Spectrum | None = None
    distance: FeatureDistance | None = None
    file: Callable[[str], Path | None] = lambda name: None

    @property
    def known(self) -> Reference:
        """The converged trajectories, for a fit that pays for its own calls."""
        return replace(self.reference(), problem=self.problem)

    @property
    def extractor(self) -> Extractor | None:
        """The features in which a fit that can shall come near, None where values count."""
        return None if self.distance is None else self.distance.extractor

    @property
    def inside(self) -> str:
        """How a fit's name ends where it works on features."""
        return "" if self.extractor is None else f" in {self.extractor.name}"

    def states_at(self, nodes: Nodes) -> Tensor:
        """Converged states (N + 1, B, ...) at levels, between those of the trajectories by cubic interpolation."""
        known = self.reference()
        between = [known.at(nodes.level(k)) for k in range(1, nodes.steps)]
        return torch.stack([known.start, *between, known.end])


Fit = Callable[[], Table]
Fitter = Callable[[FitTask], Iterator[tuple[str, Fit]]]
"""The fits of one kind, each with the name of its candidate; they raise ValueError where they are not possible."""


def _gaussian(task: FitTask) -> Iterator[tuple[str, Fit]]:
    def fit(shrinkage: float) -> Table:
        if task.spectrum is None:
            raise ValueError("it needs the data's covariance (spectrum=..., or --stats)")
        options = {"order": 2, "afs": "unit" if task.analytic else False}
        return gaussian_table(task.problem.path, task.nfe, task.spectrum, options=options, shrinkage=shrinkage).table

    for shrinkage in _SHRINKAGES:
        yield f"rows from the data's covariance, ridge {shrinkage:g}", partial(fit, shrinkage)


def _learned(task: FitTask) -> Iterator[tuple[str, Fit]]:
    image = task.x_init.ndim == 4 and min(task.x_init.shape[-2:]) > 1
    groups = _GROUPS if task.arrays and image else (1,)

    def rows(afs: str, file: str, mean: Callable[[], Tensor | None]) -> Table:
        options = {"order": 2, "afs": task.analytic and afs}
        return learn_rows(
            task.problem, task.x_init, task.nfe, options=options, mean=mean(), holdout=_HELD, groups=groups,
            reference=task.known, chunk=task.chunk, state=task.file(file),
        ).table  # fmt: skip

    def mean() -> Tensor:
        found = start_prediction(task.problem, task.x_init, task.chunk)
        return found if task.condition_means else found.mean(0, keepdim=True)

    def on_base() -> Table:
        return learn_rows(
            task.problem, task.x_init, task.nfe, method=task.base.method, options=task.base.options,
            grids=task.grids, holdout=_HELD, reference=task.known, chunk=task.chunk,
            state=task.file("learned-base.npz"),
        ).table  # fmt: skip

    yield "learned rows", partial(rows, "unit", "learned.npz", lambda: None)
    yield f"learned rows from {task.on}", on_base
    each = task.condition_means and not task.problem.one_condition(len(task.x_init))
    if task.arrays or each:
        of = "each condition" if each else "the data"
        yield f"learned rows with the mean of {of}", partial(rows, "gaussian", "learned-mean.npz", mean)


def _rows(task: FitTask) -> Iterator[tuple[str, Fit]]:
    def fit() -> Table:
        options = {"order": 2, "afs": task.analytic and "unit"}
        return learn_rows(
            task.problem, task.x_init, task.nfe, options=options, grids=STARTS[:1], holdout=_HELD,
            reference=task.known, chunk=task.chunk, state=task.file("rows.npz"),
        ).table  # fmt: skip

    yield f"rows of ipndm-2 from {STARTS[0]} levels", fit


def _integration(task: FitTask) -> Iterator[tuple[str, Fit]]:
    def fit() -> Table:
        nodes = task.grids[0]
        return fit_integration(
            task.problem, nodes, task.x_init, features="differences+noise", references=task.states_at(nodes),
            chunk=task.chunk,
        ).table  # fmt: skip

    yield f"IIA on the levels of {task.on}", fit


def _compensation(task: FitTask) -> Iterator[tuple[str, Fit]]:
    def fit(base: str, options: Mapping[str, Any]) -> Table:
        nodes, some = task.grids[0], task.x_init[:_RATIO_SAMPLES]
        part, states = task.problem.part(slice(0, len(some)), len(task.x_init)), task.states_at(nodes)[:, : len(some)]
        return search_ratios(
            part, nodes, some, base=base, base_options=options, references=states, chunk=task.chunk
        ).table  # fmt: skip

    yield f"DC UniPC-2 on the levels of {task.on}", partial(fit, "unipc", {"order": 2})
    yield f"DC {task.on}", partial(fit, task.base.method, task.base.options)


def _gits(task: FitTask) -> Iterator[tuple[str, Fit]]:
    @cache
    def levels() -> Nodes:
        kept = task.file("gits.json")
        if kept is not None and kept.exists():  # counted with the table that an earlier run made of them
            return Nodes(**json.loads(kept.read_text()), path=task.problem.path)
        nodes = gits(task.problem, task.x_init, task.nfe, chunk=task.chunk).nodes
        if kept is not None:
            with replacing(kept) as stream:
                json.dump({key: getattr(nodes, key).tolist() for key in ("signal", "noise", "time")}, stream)
        return nodes

    def fit(order: int) -> Table:
        return plan(None, "ipndm", grid=levels(), order=order)

    for order in (2, 3):
        yield f"ipndm-{order} on GITS levels", partial(fit, order)


def _measured(task: FitTask) -> Iterator[tuple[str, Fit]]:
    @cache
    def statistics() -> ModelStatistics:
        ends = task.reference().states[-1]  # as published for guided networks: samples of the run itself
        size = min(task.chunk or _STATISTICS_BATCH, _STATISTICS_BATCH)
        before, kept = task.problem.calls, task.file("statistics.npz")
        found = measure_statistics(task.problem, ends, levels=_STATISTICS_LEVELS, batch_size=size, resume=kept)
        task.problem.charge(before + found.metadata["calls"] - task.problem.calls)  # what an earlier run measured
        return found

    def fit(order: int) -> Table:
        return plan(None, "dpm-solver-v3", grid=task.grids[0], statistics=statistics(), order=order)

    for order in (2, 3):
        yield f"DPM-Solver-v3 of order {order} on the levels of {task.on}", partial(fit, order)


def _trained(task: FitTask) -> Iterator[tuple[str, Fit]]:
    def fit() -> Table:
        options = {"order": 2, "afs": task.analytic}
        return train_rows(
            task.problem, task.x_init, task.nfe, options=options, holdout=_HELD, chunk=task.chunk,
            reference=task.known, extractor=task.extractor, state=task.file("trained.pt"),
        ).table  # fmt: skip

    yield f"trained rows{task.inside}", fit


def _ld3(task: FitTask) -> Iterator[tuple[str, Fit]]:
    def fit() -> Table:
        return learn_levels(
            task.problem, task.x_init, task.nfe, chunk=task.chunk, reference=task.known, extractor=task.extractor,
            state=task.file("ld3.pt"),
        ).table  # fmt: skip

    yield f"UniPC-3 on LD3 levels{task.inside}", fit


def _bespoke(task: FitTask) -> Iterator[tuple[str, Fit]]:
    def fit() -> Table:
        return bespoke_solver(
            task.problem, task.x_init, task.nfe, chunk=task.chunk, reference=task.known, state=task.file("bns.pt")
        ).table

    yield "bespoke solver", fit


def _aligned(task: FitTask) -> Iterator[tuple[str, Fit]]:
    def fit(method: str, order: int) -> Table:
        return align_steps(
            task.problem, task.x_init, task.nfe, method=method, options={"order": order}, chunk=task.chunk,
            checkpoint=task.file(f"ays-{method}.npz"),
        ).table  # fmt: skip

    for method, order in (("dpm++", 2), ("ipndm", 2)):
        yield f"{method}-{order} on AYS levels", partial(fit, method, order)


def _searched(task: FitTask) -> Iterator[tuple[str, Fit]]:
    def fit() -> Table:
        afs = (False, "unit") if task.analytic else (False,)
        space = DecisionSpace(task.problem.path, task.nfe, afs=afs)
        known = task.spectrum if task.problem.guidance is None else None  # it tells nothing of guided errors
        return search_steps(
            task.problem, task.x_init, task.nfe, space=space, state=task.file("search.json"), chunk=task.chunk,
            objective="end point" if task.distance is None else task.distance.on,
            predictor=None if known is None else GaussianError(known),
        ).table  # fmt: skip

    yield f"S3 search{task.inside}", fit


FITTERS: dict[str, Fitter] = {
    "gaussian": _gaussian,
    "learned": _learned,
    "rows": _rows,
    "iia": _integration,
    "dc": _compensation,
    "gits": _gits,
    "v3": _measured,
    "trained": _trained,
    "ld3": _ld3,
    "bns": _bespoke,
    "ays": _aligned,
    "s3": _searched,
}
"""By the names that `choose` and `pathline calibrate --method` take; tables of "rows" have one base, so that
`interpolation` works between them."""
AUTO = ("gaussian", "iia", "learned", "dc", "gits")
"""What "auto" tries, in this order: fits that need no gradient, the cheapest first."""
