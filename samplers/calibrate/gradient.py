"""Rows, levels and labels trained by gradients through the network: GS and S4S, with LD3 and BNS as presets.

What is learned is added to an exact method: weights on everything that a run has computed so far, zero at first
(which the authors of GS found to be the key ingredient), the levels, and the times that the network is told. Weights
move in directions in which the columns of the base's own run are uncorrelated, so that a step of any of them changes
the state by the same amount. How derivatives reach the levels is explained in `student`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathline.interpolants import check_name, unknown_name

from ..loop import check_start
from ..nodes import Nodes
from ..numerics import Array
from ..run_state import NonFiniteError
from ..table import Table
from .descent import LOSSES, Learner, Schedule
from .extractor import KEY, Extractor
from .row_fits import Reference, make_reference, trajectory_calls
from .student import Student, walk
from .trajectories import Problem, mean_error, split
from .untuned import STARTS

PARTS = ("rows", "levels", "labels")
MEAN = "data_mean"
_RATE = 0.05  # change of the state in one step, as a share of the base's error
_LEVEL_RATE, _LABEL_RATE = 0.03, 0.03
_COLLINEAR = 1e-5  # added to correlations of columns
_FEW_RIDGE = 0.1
Directions = Callable[[Student, Sequence[Tensor]], list[Array]]
"""(student, columns of the base's run on the training samples) → `Learner.directions`."""


@dataclass(frozen=True, eq=False)
class Trained:
    """A table and how it was found.

    Attributes
    ----------
    table : Table
        The base itself where nothing learned beat it on the hold-out.
    holdout_error, base_error : float
        Mean over hold-out samples of the RMSE per value to their converged end points: of the table and of the best
        base. The hold-out also chose among rounds, so that new noises may do slightly worse.
    calls : int
        Network calls in all, references and backward passes (one call each) included.
    parameters : int
        Numbers that were learned.
    feature_errors : (float, float) or None
        Hold-out error in the features that were fitted to, of the table and of the base.
    course : tuple of float
        What was judged on the hold-out after each round, the base's levels first.
    notes : tuple of str
        What was decided on the way, for the user.
    """

    table: Table
    holdout_error: float
    base_error: float
    calls: int
    parameters: int = 0
    feature_errors: tuple[float, float] | None = None
    course: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """What to learn, and how; the presets differ in nothing else.

    Attributes
    ----------
    name : str
        Kept in the table's options.
    method, options : the base
    grids : names of grids, or nodes
    schedule : Schedule
        Rates of "rows" are shares of the base's error.
    loss, extractor : as in `train_rows`
    directions : see `Directions`
    """

    name: str
    method: str
    options: Mapping[str, Any]
    grids: Sequence[str | Nodes]
    schedule: Schedule
    loss: str
    extractor: Extractor | None
    directions: Directions

    @property
    def parts(self) -> tuple[str, ...]:
        """What is learned in any phase."""
        return tuple(part for part in PARTS if any(part in names for _, names in self.schedule.phases))


def train_rows(
    problem: Problem,
    x_init: Tensor,
    nfe: int,
    *,
    method: str = "ipndm",
    options: Mapping[str, Any] | None = None,
    grids: Sequence[str] = STARTS,
    parts: Sequence[str] = PARTS,
    loss: str = "end",
    extractor: Extractor | None = None,
    mean: Tensor | None = None,
    radius: float = 0.0,
    rounds: int = 10,
    batch: int = 8,
    holdout: float | int = 0.25,
    seed: int = 0,
    chunk: int | None = None,
    reference: Reference | None = None,
    state: str | os.PathLike[str] | None = None,
) -> Trained:
    """Train residuals on the rows of a method, its levels and labels, by gradients through the network (GS, S4S).

    Parameters
    ----------
    problem : Problem
        Its network must be differentiable in x (and in t for levels and labels; one that rounds t learns no labels).
    x_init : Tensor (B, ...)
        Starts of all trajectories; `problem.model_kwargs` belong to them.
    nfe : int ≥ 1
    method, options : the base: any deterministic method with scalar coefficients.
    grids : sequence of str
        The base stands on the one of least hold-out error.
    parts : of "rows", "levels", "labels"
        What is learned.
    loss : {"end", "trajectory", "log"}
        Error of the end, error of the end and of the states of all calls, or logarithm of the end's mean square.
    extractor : Extractor, optional
        Compare the ends' features instead of their values. The table remembers it: see `extractor.check_judge`.
    mean : Tensor, optional
        The anchor "data_mean" of a base with an analytic first step that takes it, as in `learn_rows`.
    radius : float ≥ 0
        Of the ball, in the norm of unit noise, in which the starts of training samples may move to meet their
        teacher's end (relaxed objective of LD3). The hold-out is never moved.
    rounds, batch : int ≥ 0, ≥ 1
        Passes over the training samples, and samples of one step. A round costs 2·B·nfe calls for each training sample
        (3 where starts move), and judging it nfe for each hold-out sample.
    holdout : float in (0, 1) or int
        Share or number of the trajectories that judge and are not fitted: the last ones.
    seed : int
        Orders the batches.
    chunk : int, optional
        Largest batch given to the network; the graph of one chunk is kept at a time.
    reference : Reference, optional
        Trajectories of all of `x_init` that exist already (`make_reference`), made otherwise.
    state : path, optional
        File of where the descent stands, written after every round; one that was cut short goes on from it with the
        same result, and what it spent is counted again. It does not know the network, which must be the same.

    Raises
    ------
    ValueError
        Arguments out of range, a base that is stochastic, references that are not finite or belong to other starts, a
        state of another descent.
    BudgetError
        Before the first call, when the budget does not pay for references, bases and one round.
    """
    for part in parts:
        check_name("part", part, PARTS)
    options = dict(options if options is not None else {"order": 2} if method == "ipndm" else {})
    schedule = Schedule(
        [(rounds, tuple(parts))] if parts else [],
        {"rows": _RATE, "levels": _LEVEL_RATE, "labels": _LABEL_RATE},
        batch=batch,
        radius=radius,
        seed=seed,
    )
    task = Task("gs", method, options, tuple(grids), schedule, loss, extractor, whitened)
    return solve(task, problem, x_init, nfe, mean=mean, holdout=holdout, chunk=chunk, reference=reference, state=state)


def solve(
    task: Task,
    problem: Problem,
    x_init: Tensor,
    nfe: int,
    *,
    mean: Tensor | None = None,
    holdout: float | int = 0.25,
    chunk: int | None = None,
    reference: Reference | None = None,
    state: str | os.PathLike[str] | None = None,
) -> Trained:
    """Carry a task out; arguments, errors and result as in `train_rows`."""
    check_start(x_init, problem.guidance)
    train, held = split(len(x_init), holdout)
    _check(task, nfe, reference, x_init)
    students = [
        Student.make(problem, nfe if isinstance(grid, str) else None, task.method, task.options, grid)
        for grid in task.grids
    ]
    _check_anchors(task, students[0].table, mean)
    before = problem.calls
    calls = max(student.calls for student in students)
    least = len(x_init) * (0 if reference is not None else trajectory_calls(problem))
    least += calls * (held * (len(students) + 1) + 3 * train)
    problem.require(least, f"{len(x_init)} reference trajectories and one round of {calls} calls")
    centre = {} if mean is None else {MEAN: mean.to(x_init).expand(x_init.shape)}
    whole = make_reference(problem, x_init, centre, chunk) if reference is None else reference
    fitted, judge = (_cut(whole, problem, rows, chunk) for rows in (slice(0, train), slice(train, train + held)))
    errors = [_holdout_error(student, judge) for student in students]
    base = students[int(np.argmin(errors))]
    if not np.isfinite(min(errors)):
        raise NonFiniteError(f"no base of {task.method!r} gave finite samples")
    learner = _learner(task, base, fitted, judge, min(errors))
    start = learner.judged() if task.extractor is not None else (min(errors), min(errors))
    rates = {**task.schedule.rates, "rows": task.schedule.rates.get("rows", 0.0) * min(errors)}
    if sum(rounds for rounds, _ in task.schedule.phases) > 0:
        learner.descend(replace(task.schedule, rates=rates), state)
    return _result(task, learner, min(errors), start[0], problem, before)


def whitened(student: Student, columns: Sequence[Tensor]) -> list[Array]:
    """Directions in which a unit changes the state's root mean square by the path's overall scale there, uncorrelated.

    A row of the first call at the start itself is not learned.
    """
    flat = [column.flatten().double() for column in columns]
    gram = torch.stack([torch.stack([(a * b).mean() for b in flat]) for a in flat]).cpu().numpy()
    found = []
    for weights, scale in zip(expand_of(student), _scales(student), strict=True):
        count = len(weights)
        size = np.sqrt(np.maximum(np.diag(gram)[:count], 1e-300))
        matrix = gram[:count, :count] / np.outer(size, size) + _COLLINEAR * np.eye(count)
        directions = np.linalg.inv(np.linalg.cholesky(matrix)).T / size[:, None]
        found.append(scale * directions if _is_free(weights) else np.zeros((count, 0)))
    return found


def expand_of(student: Student) -> list[Array]:
    """Rows of the base."""
    return list(student.numbers(student.start, np.zeros(student.calls)).weights)


def _scales(student: Student) -> list[float]:
    levels = [*student.levels(student.table), student.table.end]
    return [float(np.hypot(level.signal, level.noise)) for level in levels]


def _is_free(weights: Array) -> bool:
    return not (weights[0] == 1.0 and (weights[1:] == 0.0).all())


def _learner(task: Task, base: Student, train: Reference, held: Reference, error: float) -> Learner:
    directions: list[Array] = []
    if "rows" in task.parts:
        with torch.no_grad():
            parts = []
            numbers = base.traced(torch.from_numpy(base.start), torch.zeros(base.calls, dtype=torch.float64))
            for rows, part in train.problem.chunks(len(train.start), train.chunk):
                parts.append(walk(numbers, part, [column[rows] for column in train.columns()])[2])
        directions = task.directions(base, [torch.cat(column) for column in zip(*parts, strict=True)])
    widest = max([d.shape[1] for d in directions], default=0) + len(base.start) - 1
    few = len(train.start) < widest
    learner = Learner(base, train, held, task.parts, task.loss, task.extractor, directions, _FEW_RIDGE if few else 0.0)
    if few:
        learner.notes.append(
            f"{len(train.start)} trajectories for up to {widest} parameters of a row and its levels: drawn to the base"
        )
    return learner


def _result(
    task: Task, learner: Learner, base_error: float, base_loss: float, problem: Problem, before: int
) -> Trained:
    student, notes = learner.student, learner.notes
    loss, error = min(learner.course, default=(base_loss, base_error))
    sizes = sum(p.numel() for p in learner.parameters.values())
    features = (loss, base_loss) if task.extractor is not None else None
    course = tuple(entry[0] for entry in learner.course)
    marker = {} if task.extractor is None else {KEY: task.extractor.marker}
    if not loss < base_loss:
        if learner.course:
            notes.append(f"nothing learned beat the base ({base_error:.4g}) on the hold-out; the base is kept")
        kept, calls = None if features is None else (base_loss, base_loss), problem.calls - before
        table = problem.fitted(student.table, name=task.name, nfe=student.calls, calls=calls, notes=notes, **marker)
        if marker:  # the extractor decided; it is kept twice, as `released` drops the provenance
            table = replace(table, options={**table.options, **marker})
        return Trained(table, base_error, base_error, calls, sizes, kept, course, tuple(notes))
    if error > base_error:
        notes.append(f"features are closer than the base's, values are not: {error:.4g} against {base_error:.4g}")
    with torch.no_grad():
        lam, shifts = (value.numpy() for value in learner.placed())
        weights = [w.numpy() for w in learner.numbers().weights]
    fit = {"name": task.name, "holdout_error": error, "base_error": base_error, "train": len(learner.train.start)}
    record = {**student.table.options, "fitted": fit, **marker}
    table = student.build(lam, shifts)
    table = student.with_rows(table, weights, record) if "rows" in task.parts else replace(table, options=record)
    known = {"nfe": student.calls, "calls": problem.calls - before, "notes": notes, **fit, **marker}
    table = problem.fitted(table, **known)
    return Trained(table, error, base_error, problem.calls - before, sizes, features, course, tuple(notes))


def _holdout_error(student: Student, judge: Reference) -> float:
    """Mean RMSE per value of the base's ends."""
    anchors = dict(zip(student.table.anchors, judge.anchors, strict=True))
    parts = []
    for rows, part in judge.problem.chunks(len(judge.start), judge.chunk):
        given = {name: anchor[rows] for name, anchor in anchors.items()}
        parts.append(part.run(student.table, judge.start[rows], anchors=given))
    error = mean_error(torch.cat(parts) - judge.end)
    return error if np.isfinite(error) else np.inf


def _cut(whole: Reference, problem: Problem, rows: slice, chunk: int | None) -> Reference:
    return replace(
        whole,
        problem=problem.part(rows, len(whole.start)),
        start=whole.start[rows],
        anchors=tuple(anchor[rows] for anchor in whole.anchors),
        states=whole.states[:, rows],
        chunk=chunk,
    )


def _check(task: Task, nfe: int, reference: Reference | None, x_init: Tensor) -> None:
    schedule = task.schedule
    if task.loss not in LOSSES:
        raise unknown_name("loss", task.loss, LOSSES)
    if nfe < 1 or schedule.batch < 1 or any(rounds < 0 for rounds, _ in schedule.phases) or schedule.radius < 0:
        raise ValueError(
            f"nfe={nfe!r}, batch={schedule.batch!r}, rounds={[r for r, _ in schedule.phases]!r} and radius="
            f"{schedule.radius!r} are not possible; they must be at least 1, 1, 0 and 0"
        )
    if not task.grids:
        raise ValueError("grids=() is not possible; name at least one")
    if reference is None:
        return
    if reference.start.shape != x_init.shape or not bool((reference.start == x_init).all()):
        raise ValueError("reference belongs to other starts than x_init")
    if not bool(torch.isfinite(reference.states).all()):
        raise ValueError("reference holds NaN or infinite values")


def _check_anchors(task: Task, table: Table, mean: Tensor | None) -> None:
    wanted = MEAN in table.anchors
    if wanted != (mean is not None):
        word = "needs" if wanted else "takes no"
        raise ValueError(f"the base {task.method!r} with options {dict(task.options)!r} {word} mean=...")
