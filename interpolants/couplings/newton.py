"""Sinkhorn–Newton–Sparse: entropic transport to machine precision in tens of steps.

Tang, Shavlovsky, Rahmanian, Tardini, Thekumparampil, Xiao and Ying, "Accelerating Sinkhorn algorithm with sparse Newton
iterations", ICLR 2024 (arXiv:2401.12253). After a few sweeps the plan is nearly sparse, so that Newton's steps on the
concave dual need only its largest entries.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from .entropic import Array, EntropicPlan, checked, finished, sweep

_INCREASE = 1e-4  # share of the predicted increase that a step must reach
_HALVINGS = 30
_DENSE = 0.125  # share of the entries from which a dense solution is the quicker one
_RIDGES = (1e-14, 1e-6, 1e-3)
"""Shares added to the diagonal, one after the other until a step can be made. The whole matrix is singular along
(1, −1), and nearly so where the plan almost falls into blocks, as at weak regularisation before it converges."""


def newton_sparse(
    cost: Array,
    regularisation: float,
    rows: Array | None = None,
    columns: Array | None = None,
    *,
    sweeps: int = 20,
    sparsity: float | None = None,
    tolerance: float = 1e-12,
    max_steps: int = 200,
) -> EntropicPlan:
    """The plan of `entropic.sinkhorn`, by sweeps and then Newton steps with a sparse Hessian.

    Parameters
    ----------
    cost, regularisation, rows, columns : as in `entropic.sinkhorn`
    sweeps : int
        Before the first Newton step; many where optimal plans are not unique.
    sparsity : float in (0, 1], optional
        Share of the n·m entries of the plan that the Hessian keeps; by default 2/max(n, m), and twice as many whenever
        a step does not halve the error, since plans at strong regularisation are not sparse.
    tolerance : float
        Marginal error at which to stop; rounding leaves about 5e-13.
    max_steps : int

    Raises
    ------
    ValueError
        As `entropic.sinkhorn`, or a sparsity out of range.
    """
    scaled, log_rows, log_columns = checked(cost, regularisation, rows, columns)
    share = min(1.0, 2.0 / max(scaled.shape)) if sparsity is None else sparsity
    if not 0.0 < share <= 1.0:
        raise ValueError(f"sparsity={sparsity!r} is not possible; it is a share in (0, 1]")
    kept = int(np.ceil(share * scaled.size))
    marginals = np.concatenate([np.exp(log_rows), np.exp(log_columns)])
    n = len(log_rows)
    f, g, _ = sweep(scaled, log_rows, log_columns, tolerance=0.0, max_sweeps=sweeps)
    potentials = np.concatenate([f, g])
    steps, last = 0, np.inf
    while steps < max_steps:
        plan = _plan(scaled, potentials, n)
        sums = np.concatenate([plan.sum(1), plan.sum(0)])
        gradient = marginals - sums
        error = float(np.abs(gradient).sum())
        if error <= tolerance:
            break
        if sparsity is None and error > 0.5 * last:
            kept = min(2 * kept, plan.size)
        last = error
        moved = None
        for ridge in _RIDGES:
            step = _direction(plan, sums, gradient, kept, ridge)
            moved = _searched(scaled, potentials, marginals, gradient, step, n)
            if moved is not None:
                break
        if moved is None:  # a sweep always increases the dual
            f = log_rows - np.log(sums[:n]) + potentials[:n]
            g = log_columns - np.log(np.exp(f[:, None] + potentials[n:] - scaled).sum(0)) + potentials[n:]
            moved = np.concatenate([f, g])
        potentials = moved
        steps += 1
    found = finished(scaled, potentials[:n], potentials[n:], log_rows, log_columns, regularisation, sweeps)
    return replace(found, newton_steps=steps)


def _plan(scaled: Array, potentials: Array, n: int) -> Array:
    plan: Array = np.exp(potentials[:n, None] + potentials[None, n:] - scaled)
    return plan


def _direction(plan: Array, sums: Array, gradient: Array, kept: int, ridge: float) -> Array:
    """Solution of [[diag(P1), S], [Sᵀ, diag(Pᵀ1)]]·step = gradient with the largest entries S of the plan.

    The diagonal is that of the whole plan, so that the matrix stays diagonally dominant. Above an eighth of all entries
    the whole plan takes the place of S.
    """
    from scipy.sparse import block_array, coo_array, diags_array
    from scipy.sparse.linalg import spsolve

    n, m = plan.shape
    if kept > _DENSE * plan.size:
        return _dense_direction(plan, sums * (1.0 + ridge), gradient)
    index = np.argpartition(plan.reshape(-1), plan.size - kept)[plan.size - kept :]
    sparse: Any = coo_array((plan.reshape(-1)[index], (index // m, index % m)), shape=(n, m))
    diagonal = sums * (1.0 + ridge)
    matrix = block_array([[diags_array(diagonal[:n]), sparse], [sparse.T, diags_array(diagonal[n:])]], format="csc")
    step: Array = spsolve(matrix, gradient)
    return step


def _dense_direction(plan: Array, diagonal: Array, gradient: Array) -> Array:
    """The step with the whole plan, by elimination of the rows; the last column's potential stays, as one must."""
    from scipy.linalg import LinAlgError, cho_factor, cho_solve

    n = len(plan)
    over = plan / diagonal[:n, None]
    schur = np.diag(diagonal[n:]) - plan.T @ over
    right = gradient[n:] - over.T @ gradient[:n]
    columns = np.zeros_like(right)
    try:
        columns[:-1] = cho_solve(cho_factor(schur[:-1, :-1]), right[:-1])
    except LinAlgError:  # singular to rounding; the caller makes a sweep
        return np.full(gradient.shape, np.nan)
    return np.concatenate([gradient[:n] / diagonal[:n] - over @ columns, columns])


def _searched(scaled: Array, potentials: Array, marginals: Array, gradient: Array, step: Array, n: int) -> Array | None:
    """The point along the step where the dual has increased enough; None if there is none.

    Near the end the increase is below rounding; there the marginal error decides.
    """
    slope = float(gradient @ step)
    if not np.isfinite(step).all() or slope <= 0.0:
        return None
    error, length = np.abs(gradient).sum(), 1.0
    before = _plan(scaled, potentials, n)
    for _ in range(_HALVINGS):
        moved = potentials + length * step
        with np.errstate(over="ignore"):
            plan = _plan(scaled, moved, n)
            gain = length * float(marginals @ step) - float((plan - before).sum())
            after = np.abs(marginals - np.concatenate([plan.sum(1), plan.sum(0)])).sum()
        if np.isfinite(gain) and (gain >= _INCREASE * length * slope or after <= (1.0 - 0.1 * length) * error):
            return moved
        length *= 0.5
    return None
