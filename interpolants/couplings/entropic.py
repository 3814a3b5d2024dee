"""Entropic optimal transport: min ⟨C, P⟩ + reg·Σ P log P over the plans P with given marginals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class EntropicPlan:
    """A plan and how it was found.

    Attributes
    ----------
    matrix : float64 array (n, m)
        P_ij = exp((f_i + g_j − C_ij)/reg); its sum is 1.
    rows, columns : float64 arrays (n,) and (m,)
        Potentials f and g, in units of the cost; only f_i + g_j is determined.
    error : float
        Σ |P1 − r| + Σ |Pᵀ1 − c|.
    sweeps, newton_steps : int
        Iterations made.
    """

    matrix: Array
    rows: Array
    columns: Array
    error: float
    sweeps: int
    newton_steps: int = 0


def sinkhorn(
    cost: Array,
    regularisation: float,
    rows: Array | None = None,
    columns: Array | None = None,
    *,
    tolerance: float = 1e-9,
    max_sweeps: int = 10_000,
) -> EntropicPlan:
    """Sinkhorn's sweeps on the logarithms, which do not underflow at any regularisation.

    Parameters
    ----------
    cost : float64 array (n, m)
    regularisation : float > 0
        In units of the cost.
    rows, columns : arrays (n,) and (m,), optional
        Marginals, of sum 1; uniform by default.
    tolerance : float
        Marginal error at which to stop.
    max_sweeps : int

    Raises
    ------
    ValueError
        A cost that is not a finite matrix, marginals that are not positive or do not sum to 1, a regularisation that
        is not positive.
    """
    scaled, log_rows, log_columns = checked(cost, regularisation, rows, columns)
    f, g, sweeps = sweep(scaled, log_rows, log_columns, tolerance=tolerance, max_sweeps=max_sweeps)
    return finished(scaled, f, g, log_rows, log_columns, regularisation, sweeps)


def checked(
    cost: Array, regularisation: float, rows: Array | None, columns: Array | None
) -> tuple[Array, Array, Array]:
    """C/reg and the logarithms of both marginals; errors as in `sinkhorn`."""
    cost = np.asarray(cost, dtype=np.float64)
    if cost.ndim != 2 or not cost.size or not np.isfinite(cost).all():
        raise ValueError(f"cost must be a finite matrix (n, m), got shape {cost.shape}")
    if not regularisation > 0 or not math.isfinite(regularisation):
        raise ValueError(f"regularisation={regularisation!r} is not possible; it is a positive number")
    logs = []
    for name, marginal, size in (("rows", rows, cost.shape[0]), ("columns", columns, cost.shape[1])):
        weights = np.full(size, 1.0 / size) if marginal is None else np.asarray(marginal, dtype=np.float64)
        if weights.shape != (size,) or not (weights > 0).all() or abs(weights.sum() - 1.0) > _SUM:
            raise ValueError(f"{name} must be {size} positive weights that sum to 1, got shape {weights.shape}")
        logs.append(np.log(weights))
    return cost / regularisation, logs[0], logs[1]


def sweep(
    scaled: Array, log_rows: Array, log_columns: Array, *, tolerance: float, max_sweeps: int
) -> tuple[Array, Array, int]:
    """Potentials over reg after at most `max_sweeps`; the columns are exact, the rows tell the error."""
    f, g = np.zeros_like(log_rows), np.zeros_like(log_columns)
    for done in range(max_sweeps):
        sums = log_sum(g[None, :] - scaled, 1)
        if done and np.abs(np.exp(f + sums) - np.exp(log_rows)).sum() <= tolerance:
            return f, g, done
        f = log_rows - sums
        g = log_columns - log_sum(f[:, None] - scaled, 0)
    return f, g, max_sweeps


def finished(
    scaled: Array, f: Array, g: Array, log_rows: Array, log_columns: Array, regularisation: float, sweeps: int
) -> EntropicPlan:
    """The plan of potentials over reg."""
    matrix = np.exp(f[:, None] + g[None, :] - scaled)
    error = np.abs(matrix.sum(1) - np.exp(log_rows)).sum() + np.abs(matrix.sum(0) - np.exp(log_columns)).sum()
    return EntropicPlan(matrix, f * regularisation, g * regularisation, float(error), sweeps)


def log_sum(values: Array, axis: int) -> Array:
    """Logarithm of Σ exp along an axis."""
    top = values.max(axis=axis, keepdims=True)
    found: Array = np.log(np.exp(values - top).sum(axis=axis)) + top.squeeze(axis)
    return found


_SUM = 1e-9  # rounding of marginals
