"""Thresholding of the data prediction: keep it in the range that data have.

Every rule here is a map of the data prediction alone, sample by sample, without a host read. The border to the network
applies it after guidance and conversion and before anything is stored, so a method's history holds thresholded data
only. Where a row stores the noise or the velocity, that is computed again from the thresholded data (what diffusers
calls `use_clipped_model_output`): data and noise then always explain the state, x = signal·data + noise·ε. The other
convention, thresholded data beside the raw noise, contradicts the state and is not offered.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Thresholding = Callable[[Tensor], Tensor]
"""Any per-sample map of the data prediction (B, ...), such as a projection onto known pixels."""


@dataclass(frozen=True)
class StaticThreshold:
    """Clip the data prediction to [−limit, limit] (`clip_sample` and `clip_sample_range` of diffusers).

    Attributes
    ----------
    limit : float > 0
    """

    limit: float = 1.0

    def __post_init__(self) -> None:
        _check_positive("limit", self.limit)

    def __call__(self, data: Tensor) -> Tensor:
        """The clipped prediction."""
        return data.clamp(-self.limit, self.limit)


@dataclass(frozen=True)
class DynamicThreshold:
    """Dynamic thresholding (Saharia et al. 2022, arXiv:2205.11487, section 2.3).

    With s the percentile of |data| within one sample, but at least `limit` (and at most `max_value`), the prediction
    is clipped to [−s, s] and scaled by limit/s, so that it ends in [−limit, limit].

    Attributes
    ----------
    percentile : float in (0, 1]
        `dynamic_thresholding_ratio` of diffusers; interpolated linearly between values, as `torch.quantile` does.
    limit : float > 0
        Half-width of the range of the data (the "max_val" of DPM-Solver's and UniPC's code).
    max_value : float ≥ limit, optional
        Largest s; `sample_max_value` of diffusers, whose default 1 makes the rule static.
    """

    percentile: float = 0.995
    limit: float = 1.0
    max_value: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.percentile <= 1.0:
            raise ValueError(f"percentile={self.percentile!r} is not possible; it must lie in (0, 1]")
        _check_positive("limit", self.limit)
        if self.max_value is not None and not self.max_value >= self.limit:
            raise ValueError(f"max_value={self.max_value!r} is not possible; it must be at least limit={self.limit!r}")

    def __call__(self, data: Tensor) -> Tensor:
        """The thresholded prediction."""
        scale = _quantile(data.abs().reshape(len(data), -1), self.percentile).clamp(self.limit, self.max_value)
        scale = scale.reshape(-1, *(1,) * (data.ndim - 1))
        return data.clamp(-scale, scale) * (self.limit / scale)


def _quantile(values: Tensor, fraction: float) -> Tensor:
    """Quantile of each row (B, n) → (B,); unlike torch.quantile of any size, and only the upper tail is sorted."""
    place = fraction * (values.shape[1] - 1)
    below = math.floor(place)
    top = values.topk(values.shape[1] - below, dim=1).values
    low, high = top[:, -1], top[:, max(top.shape[1] - 2, 0)]
    return torch.lerp(low, high, place - below)


def _check_positive(name: str, value: float) -> None:
    if not 0.0 < value < math.inf:
        raise ValueError(f"{name}={value!r} is not possible; it must be a finite number above 0")
