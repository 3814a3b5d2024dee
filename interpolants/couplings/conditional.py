"""C²OT: optimal transport that leaves the base independent of the condition.

Cheng and Schwing, "The curse of conditions: analyzing and improving optimal transport for conditional flow-based
generation", ICCV 2025 (arXiv:2503.10636). Plain transport pairs base samples with conditions, but sampling draws the
base without knowing the condition. A price on changing the condition keeps the two apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..errors import check_positive
from .costs import Cost, class_distance, cosine_distance, squared_distance
from .entropic import Array
from .pairing import Pairs, assigned, check_batches

MOST = 1e8
"""Largest weight of the condition; with classes it makes the transport exact inside each of them."""
_FIRST = 100.0
_LEAST = 1e-12
_HALVINGS = 20


@dataclass
class ConditionalCoupling:
    """Assignment under cost + weight·(distance of conditions).

    Parameters
    ----------
    ratio : float in (0, 1), optional
        For continuous conditions the weight is searched such that this share of the other pairs costs no more than
        the pair it would replace; the weight found is where the next search begins. None takes `weight` as it is.
    weight : float ≥ 0
        1e8 for classes.
    cost : callable
        Between base and data.
    distance : callable, optional
        Between conditions; by default 0 or 2 for integer labels, 1 − cos for vectors (n, d) and the squared
        difference for numbers (n,).
    tolerance : float
        Of the share, at which the search stops.

    Raises
    ------
    ValueError
        A ratio, weight or tolerance out of range.
    """

    ratio: float | None = None
    weight: float = MOST
    cost: Cost = squared_distance
    distance: Cost | None = None
    tolerance: float = 1e-3
    found: float = field(default=_FIRST, init=False)
    """Weight of the last batch under a ratio."""

    def __post_init__(self) -> None:
        if self.ratio is not None and not 0.0 < self.ratio < 1.0:
            raise ValueError(f"ratio={self.ratio!r} is not possible; it is a share in (0, 1)")
        if not 0.0 <= self.weight <= MOST:
            raise ValueError(f"weight={self.weight!r} is not possible; it is between 0 and {MOST:g}")
        check_positive("tolerance", self.tolerance)

    def __call__(
        self,
        base: Tensor,
        data: Tensor,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Pairs:
        """The assignment in the order of the data; base sample i stands for condition i.

        Raises
        ------
        ValueError
            No condition, or not one for each sample.
        """
        check_batches(base, data)
        if condition is None or condition.shape[:1] != data.shape[:1]:
            shape = None if condition is None else tuple(condition.shape)
            raise ValueError(f"condition must have one entry for each of the {len(data)} samples, got {shape}")
        cost = self.cost(base, data).cpu().numpy()
        apart = (self.distance or _distance_of(condition))(condition, condition).cpu().numpy()
        weight = self.weight
        if self.ratio is not None:
            weight = self.found = search_weight(cost, apart, self.ratio, self.found, self.tolerance)
        return assigned(cost + weight * apart)


def cheaper_share(cost: Array, apart: Array, weight: float) -> float:
    """r(w): share of pairs (i, j), i ≠ j, with cost_ij + w·apart_ij at most that of data j with its own base sample.

    The published mean is over all pairs. Those with i = j are no change of partner and hold at any weight, so that with
    them the share never falls below 1/n, and no weight would give a share of 0.01 to a batch of 100 or fewer.
    """
    if len(cost) < 2:
        return 0.0
    cheaper = cost + weight * apart <= np.diagonal(cost)[None, :]
    return float(cheaper[~np.eye(len(cost), dtype=bool)].mean())


def search_weight(cost: Array, apart: Array, ratio: float, start: float = _FIRST, tolerance: float = 1e-3) -> float:
    """The weight at which `cheaper_share`, which falls with it, is `ratio`; 0 where it is below without any."""
    if cheaper_share(cost, apart, 0.0) <= ratio:
        return 0.0
    high = max(start, 1e-6)
    while high < MOST and cheaper_share(cost, apart, high) > ratio:
        high = min(2.0 * high, MOST)
    low = 0.5 * high
    while low > _LEAST and cheaper_share(cost, apart, low) <= ratio:
        low, high = 0.5 * low, low
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        share = cheaper_share(cost, apart, middle)
        if abs(share - ratio) <= tolerance:
            return middle
        low, high = (middle, high) if share > ratio else (low, middle)
    return high


def _distance_of(condition: Tensor) -> Cost:
    if not condition.is_floating_point():
        return class_distance
    return squared_distance if condition.ndim == 1 else cosine_distance
