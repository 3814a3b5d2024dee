"""Log-weights: effective sizes and means, in float64 and in the logarithm throughout."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def effective_size(log_weights: Tensor) -> Tensor:
    """ESS = (Σw)²/Σw², between 1 and N; 0 where no weight is above 0.

    Parameters
    ----------
    log_weights : (N,)
    """
    lw = log_weights.double()
    size = (2 * torch.logsumexp(lw, 0) - torch.logsumexp(2 * lw, 0)).exp()
    return torch.nan_to_num(size, nan=0.0)


def perplexity(log_weights: Tensor) -> Tensor:
    """Exp of the entropy of the weights, between 1 and N; moved less by one heavy particle than the ESS."""
    shares = normalised(log_weights)
    size = torch.special.entr(shares).sum().exp()
    return torch.where(log_weights.max() > -torch.inf, size, torch.zeros_like(size))


def inverse_largest(log_weights: Tensor) -> Tensor:
    """1/max W, between 1 and N; the most cautious size. 0 as the ESS."""
    lw = log_weights.double()
    return torch.nan_to_num((torch.logsumexp(lw, 0) - lw.max()).exp(), nan=0.0)


SIZES: dict[str, Callable[[Tensor], Tensor]] = {
    "ess": effective_size,
    "perplexity": perplexity,
    "largest": inverse_largest,
}


def conditional_effective_size(log_weights: Tensor, log_increments: Tensor) -> Tensor:
    """Conditional ESS = N·(ΣW v)²/ΣW v² of incremental weights v at normalised weights W (Zhou et al. 2016).

    Unlike the ESS it says what the increment alone costs.
    """
    lw, lv = log_weights.double() - torch.logsumexp(log_weights.double(), 0), log_increments.double()
    first, second = torch.logsumexp(lw + lv, 0), torch.logsumexp(lw + 2 * lv, 0)
    return torch.nan_to_num(len(lw) * (2 * first - second).exp(), nan=0.0)


def log_mean_exp(log_weights: Tensor) -> Tensor:
    """log((1/N) Σ exp lw), in float64; −inf where all are."""
    lw = log_weights.double()
    return torch.logsumexp(lw, 0) - math.log(len(lw))


def normalised(log_weights: Tensor) -> Tensor:
    """Weights (N,) with sum 1 in float64; uniform where no weight is above 0."""
    lw = log_weights.double()
    return torch.where(torch.isfinite(lw.max()), lw, torch.zeros_like(lw)).softmax(0)


class WeightedSamples:
    """Base of results that hold `sample` (n, ...) and `log_weights` (n,)."""

    sample: Tensor
    log_weights: Tensor

    @property
    def weights(self) -> Tensor:
        """Weights (n,) with sum 1 over this process's samples."""
        return normalised(self.log_weights)

    def mean(self, function: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
        """Weighted average of function(sample), in float64."""
        values = function(self.sample).double()
        return torch.tensordot(self.weights.to(values.device), values, dims=1)
