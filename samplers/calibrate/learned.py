"""Learned rows: additive residuals on the rows of an exact table, fitted to a few converged trajectories.

The fit is closed-form least squares row by row, on what the run itself has computed so far; only levels are searched,
by damped Gauss–Newton steps. Everything is judged on samples that take no part in it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..bases import BASES, CosineBasis
from ..border import Border
from ..grids import make_nodes
from ..loop import check_start
from ..nodes import Nodes
from ..numerics import Array
from ..registry import build_table
from ..table import Coefficient, Table
from ..transforms import DATA_MEAN, with_anchor
from .bases import in_basis, variance_groups
from .row_fits import Reference, fit_rows, make_reference, nodes_of, search_levels, trajectory_calls
from .trajectories import Problem, split
from .triangular import Triangular, triangular
from .untuned import STARTS

RIDGES = (1e-2, 1e-4, 1e-6)
"""Strengths of regularisation that are tried."""
_STRONG = (1.0, 1e-1, 1e-2)
"""Those tried with fewer trajectories than a row has weights, and where the strongest of the others serves best."""


@dataclass(frozen=True, eq=False)
class Learned:
    """A fitted table and how it was found.

    Attributes
    ----------
    table : Table
        With its provenance and these notes in it. Frame "none: fitted to trajectories", or the untuned base where
        nothing learned beat it on the hold-out. A mean
        that is the same for all samples is one of its constants, another one its anchor "data_mean".
    holdout_error, base_error : float
        Mean over hold-out samples of the RMSE per value to their converged end points: of the table, and of the best
        untuned base tried.
        The hold-out also chose among a handful of fits, so that new noises may do slightly worse.
    train_error : float
    calls : int
        Network calls that it took, references included.
    ridge : float
    notes : tuple of str
        What was decided on the way, for the user.
    """

    table: Table
    holdout_error: float
    base_error: float
    train_error: float
    calls: int
    ridge: float
    notes: tuple[str, ...] = ()


@dataclass(eq=False)
class _Task:
    """What every step of the search needs; `train` and `held` are in the coordinates of `basis`, if there is one."""

    method: str
    options: dict[str, Any]
    train: Reference
    held: Reference
    basis: CosineBasis | None
    constants: dict[str, Coefficient]
    notes: list[str] = field(default_factory=list)

    def base(self, lam: Array, groups: Any = None) -> Triangular:
        """The untuned rows whose calls are at λ; with an analytic first step the start is a node more."""
        start = float(self.train.problem.path.lam(0.0))
        nodes = nodes_of(self.train.problem, np.concatenate([[start], lam]) if self.afs else lam)
        table = build_table(self.method, nodes, **self.options)
        if self.train.anchors:
            table = replace(with_anchor(table, DATA_MEAN), constants=self.constants)
        return triangular(table).grouped(groups, None if self.basis is None else self.basis.name)

    @property
    def samples(self) -> int:
        return len(self.train.start) + len(self.held.start)

    @property
    def afs(self) -> bool:
        return bool(self.options.get("afs", False))

    def levels(self, grid: str | Nodes, nfe: int) -> Array:
        nodes = grid if isinstance(grid, Nodes) else make_nodes(self.train.problem.path, grid, nfe + self.afs)
        lam = nodes.lam[:-1]
        low, high = self.train.bounds
        return np.clip(lam[1:], low + 0.1 * np.arange(nfe), high) if self.afs else lam


def start_prediction(problem: Problem, x_init: Tensor, chunk: int | None = None) -> Tensor:
    """The guided data prediction (B, ...) at the path's start and state 0: about the mean under each condition.

    At the noise end a network's answer hardly depends on the state. Costs B calls, or one where all conditions are the
    same; then the result has shape (1, ...).
    """
    if problem.one_condition(len(x_init)):
        problem, x_init = problem.part(slice(0, 1), len(x_init)), x_init[:1]
    level = nodes_of(problem, np.array([float(problem.path.lam(0.0)), problem.path.lambda_max])).level(0)
    border = Border(problem, x_init, problem.prediction)
    parts = []
    with torch.no_grad():
        for rows, part in problem.chunks(len(x_init), chunk):
            border.model = part
            parts.append(border.at(level, "data", torch.zeros_like(x_init[rows]), part.model_kwargs))
    return torch.cat(parts)


def condition_means(problem: Problem, x_init: Tensor, chunk: int | None = None) -> dict[str, Tensor]:
    """What tables with a mean of each sample's condition must be given: `start_prediction` for every sample."""
    return {DATA_MEAN: start_prediction(problem, x_init, chunk).expand(x_init.shape)}


