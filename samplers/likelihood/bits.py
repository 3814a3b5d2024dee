"""Bits per dimension, dequantisation and importance weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_LN2 = math.log(2.0)


def bits_per_dimension(
    log_density: Tensor, dimensions: int, *, levels: int = 256, low: float = -1.0, high: float = 1.0
) -> Tensor:
    """Bits for each element, −log p/(d·ln 2) + log2(levels/(high − low)): +7 for 8-bit data in [−1, 1].

    Parameters
    ----------
    log_density : Tensor (B,)
        Of dequantised data, in nats; the bits are then an upper bound on those of the discrete data.
    dimensions : int
        Elements of a sample.
    levels : int
        Number of discrete values; 1 for data that are continuous anyway.
    low, high : float
        Range that the levels fill; for levels=1 use low=0, high=1.
    """
    if dimensions < 1 or levels < 1 or not low < high:
        raise ValueError(f"dimensions={dimensions!r}, levels={levels!r}, low={low!r}, high={high!r} are no data format")
    return -log_density / (dimensions * _LN2) + math.log2(levels / (high - low))


def dequantised(
    values: Tensor,
    *,
    levels: int = 256,
    low: float = -1.0,
    high: float = 1.0,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Uniform dequantisation: the integer k becomes low + (k + u)/levels·(high − low) with u uniform in [0, 1).

    Parameters
    ----------
    values : integer Tensor (B, ...), or floating with whole numbers, in 0..levels − 1

    Raises
    ------
    ValueError
        Values outside, or no whole numbers.
    """
    whole = values.to(torch.int64)
    if not bool(((whole >= 0) & (whole < levels)).all()) or not bool((whole == values).all()):
        raise ValueError(f"values to dequantise must be whole numbers in 0..{levels - 1}")
    noise = torch.rand(values.shape, generator=generator, dtype=torch.float64).to(values.device)
    return (low + (whole + noise) * ((high - low) / levels)).to(dtype)


@dataclass(frozen=True)
class ImportanceWeights:
    """Weights of samples of ρ for a target known up to a factor.

    Attributes
    ----------
    log_weights : Tensor (N,)
    log_constant : float
        Logarithm of the mean weight, whose exponential estimates the target's normalising constant without bias.
    standard_error : float
        Of exp(log_constant), relative to it.
    effective : float
        Effective sample size over N; below 0.1 go on with SMC or MCMC.
    """

    log_weights: Tensor
    log_constant: float
    standard_error: float
    effective: float

    def mean(self, values: Tensor) -> Tensor:
        """Self-normalised estimate of the target's mean of values (N, ...)."""
        shares = torch.softmax(self.log_weights, 0).to(values.dtype)
        return torch.einsum("n,n...->...", shares, values)


def importance_weights(log_target: Tensor, log_density: Tensor) -> ImportanceWeights:
    """Weights target/ρ of samples x ~ ρ from log π̃(x) and log ρ(x), both (N,).

    For an unbiased constant ρ must be the density of the numerical map itself: `map_density`, or `log_density` with an
    exact trace and a tight tolerance.

    Raises
    ------
    ValueError
        Other shapes, or weights that are all zero or not numbers.
    """
    if log_target.ndim != 1 or log_target.shape != log_density.shape:
        raise ValueError(
            f"log_target {tuple(log_target.shape)} and log_density {tuple(log_density.shape)} must be (N,)"
        )
    weights = log_target.double() - log_density.double()
    top = weights.max()
    if not bool(torch.isfinite(top)) or bool(weights.isnan().any()):
        raise ValueError("importance weights are all zero, infinite or not numbers")
    scaled = (weights - top).exp()
    mean, count = scaled.mean(), len(scaled)
    error = float(scaled.std() / (mean * math.sqrt(count))) if count > 1 else math.inf
    effective = float(scaled.sum() ** 2 / (scaled.square().sum() * count))
    return ImportanceWeights(weights, float(top + mean.log()), error, effective)
