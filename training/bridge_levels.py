"""Bridges that are defined on a finite number of training levels: I2SB, BBDM, ResShift.

The levels are those of the official training code, end points included; `i2sb_nodes`, `bbdm_nodes` and
`resshift_nodes` of pathline.samplers pick from the same levels for sampling.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .bridge_predictions import BridgeCoefficients


@dataclass(frozen=True, eq=False)
class BridgeLevels:
    """Coefficients of x = anchor source + signal data + noise z on N levels, the noisiest (next to the source) first.

    A time in [0, 1) stands for level floor(N t), so a uniform time makes all levels equally likely. The network is
    given the training index N - 1 - level, as the official networks are: 0 is next to the data.

    Parameters
    ----------
    anchor, signal, noise : Tensor, shape (N,), float64
    """

    anchor: Tensor
    signal: Tensor
    noise: Tensor

    def __len__(self) -> int:
        return len(self.anchor)

    def level(self, t: Tensor) -> Tensor:
        """Number of the level a time stands for."""
        return (t.to(torch.float64) * len(self)).long().clamp(max=len(self) - 1)

    def index(self, t: Tensor) -> Tensor:
        """Training index a time stands for, N - 1 at t = 0."""
        return len(self) - 1 - self.level(t)

    def at(self, t: Tensor) -> BridgeCoefficients:
        """Coefficients at the levels of times of any shape, float64."""
        return self._pick(self.level(t))

    def at_index(self, index: Tensor) -> BridgeCoefficients:
        """Coefficients at training indices of any shape, float64.

        Raises
        ------
        ValueError
            If an index is not one of 0 ... N - 1.
        """
        whole = index.round().long()
        if not bool(((whole >= 0) & (whole < len(self)) & (whole == index)).all()):
            raise ValueError(f"a training index must be one of 0 ... {len(self) - 1}, got {index.tolist()}")
        return self._pick(len(self) - 1 - whole)

    def _pick(self, level: Tensor) -> BridgeCoefficients:
        return BridgeCoefficients(*(entry.to(level.device)[level] for entry in (self.anchor, self.signal, self.noise)))


def i2sb_levels(train_steps: int = 1000, *, beta_min: float = 0.1, beta_max: float = 0.3) -> BridgeLevels:
    """Levels of I2SB: sqrt(beta) linear up to the middle and mirrored, from beta_min / N to beta_max / N.

    With s2 and r2 the variances summed from the data's and from the source's end, both including the level's own,
    anchor = s2 / (s2 + r2), signal = r2 / (s2 + r2) and noise^2 = s2 r2 / (s2 + r2). Liu et al. 2023,
    "I2SB: image-to-image Schrödinger bridge".

    Raises
    ------
    ValueError
        If a number is out of range.
    """
    _check(train_steps, 2, beta_min=beta_min, beta_max=beta_max)
    root = torch.linspace(
        (beta_min / train_steps) ** 0.5, (beta_max / train_steps) ** 0.5, train_steps, dtype=torch.float64
    )
    half = root[: (train_steps + 1) // 2].square()
    beta = torch.cat([half, half[: train_steps // 2].flip(0)])
    forward, backward = beta.cumsum(0), beta.flip(0).cumsum(0).flip(0)
    total = forward + backward
    levels = (forward / total, backward / total, (forward * backward / total).sqrt())
    return BridgeLevels(*(entry.flip(0) for entry in levels))


def bbdm_levels(train_steps: int = 1000, *, max_variance: float = 1.0) -> BridgeLevels:
    """Levels of BBDM: a Brownian bridge of variance 2 max_variance m (1 - m), m from 0.999 to 0.001.

    Also those of the consecutive Brownian bridge. Li et al. 2023, arXiv:2205.07680.

    Raises
    ------
    ValueError
        If a number is out of range.
    """
    _check(train_steps, 2, max_variance=max_variance)
    anchor = torch.linspace(0.999, 0.001, train_steps, dtype=torch.float64)
    return BridgeLevels(anchor, 1 - anchor, (2 * max_variance * anchor * (1 - anchor)).sqrt())


def resshift_levels(
    train_steps: int = 15, *, kappa: float = 2.0, power: float = 0.3, min_noise: float = 0.04, end: float = 0.99
) -> BridgeLevels:
    """Levels of ResShift: x = data + eta (source - data) + kappa sqrt(eta) z.

    sqrt(eta) runs from min(min_noise / kappa, min_noise) to `end`, geometric in ((n - 1) / (N - 1))^power. Yue et al.
    2023, arXiv:2307.12348, with the sequence on sqrt(eta) as in its code.

    Raises
    ------
    ValueError
        If a number is out of range.
    """
    _check(train_steps, 2, kappa=kappa, power=power, min_noise=min_noise, end=end)
    low = min(min_noise / kappa, min_noise)
    if not low < end < 1:
        raise ValueError(f"end={end!r} is not possible; it must lie between the smallest sqrt(eta), {low:g}, and 1")
    place = torch.linspace(1, 0, train_steps, dtype=torch.float64).pow(power)
    anchor = (low * (end / low) ** place).square()
    return BridgeLevels(anchor, 1 - anchor, kappa * anchor.sqrt())


def _check(train_steps: int, least: int, **values: float) -> None:
    if not isinstance(train_steps, int) or train_steps < least:
        raise ValueError(f"train_steps={train_steps!r} is not possible; allowed: at least {least}")
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name}={value!r} is not possible; it must be above 0")