def learn_rows(
    problem: Problem,
    x_init: Tensor,
    nfe: int,
    *,
    method: str = "ipndm",
    options: Mapping[str, Any] | None = None,
    grids: Sequence[str | Nodes] = STARTS,
    mean: Tensor | None = None,
    holdout: float | int = 0.25,
    groups: Sequence[int] = (1,),
    rounds: int = 6,
    reference: Reference | None = None,
    chunk: int | None = None,
    state: str | os.PathLike[str] | None = None,
) -> Learned:
    """Fit levels and rows for `nfe` calls to the trajectories that start at `x_init`.

    Parameters
    ----------
    problem : Problem
    x_init : Tensor (B, ...)
        Starts of all trajectories; `problem.model_kwargs` belong to them.
    nfe : int ≥ 1
    method, options :
        The base, deterministic with one call per step: rows start from it and are drawn to it. With `mean` its first
        step is analytic unless options say otherwise (afs=...).
    grids : sequence of str or Nodes
        Levels to begin with; those of least error after a first fit are searched from. Nodes have `nfe` steps, one more
        with an analytic first step.
    mean : Tensor, optional
        The data's mean, such as `start_prediction` gives: of shape (B, ...) for each sample's condition, then to be
        given again when the table is run, as anchors={"data_mean": ...}; or of shape (1, ...), or one sample's, for
        all, which becomes a constant of the table.
    holdout : float in (0, 1) or int
        Share or number of the trajectories that judge and are not fitted: the last ones.
    groups : sequence of int
        Numbers of groups of coordinates with weights of their own, in the cosine basis; (1,) are plain rows. More
        groups are kept only where they win on the hold-out.
    rounds : int ≥ 0
        Steps of the search of levels; 0 keeps the best grid's.
    reference : Reference, optional
        Trajectories of all of `x_init` that exist already (`make_reference`), made otherwise.
    chunk : int, optional
        Largest batch given to the network.
    state : path, optional
        Where the search of levels is kept after every round (.npz; one more for each number of groups); one that was
        cut short goes on from there with the same result. It does not know the network, which must be the same.

    Raises
    ------
    ValueError
        Arguments out of range, a base that is stochastic or has inner stages, groups for states that are no images.
    BudgetError
        Before the first call, when the budget does not pay for the references and one fit.
    """
    check_start(x_init)
    train, _ = split(len(x_init), holdout)
    _check(nfe, groups, rounds, x_init, problem, reference, grids)
    given = {"order": 2} if method == "ipndm" and options is None else dict(options or {})
    given = given if mean is None or "afs" in given else {**given, "afs": "gaussian"}
    basis = BASES["cosine"] if max(groups) > 1 else None
    before = problem.calls
    with torch.no_grad():
        whole = make_reference(problem, x_init, {}, chunk) if reference is None else reference
        task = _prepare(whole, train, mean, basis, method, given)
        base_error, rows, lam, ridge = _first_fit(task, nfe, grids)
        start: Table = rows.table
        search = partial(
            search_levels, task.train, lam=lam, ridge=ridge, fixed_first=not task.afs, judge=task.held.error
        )
        rows, lam, course = search(task.base, rounds=rounds, state=state)
        errors = min(course, key=lambda entry: entry[1])
        if basis is not None:
            again = partial(search, lam=lam, rounds=min(rounds, 2))
            rows, errors = _grouped(task, sorted(set(groups) - {1}), nfe, again, state, (rows, errors))
    train_error, error = errors
    calls = problem.calls - before
    facts: dict[str, Any] = {"nfe": nfe, "calls": calls}
    if error >= base_error:
        task.notes.append(f"nothing learned beat the base ({base_error:.4g}) on the hold-out; the base is kept")
        error, table = base_error, start
    else:
        fit = {"holdout_error": error, "base_error": base_error, "train": train, "ridge": ridge}
        table, facts = rows.to_table({"learned": fit}), {**facts, **fit}
    table = problem.fitted(table, name="learned", notes=task.notes, **facts)
    return Learned(table, error, base_error, train_error, calls, ridge, tuple(task.notes))


