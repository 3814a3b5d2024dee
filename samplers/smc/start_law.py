"""The law a composition starts from: Gaussian of variance noise²/W, as if the data were far below the noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..keyed_noise import START_NOISE, keyed_normal
from ..nodes import Level
from .composition import Composition


def start_states(
    target: Composition,
    level: Level,
    shape: Sequence[int],
    samples: Tensor | Sequence[int],
    seed: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draws (B, *shape) of N(0, noise²/W) for the slots `samples`, keyed as a run's noise is."""
    z = keyed_normal(shape, seed, samples, START_NOISE, dtype=dtype, device=device)
    return z * (level.noise / math.sqrt(target.total))


def start_log_density(x: Tensor, target: Composition, level: Level) -> Tensor:
    """Log density (B,) of the start law, in float64."""
    variance = level.noise**2 / target.total
    squares = x.double().square().reshape(len(x), -1).sum(1)
    return -0.5 * (squares / variance + x[0].numel() * math.log(2 * math.pi * variance))


def start_log_constant(target: Composition, level: Level, dimension: int) -> float:
    """Log ∫ Π N(x; 0, noise²)^w_i dx: what log Ẑ of a `FeynmanKac` run leaves out, where the start is pure noise.

    (1 − W)/2·d·log(2π·noise²) − d/2·log W. Exact in the limit of noise far above the data.
    """
    total = target.total
    return 0.5 * dimension * ((1.0 - total) * math.log(2 * math.pi * level.noise**2) - math.log(total))
