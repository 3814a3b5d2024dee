"""Bespoke non-stationary solvers: every step its own weights on the start and on all velocities so far."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from pathline.interpolants import GaussianPath

from ..nodes import Nodes, points_at, times_at
from ..numerics import Array
from ..sampling import plan
from .descent import Schedule
from .gradient import Task, Trained, expand_of, solve
from .row_fits import Reference
from .student import Student
from .trajectories import Problem

_RATES = {"rows": 0.05, "levels": 0.03}


def bespoke_solver(
    problem: Problem,
    x_init: Tensor,
    nfe: int,
    *,
    method: str = "ddim",
    options: Mapping[str, Any] | None = None,
    noise_scale: float = 1.0,
    rounds: int = 10,
    batch: int = 8,
    holdout: float | int = 0.25,
    seed: int = 0,
    chunk: int | None = None,
    reference: Reference | None = None,
    state: str | os.PathLike[str] | None = None,
) -> Trained:
    """Train x_{i+1} = a_i·x_0 + Σ_{j≤i} b_ij·u_j and its times by the logarithm of the end's mean square (PSNR).

    Shaul et al. 2024, "Bespoke non-stationary solvers". A preset of `train_rows` in the authors' coordinates: a and b,
    with x and the velocity u those of the linear path x̄ = r·data + (1 − r)·σ₀·noise, to which any path is brought by a
    change of time and scale. The base is Euler's method there, which is DDIM on every path, at equally spaced r. As the
    weights are added to Euler's own at the learned times, the family is the authors' and the start the same.

    Parameters
    ----------
    method, options :
        The start: "ddim" is Euler, "runge-kutta" with tableau="midpoint" the authors' other choice (two calls a step).
    noise_scale : float > 0
        σ₀ of the preconditioned path; the authors raise it under guidance.

    Others, result and errors are those of `train_rows`.
    """
    if not (np.isfinite(noise_scale) and noise_scale > 0):
        raise ValueError(f"noise_scale={noise_scale!r} is not possible; it must be positive")
    if nfe < 1:
        raise ValueError(f"nfe={nfe!r} is not possible; it must be at least 1")
    options = dict(options or {})
    nodes = _even_nodes(problem.path, nfe, method, options, noise_scale)
    schedule = Schedule([(rounds, ("rows", "levels"))], _RATES, batch=batch, seed=seed)
    task = Task("bns", method, options, (nodes,), schedule, "log", None, partial(velocities, noise_scale=noise_scale))
    return solve(task, problem, x_init, nfe, holdout=holdout, chunk=chunk, reference=reference, state=state)


def velocities(student: Student, columns: Sequence[Tensor], *, noise_scale: float) -> list[Array]:
    """Directions of a_i and b_ij: what a unit of each adds to the weights on x_0 and data predictions.

    With ρ = σ₀·signal/noise the state is x̄ = s·x for s = σ₀/(noise + σ₀·signal), and u = (1 + ρ)·D − (σ₀/noise)·x.
    """
    calls, end = student.levels(student.table), student.table.end
    rows = expand_of(student)

    def scale(signal: float, noise: float) -> float:
        return noise_scale / (noise + noise_scale * signal)

    width = len(rows[-1])
    slopes = []
    for j, (level, row) in enumerate(zip(calls, rows[:-1], strict=True)):
        slope = np.zeros(width)
        slope[: len(row)] = -noise_scale / level.noise * row
        slope[student.fixed + j] += 1.0 + noise_scale * level.signal / level.noise
        slopes.append(slope)
    first = scale(student.table.start.signal, student.table.start.noise) * np.eye(1, width)[0]
    found = [np.zeros((len(rows[0]), 0))]  # the first call is at the start
    for i, level in enumerate([*calls[1:], end], start=1):
        basis = np.stack([first, *slopes[:i]], 1) / scale(level.signal, level.noise)
        found.append(basis[: len(rows[i])])
    return found


def _even_nodes(path: GaussianPath, nfe: int, method: str, options: Mapping[str, Any], noise_scale: float) -> Nodes:
    """As many equal steps of r as `nfe` calls of the method serve."""
    for steps in range(nfe, 0, -1):
        r = np.arange(1, steps) / steps
        lam = np.concatenate([[float(path.lam(0.0))], np.log(r / (1 - r)) - np.log(noise_scale)])
        times = times_at(path, lam)
        times[0] = 0.0
        signal, noise, _, _ = points_at(path, times)
        nodes = Nodes(np.append(signal, 1.0), np.append(noise, 0.0), np.append(times, 1.0), path)
        if plan(path, method, grid=nodes, **options).evaluations <= nfe:
            return nodes
    raise ValueError(f"nfe={nfe!r} is below what one step of {method!r} costs")
