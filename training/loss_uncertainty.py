"""Weights of the noise levels that are learned with the network.

Karras, Aittala, Lehtinen, Hellsten, Aila and Laine, "Analyzing and improving the training dynamics of diffusion models"
(EDM2), CVPR 2024 (arXiv:2312.02696), section 2.2 and equation 14, after Kendall, Gal and Cipolla 2018.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_FEATURES = 128
_MOST_LAMBDA = 10.0


class LossUncertainty(nn.Module):
    """loss / e^u(λ) + u(λ), with u learned: at its minimum u = log E[loss | λ], so that all levels count alike.

    u is linear in Fourier features of −λ/4 = log(noise/signal)/4 and 0 at the beginning. Minimising over the network
    alone is not changed by it beyond the weight of each level.

    Parameters
    ----------
    seed : int
        Of the random frequencies and phases.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("frequencies", 2 * math.pi * torch.randn(_FEATURES, generator=generator))
        self.register_buffer("phases", 2 * math.pi * torch.rand(_FEATURES, generator=generator))
        self.weights = nn.Parameter(torch.zeros(_FEATURES))

    def forward(self, lam: Tensor) -> Tensor:
        """U at log(signal/noise), (B,) -> (B,)."""
        level = -0.25 * lam.clamp(-_MOST_LAMBDA, _MOST_LAMBDA).to(self.weights)
        angles = level[:, None] * self.frequencies + self.phases  # type: ignore[operator]
        return math.sqrt(2.0 / _FEATURES) * (angles.cos() @ self.weights)


def balanced(losses: Tensor, uncertainty: Tensor) -> Tensor:
    """loss·e^−u + u of each sample, (B,)."""
    return losses * (-uncertainty).exp().to(losses) + uncertainty.to(losses)
