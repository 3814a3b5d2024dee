"""Adaptive tempering: the next inverse temperature at a given effective size."""

from __future__ import annotations

import torch
from torch import Tensor

from .weights import effective_size

_HALVINGS = 50


def next_temperature(
    log_likelihood: Tensor, previous: float, log_weights: Tensor | None = None, *, ess: float = 0.5
) -> float:
    """Largest λ in (previous, 1] at which weights w·exp((λ − previous)·ℓ) keep ESS ≥ ess·N, by bisection.

    Choosing λ from the cloud makes the estimate of the normalising constant slightly biased.

    Parameters
    ----------
    log_likelihood : (N,)
        ℓ of each particle; −inf is allowed.
    previous : float in [0, 1)
    log_weights : (N,), optional
        Weights so far, default equal.
    ess : float in (0, 1)

    Raises
    ------
    ValueError
        A number out of range, NaN, or no particle with a likelihood above 0.
    """
    if not 0.0 <= previous < 1.0:
        raise ValueError(f"previous={previous!r} is not possible; it must lie in [0, 1)")
    if not 0.0 < ess < 1.0:
        raise ValueError(f"ess={ess!r} is not possible; it must lie in (0, 1)")
    values = log_likelihood.double()
    start = torch.zeros_like(values) if log_weights is None else log_weights.double()
    if bool(values.isnan().any()) or not bool(torch.isfinite(values + start).any()):
        raise ValueError("log_likelihood holds NaN, or is -inf for every particle of weight above 0")

    def enough(temperature: float) -> bool:
        # relative to what is left of a cloud that is already poorer than asked for
        return float(effective_size(start + (temperature - previous) * values)) >= target

    alive = torch.where(torch.isfinite(values), start, -torch.inf)  # what any step leaves
    target = min(ess * len(values), 0.999 * float(effective_size(alive)))
    if enough(1.0):
        return 1.0
    low, high = previous, 1.0
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if enough(middle) else (low, middle)
    return high if low == previous else low
