"""Costs between two batches, in float64: matrices (n, m) that transport plans are made from."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Cost = Callable[[Tensor, Tensor], Tensor]


def squared_distance(first: Tensor, second: Tensor) -> Tensor:
    """|a_i − b_j|² of batches (n, ...) and (m, ...) of one sample shape.

    Computed from differences where that takes hundredths of a second, since |a|² + |b|² − 2ab loses the small ones.
    """
    a, b = _flat(first, second)
    few = len(a) * len(b) * a.shape[1] <= _ENTRIES
    mode = "donot_use_mm_for_euclid_dist" if few else "use_mm_for_euclid_dist"
    return torch.cdist(a, b, compute_mode=mode).square()


def power_distance(power: float) -> Cost:
    """Σ |a_i − b_j|^p / p over the coordinates, the convex cost of a c-rectified flow.

    Raises
    ------
    ValueError
        p ≤ 1, where the cost is not strictly convex, or p infinite.
    """
    if not 1 < power < math.inf:
        raise ValueError(f"power={power!r} is not possible; the cost is strictly convex for finite powers above 1")

    def cost(first: Tensor, second: Tensor) -> Tensor:
        a, b = _flat(first, second)
        return torch.cdist(a, b, p=power).pow(power) / power

    return cost


def class_distance(first: Tensor, second: Tensor) -> Tensor:
    """|onehot_i − onehot_j|² of labels (n,) and (m,): 0 or 2."""
    if first.ndim != 1 or second.ndim != 1 or first.is_floating_point() or second.is_floating_point():
        raise ValueError(
            f"class labels are integers of shape (n,), got {first.dtype} {tuple(first.shape)} and {second.dtype} "
            f"{tuple(second.shape)}"
        )
    return 2.0 * (first[:, None] != second[None]).to(torch.float64)


def cosine_distance(first: Tensor, second: Tensor) -> Tensor:
    """1 − cos of conditions (n, ...) and (m, ...), such as text embeddings; a zero vector is at distance 1 of all."""
    a, b = _flat(first, second)
    tiny = torch.finfo(torch.float64).tiny
    return 1.0 - (a / a.norm(dim=1, keepdim=True).clamp_min(tiny)) @ (b / b.norm(dim=1, keepdim=True).clamp_min(tiny)).T


_ENTRIES = 1 << 24  # differences


def _flat(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    if first.shape[1:] != second.shape[1:] or first.ndim < 1 or not len(first) or not len(second):
        raise ValueError(
            f"batches of samples of one shape are needed, got {tuple(first.shape)} and {tuple(second.shape)}"
        )
    return first.to(torch.float64).reshape(len(first), -1), second.to(torch.float64).reshape(len(second), -1)
