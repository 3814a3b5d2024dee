"""Networks turned into a basis, and groups of coordinates of similar variance, for weights by group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from ..bases import CosineBasis
from ..guidance import ClassifierFree
from .trajectories import Problem
from .triangular import Groups


def in_basis(problem: Problem, basis: CosineBasis) -> Problem:
    """The same problem in the coordinates of `basis`; calls are counted together."""
    inner: Callable[..., Tensor] = problem.model
    guidance = problem.guidance
    linear = guidance is None or isinstance(guidance, ClassifierFree)  # the same in every orthonormal basis

    def turned(x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        image = basis.back(x)
        out = inner(image, t, **kwargs) if linear or guidance is None else guidance(inner, image, t, kwargs)
        return basis.to(out)

    return replace(problem, model=turned, guidance=guidance if linear else None)


def variance_groups(samples: Tensor, count: int) -> Groups | None:
    """Groups of coordinates, by equal steps of the logarithm of their variance over `samples` (B, ...).

    Returns an int array of the shape of one sample, or None where that gives one group.

    Raises
    ------
    ValueError
        count below 1, or fewer than two samples.
    """
    if count < 1 or len(samples) < 2:
        raise ValueError(f"groups={count!r} over {len(samples)} samples is not possible; at least 1 over at least 2")
    spread = samples.double().var(dim=0).clamp(min=1e-12).log().cpu().numpy()
    edges = np.linspace(spread.min(), spread.max(), count + 1)[1:-1]
    _, groups = np.unique(np.digitize(spread, edges), return_inverse=True)
    groups = groups.reshape(spread.shape).astype(np.int64)
    return groups if groups.max() > 0 else None
