"""Orthonormal bases in which coordinates of similar variance lie together, for weights by group of coordinates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .trajectories import Problem
from .triangular import Groups


@dataclass(frozen=True)
class CosineBasis:
    """Orthonormal cosine transform (DCT-II) along the last two axes, and three channels turned into grey and opponents.

    White noise stays white, so a path is the same path in this basis: only the network has to be turned.
    """

    name: str = "cosine"

    def to(self, x: Tensor) -> Tensor:
        """Coordinates (B, C, H, W) of images of that shape."""
        colour, rows, columns = self._matrices(x)
        return torch.einsum("pc,uh,vw,bchw->bpuv", colour, rows, columns, x)

    def back(self, x: Tensor) -> Tensor:
        """Images of coordinates: the inverse of `to`."""
        colour, rows, columns = self._matrices(x)
        return torch.einsum("pc,uh,vw,bpuv->bchw", colour, rows, columns, x)

    def _matrices(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if x.ndim != 4:
            raise ValueError(f"the cosine basis is one of images (B, C, H, W), got shape {tuple(x.shape)}")
        channels, height, width = x.shape[1:]
        colour = _OPPONENT if channels == 3 else torch.eye(channels, dtype=torch.float64)
        return colour.to(x), _cosines(height).to(x), _cosines(width).to(x)


_OPPONENT = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]], dtype=torch.float64)
_OPPONENT = _OPPONENT / _OPPONENT.norm(dim=1, keepdim=True)


def _cosines(size: int) -> Tensor:
    k, j = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)
    matrix = math.sqrt(2.0 / size) * torch.cos(math.pi * (2 * j + 1) * k / (2 * size))
    matrix[0] /= math.sqrt(2.0)
    return matrix


def in_basis(problem: Problem, basis: CosineBasis) -> Problem:
    """The same problem in the coordinates of `basis`; calls are counted together."""
    inner: Callable[..., Tensor] = problem.model
    guidance = problem.guidance

    def turned(x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        image = basis.back(x)
        out = inner(image, t, **kwargs) if guidance is None else guidance(inner, image, t, kwargs)
        return basis.to(out)

    return replace(problem, model=turned, guidance=None)


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
