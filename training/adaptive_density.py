"""A time density that follows the loss: visit each log-SNR in proportion to how much it contributes.

Kingma and Gao 2023, "Understanding diffusion objectives as the ELBO with simple data augmentation": the
range of log-SNR is cut into equal bins, each keeps a moving average of w |noise error|^2, and the density of the
log-SNR is made proportional to these averages. With a weight stated in log-SNR the objective stays the same
whatever the density, and its estimate becomes steadier, because every visited level then contributes alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from pathline.interpolants import GaussianPath

from .densities import TimeDensity, required_path
from .losses import GaussianObjective


@dataclass(frozen=True)
class LevelHistogram(TimeDensity):
    """Log-SNR with a piecewise constant density between `low` and `high`, in equal bins of the given masses.

    Parameters
    ----------
    masses : tuple of float
        One per bin, above 0; only their ratios count.
    low, high : float
        Log-SNR (2 lam) of the ends.
    """

    masses: tuple[float, ...] = (1.0,)
    low: float = -10.0
    high: float = 10.0

    name: ClassVar[str] = "level_histogram"

    def __post_init__(self) -> None:
        object.__setattr__(self, "masses", tuple(self.masses))  # a list, as it comes from JSON
        if not self.masses or not all(0 < mass < math.inf for mass in self.masses):
            raise ValueError(f"masses of a time density must be finite numbers above 0, got {self.masses}")
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"low={self.low!r} and high={self.high!r} of a time density must be finite and increase")

    def _knots(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Levels of the edges, and the fraction of the law below each."""
        mass = torch.tensor(self.masses, dtype=torch.float64, device=like.device)
        below = torch.cat([mass.new_zeros(1), mass.cumsum(0)]) / mass.sum()
        return torch.linspace(self.low, self.high, len(mass) + 1, dtype=torch.float64, device=like.device), below

    def quantile(self, u: Tensor, path: GaussianPath | None = None) -> Tensor:
        """Time at the level found by linear interpolation between the edges."""
        edges, below = self._knots(u)
        return required_path(path, self).time_at(0.5 * _interpolate(u, below, edges)).to(u)

    def cdf(self, t: Tensor, path: GaussianPath | None = None) -> Tensor:
        """Fraction below the level of `t`, linear within a bin."""
        edges, below = self._knots(t)
        return _interpolate(2 * required_path(path, self).lam(t), edges, below).to(t)

    def density(self, t: Tensor, path: GaussianPath | None = None) -> Tensor:
        """Mass of the bin over its width, times the rate of the log-SNR; zero outside."""
        point = required_path(path, self).at(t)
        level = 2 * point.lam
        mass = torch.tensor(self.masses, dtype=torch.float64, device=t.device)
        share = mass / mass.sum() * len(mass) / (self.high - self.low)
        inside = (level >= self.low) & (level <= self.high)
        rate = 2 * point.wronskian / (point.signal * point.noise)
        return torch.where(inside, share[_bin(level, self.low, self.high, len(mass))].to(t) * rate, 0.0)


def _interpolate(value: Tensor, knots: Tensor, results: Tensor) -> Tensor:
    """Piecewise linear function through (knots, results), constant outside; float64."""
    value = value.to(torch.float64).clamp(knots[0], knots[-1])
    right = torch.searchsorted(knots, value).clamp(1, len(knots) - 1)
    share = (value - knots[right - 1]) / (knots[right] - knots[right - 1])
    return results[right - 1] + share * (results[right] - results[right - 1])


def _bin(level: Tensor, low: float, high: float, bins: int) -> Tensor:
    place = (level - low) * (bins / (high - low))
    return place.clamp(0, bins - 1).long()  # a level outside counts for the bin at its end


