"""Cascade polynomial regression: ratios of dynamic compensation for budgets and guidance scales not searched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..compensation import GUIDANCE_SCALE, NFE_SCALE, PLAIN_STEPS, CascadeRegression
from ..numerics import Array


@dataclass(frozen=True)
class Searched:
    """Ratios found for one budget and guidance scale.

    Attributes
    ----------
    nfe : int
    guidance : float
    ratios : sequence of nfe floats
    """

    nfe: int
    guidance: float
    ratios: Sequence[float]


@dataclass(frozen=True)
class RegressionFit:
    """A regression with its residuals.

    Attributes
    ----------
    regression : CascadeRegression
    residual : float
        Root mean square difference to the ratios it was fitted to.
    left_out : float
        The same for every budget when that budget is left out of the fit, which is what a prediction for a new budget
        may be expected to err by; nan with fewer than two budgets.
    """

    regression: CascadeRegression
    residual: float
    left_out: float


def fit_ratios(
    searched: Sequence[Searched], *, degrees: tuple[int, int, int] = (3, 2, 2), ridge: float = 1e-10
) -> RegressionFit:
    """Fit ρ(step/NFE; guidance, NFE), a polynomial in each of the three, to searched ratios.

    All coefficients enter linearly, so the least squares of the release (`curve_fit` from a random start) are solved
    exactly. The ridge acts on orthogonalised monomials; it keeps the solution with the smallest coefficients where
    budgets or scales are too few to determine all of them.

    Parameters
    ----------
    searched : sequence of Searched
    degrees : (in step/NFE, in guidance/12, in NFE/50)
        The released regression for Stable Diffusion 2.1 has (3, 2, 2). A degree in guidance or NFE is lowered to the
        number of different values less one.
    ridge : float ≥ 0
        Relative to the largest eigenvalue of the normal equations.

    Raises
    ------
    ValueError
        No ratios beyond the first two steps, ratios of another number than nfe, or values that are not finite.
    """
    if len(degrees) != 3 or min(degrees) < 0:
        raise ValueError(f"degrees={degrees!r} is not possible; three whole numbers of at least 0 are needed")
    if not ridge >= 0:
        raise ValueError(f"ridge={ridge!r} is not possible; it must be at least 0")
    for entry in searched:
        if len(entry.ratios) != entry.nfe or not np.isfinite([*entry.ratios, entry.guidance]).all():
            raise ValueError(f"nfe={entry.nfe} with ratios={tuple(entry.ratios)}: {entry.nfe} finite ones are needed")
    regression = _solve(searched, degrees, ridge)
    budgets = sorted({entry.nfe for entry in searched})
    errors = []
    for nfe in budgets if len(budgets) > 1 else ():
        rest = _solve([entry for entry in searched if entry.nfe != nfe], degrees, ridge, searched)
        errors += [_errors(rest, entry) for entry in searched if entry.nfe == nfe]
    kept = [_errors(regression, entry) for entry in searched]
    return RegressionFit(regression, _rms(kept), _rms(errors))


def _solve(
    searched: Sequence[Searched],
    degrees: tuple[int, int, int],
    ridge: float,
    ranges: Sequence[Searched] | None = None,
) -> CascadeRegression:
    rows, targets = [], []
    scales, budgets = {e.guidance for e in searched}, {e.nfe for e in searched}
    of_x, of_g, of_n = degrees[0], min(degrees[1], len(scales) - 1), min(degrees[2], len(budgets) - 1)
    for entry in searched:
        for step in range(PLAIN_STEPS, entry.nfe):
            x, g, n = (step + 1) / entry.nfe, entry.guidance / GUIDANCE_SCALE, entry.nfe / NFE_SCALE
            powers = [x ** np.arange(of_x + 1), g ** np.arange(of_g, -1, -1.0), n ** np.arange(of_n, -1, -1.0)]
            rows.append(np.einsum("i,j,k->ijk", *powers).ravel())
            targets.append(entry.ratios[step])
    if not rows:
        raise ValueError(f"searched={list(searched)!r} holds no ratio: the first {PLAIN_STEPS} of a run are always 1")
    solution = _least_squares(np.array(rows), np.array(targets), ridge)
    table = solution.reshape(of_x + 1, of_g + 1, of_n + 1)
    coefficients = tuple(tuple(tuple(float(c) for c in inner) for inner in outer) for outer in table)
    known = ranges or searched
    nfe, guidance = [e.nfe for e in known], [e.guidance for e in known]
    return CascadeRegression(coefficients, (min(nfe), max(nfe)), (min(guidance), max(guidance)))


def _least_squares(matrix: Array, target: Array, ridge: float) -> Array:
    """Ridge regression in the singular basis, columns scaled to length 1."""
    length = np.linalg.norm(matrix, axis=0)
    left, values, right = np.linalg.svd(matrix / length, full_matrices=False)
    shrunk = values / (values**2 + ridge * values[0] ** 2)
    return np.asarray((right.T @ (shrunk * (left.T @ target))) / length)


def _errors(regression: CascadeRegression, entry: Searched) -> Array:
    return np.asarray(regression.predict(entry.nfe, entry.guidance) - np.asarray(entry.ratios))[PLAIN_STEPS:]


def _rms(errors: Sequence[Array]) -> float:
    return float(np.sqrt(np.mean(np.concatenate(errors) ** 2))) if errors else float("nan")