def _grouped(
    task: _Task,
    counts: Sequence[int],
    nfe: int,
    search: Callable[..., tuple[Triangular, Array, list[tuple[float, float]]]],
    state: str | os.PathLike[str] | None,
    found: tuple[Triangular, tuple[float, float]],
) -> tuple[Triangular, tuple[float, float]]:
    """The rows found, or those with groups of coordinates that win on the hold-out, with their errors."""
    for count in counts:
        groups = variance_groups(task.train.end, count)
        if groups is None or task.train.problem.calls_left < 2 * nfe * task.samples:
            continue
        file = None if state is None else Path(state).with_suffix(f".{count}.npz")
        rows, _, course = search(partial(task.base, groups=groups), state=file)
        best = min(course, key=lambda entry: entry[1])
        if best[1] < found[1][1]:
            found = rows, best
    if found[0].groups is not None:
        task.notes.append(f"{int(found[0].groups.max()) + 1} groups of coordinates in the cosine basis")
    else:
        task.notes.append("groups of coordinates did not win on the hold-out")
    return found


def _check(
    nfe: int,
    groups: Sequence[int],
    rounds: int,
    x: Tensor,
    problem: Problem,
    reference: Reference | None,
    grids: Sequence[str | Nodes],
) -> None:
    if nfe < 1 or rounds < 0:
        raise ValueError(f"nfe={nfe!r} and rounds={rounds!r} are not possible; at least 1 and 0")
    if not groups or min(groups) < 1:
        raise ValueError(f"groups={groups!r} is not possible; give numbers of groups of at least 1")
    if max(groups) > 1 and x.ndim != 4:
        raise ValueError(f"groups={groups!r} need images (B, C, H, W), got shape {tuple(x.shape)}")
    if reference is not None and not torch.equal(reference.start, x.to(reference.start)):
        raise ValueError("reference holds other trajectories than those of x_init")
    if not grids:
        raise ValueError("grids is empty; name at least one grid")
    tries = len(grids) + len(RIDGES) + 1
    each = trajectory_calls(problem) if reference is None else 0
    problem.require(len(x) * (each + tries * nfe), f"{len(x)} reference trajectories and one fit of {nfe} calls")


def _prepare(
    whole: Reference, train: int, mean: Tensor | None, basis: CosineBasis | None, method: str, options: dict[str, Any]
) -> _Task:
    """Trajectories with the mean beside them, in the coordinates of `basis`, cut into those to fit and the rest."""
    batch, constants = len(whole.start), dict[str, Coefficient]()
    if mean is not None:
        mean = mean.to(whole.start)
        if mean.ndim < whole.start.ndim or len(mean) == 1:
            one = mean.reshape(mean.shape[mean.ndim == whole.start.ndim :]).expand(whole.start.shape[1:])
            constants = {DATA_MEAN: one.double().cpu().numpy()}
        whole = replace(whole, anchors=(mean.expand(whole.start.shape),))
    if basis is not None:
        whole = replace(
            whole,
            problem=in_basis(whole.problem, basis),
            start=basis.to(whole.start),
            anchors=tuple(basis.to(anchor) for anchor in whole.anchors),
            states=torch.stack([basis.to(states) for states in whole.states]),
        )

    def cut(rows: slice) -> Reference:
        return replace(
            whole,
            problem=whole.problem.part(rows, batch),
            start=whole.start[rows],
            anchors=tuple(a[rows] for a in whole.anchors),
            states=whole.states[:, rows],
        )

    return _Task(method, options, cut(slice(0, train)), cut(slice(train, batch)), basis, constants)


def _first_fit(task: _Task, nfe: int, grids: Sequence[str | Nodes]) -> tuple[float, Triangular, Array, float]:
    """Best untuned hold-out error, the base of least error, and the λ and ridge whose fit serves best."""
    levels = [task.levels(grid, nfe) for grid in grids]
    bases = [task.base(lam) for lam in levels]
    errors = [task.held.error(rows) for rows in bases]
    best = int(np.argmin(errors))
    weights = len(bases[best].weights[-1])
    few = len(task.train.start) < weights
    if few:
        task.notes.append(
            f"{len(task.train.start)} trajectories for rows of up to {weights} weights: fitted with strong "
            "regularisation towards the base"
        )

    def judged(k: int, ridge: float) -> float:
        return task.held.error(fit_rows(task.train, bases[k], ridge)[0])

    ridges = _STRONG if few else RIDGES
    grid = best if few else min(range(len(bases)), key=lambda k: judged(k, RIDGES[1]))
    tried = {ridge: judged(grid, ridge) for ridge in ridges}
    if min(tried, key=lambda ridge: tried[ridge]) == RIDGES[0]:  # a network whose outputs are hard to foresee
        for ridge in _STRONG[-2::-1]:
            if ridge not in tried and task.train.problem.calls_left >= 2 * nfe * task.samples:
                tried[ridge] = judged(grid, ridge)
    return errors[best], bases[best], levels[grid], min(tried, key=lambda ridge: tried[ridge])
