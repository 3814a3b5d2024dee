"""Learned rows: additive residuals on the rows of an exact table, fitted to a few converged trajectories.

The fit is closed-form least squares row by row, on what the run itself has computed so far; only levels are searched,
by damped Gauss–Newton steps. Everything is judged on samples that take no part in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..border import Border
from ..grids import make_nodes
from ..loop import check_start
from ..numerics import Array
from ..registry import build_table
from ..table import Table
from .bases import CosineBasis, in_basis, variance_groups
from .row_fits import Reference, fit_rows, make_reference, nodes_of, search_levels, trajectory_calls
from .trajectories import Problem
from .triangular import Triangular, triangular

GRIDS = ("karras", "logsnr", "time")
"""Grids tried as starting points of the levels."""
RIDGES = (1e-2, 1e-4, 1e-6)
"""Strengths of regularisation that are tried."""
_STRONG = (1.0, 1e-1, 1e-2)
"""Those tried with fewer trajectories than a row has weights."""
MEAN = "data_mean"


@dataclass(frozen=True, eq=False)
class Learned:
    """A fitted table and how it was found.

    Attributes
    ----------
    table : Table
        Frame "none: fitted to trajectories", or the untuned base where nothing learned beat it on the hold-out.
    holdout_error, base_error : float
        Mean over hold-out samples of the RMSE per value to their converged end points: of the table, and of the best
        untuned base tried.
        The hold-out also chose among a handful of fits, so that new noises may do slightly worse.
    train_error : float
    basis : CosineBasis or None
        Coordinates in which the table runs; see `run_learned`.
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
    basis: CosineBasis | None
    calls: int
    ridge: float
    notes: tuple[str, ...] = ()


@dataclass(eq=False)
class _Task:
    """What every step of the search needs; `train` and `held` are in the coordinates of `basis`."""

    method: str
    options: dict[str, Any]
    train: Reference
    held: Reference
    afs: bool
    notes: list[str] = field(default_factory=list)

    def base(self, lam: Array, groups: Any = None) -> Triangular:
        """The untuned rows whose calls are at λ; with an analytic first step the start is a node more."""
        start = float(self.train.problem.path.lam(0.0))
        nodes = nodes_of(self.train.problem, np.concatenate([[start], lam]) if self.afs else lam)
        return triangular(build_table(self.method, nodes, **self.options)).grouped(groups)

    def levels(self, grid: str, nfe: int) -> Array:
        lam = make_nodes(self.train.problem.path, grid, nfe + self.afs).lam[:-1]
        low, high = self.train.bounds
        return np.clip(lam[1:], low + 0.1 * np.arange(nfe), high) if self.afs else lam


def start_prediction(problem: Problem, x_init: Tensor, chunk: int | None = None) -> Tensor:
    """The guided data prediction at the path's start and state 0: about the mean of the data under each condition.

    At the noise end a network's answer hardly depends on the state, so that one call for each condition serves all
    its samples; costs B calls.
    """
    level = nodes_of(problem, np.array([float(problem.path.lam(0.0)), problem.path.lambda_max])).level(0)
    border = Border(problem, x_init, problem.prediction)
    parts = []
    with torch.no_grad():
        for rows, part in problem.chunks(len(x_init), chunk):
            border.model = part
            parts.append(border.at(level, "data", torch.zeros_like(x_init[rows]), part.model_kwargs))
    return torch.cat(parts)