class AdaptiveSchedule:
    """Moving averages of the loss by log-SNR, and the time density made from them.

    Deterministic: the state depends on the losses alone, and samples of one update may come in any order (to
    rounding). With several processes give every process the times and losses of all. A training step is

        objective = schedule.applied_to(objective)
        times = objective.times(uniforms)
        losses = objective(model, data, noise, times)
        schedule.update(objective, times, losses)

    Parameters
    ----------
    path : GaussianPath
        Its lambda_min and lambda_max are the ends of the bins.
    bins : int
    decay : float in [0, 1)
        What remains of an average per sample that falls into its bin; a step with n samples there counts as n
        samples with their mean.
    explore : float in [0, 1)
        Share of the density that stays uniform in log-SNR, so that a bin whose average is too small is found out.

    Raises
    ------
    ValueError
        If a number is out of range.
    """

    def __init__(self, path: GaussianPath, bins: int = 100, decay: float = 0.999, explore: float = 0.01) -> None:
        if not isinstance(bins, int) or bins < 1:
            raise ValueError(f"bins={bins!r} is not possible for an adaptive schedule; allowed: at least 1")
        for name, value in (("decay", decay), ("explore", explore)):
            if not 0 <= value < 1:
                raise ValueError(f"{name}={value!r} is not possible for an adaptive schedule; allowed: 0 to below 1")
        self.low, self.high = 2 * path.lambda_min, 2 * path.lambda_max
        self.decay, self.explore = decay, explore
        self.averages = torch.ones(bins, dtype=torch.float64)
        self._visited = False

    def density(self) -> LevelHistogram:
        """The time density of the present averages."""
        mass = self.averages / self.averages.sum()
        mass = (1 - self.explore) * mass + self.explore / len(mass)
        return LevelHistogram(tuple(mass.clamp(min=1e-12).tolist()), self.low, self.high)

    def applied_to(self, objective: GaussianObjective) -> GaussianObjective:
        """The objective with the present density.

        Raises
        ------
        ValueError
            If its weight is not stated in log-SNR: then another density would be another objective.
        """
        if not objective.weight.needs_level_density:
            raise ValueError(
                f"an adaptive schedule needs a loss weight stated in log-SNR (elbo, sigmoid, edm_monotonic), got "
                f"{objective.weight.name!r}: with it a change of the time density would change the objective"
            )
        return replace(objective, density=self.density())

    def update(self, objective: GaussianObjective, t: Tensor, losses: Tensor) -> None:
        """Take in one step's losses.

        Parameters
        ----------
        objective : GaussianObjective
            The one that gave the losses; its density of the log-SNR is multiplied out of them.
        t, losses : Tensor, shape (B,)
            Times and losses of all samples of the step.

        Raises
        ------
        ValueError
            If the shapes differ or a loss is not finite.
        """
        if t.shape != losses.shape or t.ndim != 1:
            raise ValueError(f"t and losses must have one shape (B,), got {tuple(t.shape)} and {tuple(losses.shape)}")
        times = t.detach().cpu().to(torch.float64)
        share = losses.detach().cpu().to(torch.float64) * objective.level_density(times)
        if not bool(share.isfinite().all()):
            raise ValueError("an adaptive schedule takes finite losses only")
        bins = len(self.averages)
        where = _bin(2 * objective.path.lam(times), self.low, self.high, bins)
        count = torch.bincount(where, minlength=bins)
        mean = torch.bincount(where, weights=share, minlength=bins) / count.clamp(min=1)
        if not self._visited:  # the first step sets the scale of all bins, which is arbitrary
            self.averages.fill_(float(share.mean().clamp(min=torch.finfo(torch.float64).tiny)))
            self._visited = True
        keep = self.decay ** count.to(torch.float64)
        self.averages = keep * self.averages + (1 - keep) * mean

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint, JSON-compatible."""
        return {"averages": self.averages.tolist(), "visited": self._visited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned.

        Raises
        ------
        ValueError
            If the number of bins differs.
        """
        averages = torch.tensor(state["averages"], dtype=torch.float64)
        if averages.shape != self.averages.shape:
            raise ValueError(f"the state has {len(averages)} bins, this adaptive schedule {len(self.averages)}")
        self.averages, self._visited = averages, bool(state["visited"])
