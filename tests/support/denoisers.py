"""What the tests of sampler functions share: an exact denoiser, and levels and starts as hosts send them."""

from __future__ import annotations

import torch
from torch import Tensor

from pathline.interpolants import Gaussian

DATA = Gaussian(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), variance=0.25)


def denoiser(x: Tensor, sigma: Tensor, flow: bool = False) -> Tensor:
    """The exact data prediction of a Gaussian."""
    noise = sigma.double().reshape(-1, *[1] * (x.ndim - 1))
    signal = 1.0 - noise if flow else torch.ones_like(noise)
    gain = signal * 0.25 / (signal**2 * 0.25 + noise**2)
    return (DATA.mean + gain * (x.double() - signal * DATA.mean)).to(x.dtype)


def levels(flow: bool, count: int = 6, end: float = 0.0) -> Tensor:
    """float32 levels as hosts send them."""
    high, low = (1.0, 0.1) if flow else (80.0, 0.05)
    return torch.cat([torch.linspace(high ** (1 / 7), low ** (1 / 7), count) ** 7, torch.full((1,), end)]).float()


def start(sigmas: Tensor, batch: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    z = torch.randn(batch, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return (z * sigmas[0]).to(dtype)