def learn_rows(
    problem: Problem,
    x_init: Tensor,
    nfe: int,
    *,
    method: str = "ipndm",
    options: Mapping[str, Any] | None = None,
    mean: Tensor | None = None,
    holdout: float | int = 0.25,
    groups: Sequence[int] = (1,),
    rounds: int = 6,
    chunk: int | None = None,
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
    mean : Tensor, optional
        The data's mean, of shape (B, ...) or broadcasting to it: of each sample's class, where there are classes, or
        what `start_prediction` gives. It is the table's anchor "data_mean", to be given again when it is run.
    holdout : float in (0, 1) or int
        Share or number of the trajectories that judge and are not fitted: the last ones.
    groups : sequence of int
        Numbers of groups of coordinates with weights of their own, in the cosine basis; (1,) are plain rows. More
        groups are kept only where they win on the hold-out.
    rounds : int ≥ 0
        Steps of the search of levels; 0 keeps the best grid's.
    chunk : int, optional
        Largest batch given to the network.

    Raises
    ------
    ValueError
        Arguments out of range, a base that is stochastic or has inner stages, groups for states that are no images.
    BudgetError
        Before the first call, when the budget does not pay for the references and one fit.
    """
    check_start(x_init)
    train, held = _split(len(x_init), holdout)
    _check(nfe, groups, rounds, x_init, problem, len(x_init))
    given = {"order": 2} if method == "ipndm" and options is None else dict(options or {})
    given = given if mean is None or "afs" in given else {**given, "afs": "gaussian"}
    basis = CosineBasis() if max(groups) > 1 else None
    before = problem.calls
    with torch.no_grad():
        task = _prepare(problem, x_init, train, held, mean, basis, chunk, method=method, options=given)
        base_error, rows, lam, ridge = _first_fit(task, nfe)
        start: Table = rows.table
        judge = task.held.error
        rows, lam, course = search_levels(
            task.train, task.base, lam, ridge=ridge, fixed_first=not task.afs, rounds=rounds, judge=judge
        )
        train_error, error = min(course, key=lambda entry: entry[1])
        for count in sorted(set(groups) - {1}):
            found = variance_groups(task.train.end, count)
            if found is None or problem.calls_left < 2 * nfe * len(x_init):
                continue
            more, _, steps = search_levels(
                task.train, partial(task.base, groups=found), lam, ridge=ridge, fixed_first=not task.afs,
                rounds=min(rounds, 2), judge=judge,
            )  # fmt: skip
            best = min(steps, key=lambda entry: entry[1])
            if best[1] < error:
                rows, (train_error, error) = more, best
    if rows.groups is not None:
        task.notes.append(f"{int(rows.groups.max()) + 1} groups of coordinates in the cosine basis")
    elif basis is not None:
        basis = None
        task.notes.append("groups of coordinates did not win on the hold-out")
    if error >= base_error:
        task.notes.append(f"nothing learned beat the base ({base_error:.4g}) on the hold-out; the base is kept")
        return Learned(
            start, base_error, base_error, train_error, None, problem.calls - before, ridge, tuple(task.notes)
        )
    record = {"learned": {"holdout_error": error, "base_error": base_error, "train": train, "ridge": ridge}}
    return Learned(rows.to_table(record), error, base_error, train_error, basis, problem.calls - before, ridge,
                   tuple(task.notes))  # fmt: skip


def run_learned(
    learned: Learned, problem: Problem, x_init: Tensor, *, mean: Tensor | None = None, chunk: int | None = None
) -> Tensor:
    """Samples (B, ...) of a learned table in its own coordinates; `mean` as in `learn_rows`."""
    basis, table = learned.basis, learned.table
    inner = problem if basis is None else in_basis(problem, basis)
    parts = []
    for rows, part in inner.chunks(len(x_init), chunk):
        x = x_init[rows]
        anchors = {} if mean is None or MEAN not in table.anchors else {MEAN: mean.to(x).expand(x_init.shape)[rows]}
        if basis is None:
            parts.append(part.run(table, x, anchors=anchors))
        else:
            turned = {name: basis.to(anchor) for name, anchor in anchors.items()}
            parts.append(basis.back(part.run(table, basis.to(x), anchors=turned)))
    return torch.cat(parts)


def _split(batch: int, holdout: float | int) -> tuple[int, int]:
    held = holdout if isinstance(holdout, int) else round(holdout * batch)
    if not 1 <= held < batch:
        raise ValueError(f"holdout={holdout!r} of {batch} trajectories is not possible; both parts need at least one")
    return batch - held, held


def _check(nfe: int, groups: Sequence[int], rounds: int, x: Tensor, problem: Problem, batch: int) -> None:
    if nfe < 1 or rounds < 0:
        raise ValueError(f"nfe={nfe!r} and rounds={rounds!r} are not possible; at least 1 and 0")
    if not groups or min(groups) < 1:
        raise ValueError(f"groups={groups!r} is not possible; give numbers of groups of at least 1")
    if max(groups) > 1 and x.ndim != 4:
        raise ValueError(f"groups={groups!r} need images (B, C, H, W), got shape {tuple(x.shape)}")
    tries = len(GRIDS) + len(RIDGES) + 1
    problem.require(
        batch * (trajectory_calls(problem) + tries * nfe),
        f"{batch} reference trajectories and one fit of {nfe} calls",
    )


def _prepare(
    problem: Problem,
    x_init: Tensor,
    train: int,
    held: int,
    mean: Tensor | None,
    basis: CosineBasis | None,
    chunk: int | None,
    *,
    method: str,
    options: dict[str, Any],
) -> _Task:
    batch = train + held
    afs = bool(options.get("afs", False))
    centre = {} if mean is None else {MEAN: mean.to(x_init).expand(x_init.shape)}
    if basis is not None:
        x_init, centre = basis.to(x_init), {k: basis.to(v) for k, v in centre.items()}
        problem = in_basis(problem, basis)
    whole = make_reference(problem, x_init, centre, chunk)

    def cut(rows: slice) -> Reference:
        return replace(
            whole,
            problem=problem.part(rows, batch),
            start=whole.start[rows],
            anchors=tuple(a[rows] for a in whole.anchors),
            states=whole.states[:, rows],
        )

    return _Task(method, options, cut(slice(0, train)), cut(slice(train, batch)), afs)


def _first_fit(task: _Task, nfe: int) -> tuple[float, Triangular, Array, float]:
    """Best untuned hold-out error, the base of least error, and the λ and ridge whose fit serves best."""
    levels = [task.levels(grid, nfe) for grid in GRIDS]
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
    ridge = min(ridges, key=lambda r: judged(grid, r))
    return errors[best], bases[best], levels[grid], ridge
