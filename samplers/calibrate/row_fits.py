"""Closed-form fits of the rows of a table to converged trajectories, and levels chosen by their error."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..border import Border
from ..grids import make_nodes
from ..nodes import Level, Nodes, points_at, times_at
from ..numerics import Array
from .extractor import digest_of
from .kept_state import LevelState, kept_rows
from .trajectories import Problem, mean_error, reference_calls, reference_states, sample_errors
from .triangular import Triangular, execute

_DENSE = 40  # levels at which reference states are kept; what lies between is interpolated
_PER_STEP = 4
_STENCIL = 4
_SHIFT = 0.02  # of a level in λ, for differences; below _APART
_LONGEST = 0.6  # change of a level in one step of the search
_TINY = 1e-300
_APART = 0.05  # least distance of levels in λ
_ENOUGH = 3e-3  # relative gain below which the search stops
_DAMPING = 1e-2
_TRIES = 4
_FLOOR = 0.1  # of the median error: how well a sample may be fitted before it counts no more


@dataclass(frozen=True, eq=False)
class Reference:
    """Converged trajectories of some samples.

    Attributes
    ----------
    problem : Problem
        Of these samples alone.
    start : Tensor (B, ...)
    anchors : tuple of Tensor (B, ...)
    states : Tensor (K + 1, B, ...)
        At the dense nodes; the last one is the end point.
    lam : array (K,)
        Of all of them but the last.
    nodes : Nodes
        The dense nodes.
    chunk : int, optional
        Largest batch given to the network.
    weights : Tensor (B,), optional
        What each sample counts in fits.
    """

    problem: Problem
    start: Tensor
    anchors: tuple[Tensor, ...]
    states: Tensor
    lam: Array
    nodes: Nodes
    chunk: int | None = None
    weights: Tensor | None = None

    @property
    def end(self) -> Tensor:
        """Converged end points (B, ...)."""
        return self.states[-1]

    @property
    def bounds(self) -> tuple[float, float]:
        """Range of λ in which states are known, ends excluded."""
        finite = self.lam[np.isfinite(self.lam)]
        return float(finite[1]), float(finite[-2])

    def at(self, level: Level) -> Tensor:
        """States at a level, by cubic interpolation in λ of the states over their path's overall scale."""
        low = int(np.isneginf(self.lam[0]))
        lam = self.lam[low:]
        first = int(np.clip(np.searchsorted(lam, level.lam) - _STENCIL // 2, 0, len(lam) - _STENCIL))
        near = lam[first : first + _STENCIL]
        total = torch.zeros_like(self.start)
        for k in range(_STENCIL):
            others = np.delete(near, k)
            weight = float(np.prod((level.lam - others) / (near[k] - others)))
            place = low + first + k
            scale = np.hypot(self.nodes.signal[place], self.nodes.noise[place])
            total = total.add(self.states[place], alpha=weight / float(scale))
        return total * float(np.hypot(level.signal, level.noise))

    def predict(self, level: Level, states: Tensor) -> Tensor:
        """Data prediction of the network, chunk by chunk."""
        border = Border(self.problem, self.start, self.problem.prediction)
        parts = []
        for rows, part in self.problem.chunks(len(states), self.chunk):
            border.model = part
            parts.append(border.at(level, "data", states[rows], part.model_kwargs))
        return torch.cat(parts)

    def columns(self) -> list[Tensor]:
        """What exists before the first call."""
        return [self.start, *self.anchors]

    def error(self, rows: Triangular) -> float:
        """`mean_error` to the converged end points; costs B·N calls."""
        with torch.no_grad():
            return mean_error(execute(rows, self.predict, self.columns())[0] - self.end)

    def weighted(self, residual: Tensor) -> Reference:
        """The same with weights under which the squares of `residual` (B, ...) add up to `mean_error`."""
        errors = sample_errors(residual)
        weights = 1.0 / (errors + _FLOOR * errors.median())
        return replace(self, weights=weights / weights.mean())

    def share(self, values: Tensor) -> Tensor:
        """Values (B, ...) as (B, d) in float64, times the root of what each sample counts."""
        flat = values.flatten(1).double()
        return flat if self.weights is None else flat * self.weights.sqrt()[:, None]


def dense_nodes(problem: Problem) -> Nodes:
    """Nodes at which reference states are kept, from the path's start to its end."""
    lam = make_nodes(problem.path, "logsnr", _DENSE).lam[:-1]
    return nodes_of(problem, np.concatenate([[float(problem.path.lam(0.0))], lam[1:]]))


def trajectory_calls(problem: Problem) -> int:
    """Network calls of one reference trajectory."""
    return reference_calls(dense_nodes(problem), problem.path, _PER_STEP)


def make_reference(
    problem: Problem, x_init: Tensor, anchors: Mapping[str, Tensor], chunk: int | None = None
) -> Reference:
    """Trajectories from `x_init` (B, ...), see `Reference`; errors as `reference_states`."""
    nodes = dense_nodes(problem)
    states = reference_states(problem, x_init, nodes, per_step=_PER_STEP, chunk=chunk)
    given = tuple(anchor.to(states).expand(x_init.shape) for anchor in anchors.values())
    return Reference(problem, x_init.to(states), given, states, nodes.lam[:-1], nodes, chunk)


def nodes_of(problem: Problem, lam: Array) -> Nodes:
    """Nodes at the given λ, the first moved to the path's start, and the clean end."""
    times = times_at(problem.path, lam)
    times[0] = 0.0
    signal, noise, _, _ = points_at(problem.path, times)
    return Nodes(np.append(signal, 1.0), np.append(noise, 0.0), np.append(times, 1.0), problem.path)


def fit_rows(reference: Reference, base: Triangular, ridge: float) -> tuple[Triangular, Tensor]:
    """Fit row after row to the reference state at its level, the last one to the end point; costs B·N calls.

    Row i is base + δ, where δ minimises the squared distance of Σ_j w_j·column_j to the reference plus ridge·|δ|², in
    units in which every column has mean square 1 (so that collinear columns, and rows with more weights than
    data, stay at the base). Columns are those of the run itself: later rows make up for what earlier ones left.

    Returns
    -------
    rows, and their end points (B, ...)
    """
    columns, weights = reference.columns(), list(base.weights)
    state = reference.start
    for i in range(base.calls + 1):
        if i in base.free_rows:
            target = reference.end if i == base.calls else reference.at(base.levels[i])
            weights[i] = _solve(columns, target, reference, base.weights[i], base, ridge)
            row = replace(base, weights=tuple(weights))
            state = _combined(row, i, columns)
        if i < base.calls:
            with torch.no_grad():
                columns.append(reference.predict(base.levels[i], state))
    return replace(base, weights=tuple(weights)), state


def _combined(rows: Triangular, i: int, columns: list[Tensor]) -> Tensor:
    w, groups = torch.as_tensor(rows.weights[i]).to(columns[0]), rows.groups
    where = None if groups is None else torch.as_tensor(groups, device=columns[0].device)
    return sum((c * (v[0] if where is None else v[where]) for v, c in zip(w, columns, strict=True)), torch.zeros(()))


def _solve(
    columns: list[Tensor], target: Tensor, reference: Reference, prior: Array, base: Triangular, ridge: float
) -> Array:
    """Weights (J, G) of one row."""
    found = prior.copy()
    shares = [reference.share(c) for c in (*columns, target)]
    for g in range(prior.shape[1]):
        inside = slice(None) if base.groups is None else torch.as_tensor(base.groups == g).reshape(-1)
        flat = [c[:, inside].reshape(-1) for c in shares]
        gram = torch.stack([torch.stack([(a * b).mean() for b in flat]) for a in flat]).cpu().numpy()
        products, matrix = gram[:-1, -1] - gram[:-1, :-1] @ prior[:, g], gram[:-1, :-1]
        scale = np.sqrt(np.maximum(np.diag(matrix), _TINY))
        damped = matrix / np.outer(scale, scale) + ridge * np.eye(len(scale))
        found[:, g] += np.linalg.solve(damped, products / scale) / scale
    return found


@dataclass
class _Point:
    lam: Array
    rows: Triangular
    residual: Tensor

    @property
    def error(self) -> float:
        return mean_error(self.residual)


def search_levels(
    reference: Reference,
    build: Callable[[Array], Triangular],
    lam: Array,
    *,
    ridge: float,
    fixed_first: bool,
    rounds: int,
    judge: Callable[[Triangular], float],
    state: str | os.PathLike[str] | None = None,
) -> tuple[Triangular, Array, list[tuple[float, float]]]:
    """Damped Gauss–Newton steps on the levels, every row fitted anew for each choice of them.

    Parameters
    ----------
    build : callable
        The base at levels λ (N,).
    lam : array (N,)
        Levels of the calls to start from; the first stays where `fixed_first` is true.
    rounds : int
        Steps at most; each costs about B·N·(N + 1) calls, and none is begun that the budget does not pay for.
    judge : callable
        Hold-out error of rows; the best rows by it are returned.
    state : path, optional
        File of where the search stands, written after every round; one that was cut short goes on from it, and what it
        spent is counted again.

    Returns
    -------
    rows, their λ, and the training and hold-out error after every step
    """

    def fitted(lam: Array) -> _Point:
        rows, end = fit_rows(reference, build(lam), ridge)
        return _Point(lam, rows, end - reference.end)

    at, problem = LevelState.open(state, _key(reference, lam, ridge)), reference.problem
    began = problem.calls
    if at.last is not None and at.best is not None and at.residual is not None:
        problem.charge(at.calls)
        residual = at.residual.to(reference.end)
        point, best = (_taken_up(build, kept, residual) for kept in (at.last, at.best))
        damping, course = at.damping, at.course
    else:
        point, damping = fitted(lam), _DAMPING
        best, course = point, [(point.error, judge(point.rows))]
    free = range(int(fixed_first), len(lam))
    cost = len(reference.start) * point.rows.calls
    for done in range(len(course) - 1, rounds):
        if done and course[-1][0] > (1.0 - _ENOUGH) * course[-2][0]:
            break
        if problem.calls_left < cost * (len(free) + _TRIES + 2):
            break
        reference = reference.weighted(point.residual)
        again = fitted(point.lam)
        point = again if again.error < point.error else point
        matrix, gradient = _normal_equations(reference, fitted, again, free)
        for _ in range(_TRIES if len(free) else 0):
            step = -np.linalg.solve(matrix + damping * np.diag(np.diag(matrix) + _TINY), gradient)
            proposed = again.lam.copy()
            proposed[free.start :] += np.clip(step, -_LONGEST, _LONGEST)
            tried = fitted(_spread(proposed, reference.bounds, free.start))
            if tried.error < point.error:
                point, damping = tried, max(damping / 5, 1e-6)
                break
            damping *= 6
        course.append((point.error, judge(point.rows)))
        if course[-1][1] <= min(held for _, held in course):
            best = point
        at.last, at.best = kept_rows(point.lam, point.rows.weights), kept_rows(best.lam, best.rows.weights)
        at.residual, at.damping, at.course, at.calls = point.residual, damping, course, problem.calls - began
        at.save(state)
    return best.rows, best.lam, course


def _taken_up(build: Callable[[Array], Triangular], kept: tuple[Tensor, list[Tensor]], residual: Tensor) -> _Point:
    lam = kept[0].numpy()
    return _Point(lam, replace(build(lam), weights=tuple(row.numpy() for row in kept[1])), residual)


def _key(reference: Reference, lam: Array, ridge: float) -> str:
    """Tells searches apart by all but the network."""
    return digest_of({"start": reference.start, "end": reference.end, "from": torch.tensor([*lam, ridge])})


def _normal_equations(
    reference: Reference, fitted: Callable[[Array], _Point], point: _Point, free: range
) -> tuple[Array, Array]:
    """JᵀWJ and JᵀWr of the end points by the free levels, by differences; each level costs one fit."""
    residual = reference.share(point.residual)
    slopes = []
    for i in free:
        moved = fitted(point.lam + _SHIFT * np.eye(1, len(point.lam), i)[0])
        slopes.append((reference.share(moved.residual) - residual) / _SHIFT)
    matrix = np.array([[float((a * b).mean()) for b in slopes] for a in slopes])
    return matrix, np.array([float((a * residual).mean()) for a in slopes])


def _spread(lam: Array, bounds: tuple[float, float], first: int) -> Array:
    """λ in order, apart, and within bounds."""
    lam = lam.copy()
    low, high = bounds
    for i in range(first, len(lam)):
        floor = lam[i - 1] + _APART if i else low
        lam[i] = max(lam[i], floor, low)
    for i in range(len(lam) - 1, first - 1, -1):
        lam[i] = min(lam[i], high - _APART * (len(lam) - 1 - i))
    return lam
