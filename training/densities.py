"""Time densities: from which law the training times are drawn.

A density holds no random state: it turns uniforms into times through its quantile function, so that the caller
decides how they are drawn (keyed, stratified) and the same uniforms give the same times. All laws are stated
in path time, 0 = noise and 1 = data. Sources: logit-normal, mode and cosmap from Esser et al. 2024, "Scaling
rectified flow transformers for high-resolution image synthesis", section 3.1 and appendix B.4 (there time runs
the other way); log-normal from Karras et al. 2022, table 1.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from pathline.interpolants import GaussianPath
from pathline.samplers import shift_time

from .configurable import Configurable

_BISECTIONS = 60
_EDGE = 1e-12


def normal_quantile(u: Tensor) -> Tensor:
    """Inverse of the standard normal distribution function, for u in (0, 1)."""
    return torch.special.ndtri(u)


def normal_cdf(z: Tensor) -> Tensor:
    """Distribution function of the standard normal law."""
    return torch.special.ndtr(z)


def _normal_density(z: Tensor) -> Tensor:
    return (-0.5 * z.square()).exp() / math.sqrt(2 * math.pi)


class TimeDensity(Configurable):
    """A law of the training time t in (0, 1).

    The path is needed only by laws stated in its log-SNR, which say so; interpolants and bridges pass none.
    """

    kind: ClassVar[str] = "time density"

    @abstractmethod
    def quantile(self, u: Tensor, path: GaussianPath | None = None) -> Tensor:
        """Time below which the fraction `u` in (0, 1) of the law lies; increasing in u."""

    @abstractmethod
    def cdf(self, t: Tensor, path: GaussianPath | None = None) -> Tensor:
        """Fraction of the law below time `t`."""

    @abstractmethod
    def density(self, t: Tensor, path: GaussianPath | None = None) -> Tensor:
        """Density of the law with respect to t."""

    def times(self, u: Tensor, path: GaussianPath | None = None, interval: tuple[float, float] = (0.0, 1.0)) -> Tensor:
        """Times for uniforms `u` in (0, 1), the law conditioned on `interval`.

        Returns a float64 tensor of the shape of `u`.

        Raises
        ------
        ValueError
            If the law has (next to) no mass in the interval.
        """
        ends = torch.tensor(interval, dtype=torch.float64)
        low, high = self.cdf(ends, path).tolist()
        if not high - low > 1e-9:
            where = "" if path is None else f" on path {path.name!r}"
            raise ValueError(
                f"time density {self.config()} lies outside the times {interval} on which this prediction "
                f"can be trained{where}; choose another density"
            )
        inner = (low + (high - low) * u.to(torch.float64)).clamp(_EDGE, 1 - _EDGE)
        return self.quantile(inner, path).clamp(*interval)


@dataclass(frozen=True)
class UniformTime(TimeDensity):
    """t uniform on [0, 1]."""

    name: ClassVar[str] = "uniform"

    def quantile(self, u: Tensor, path: GaussianPath | None = None) -> Tensor:
        """The identity."""
        return u

    def cdf(self, t: Tensor, path: GaussianPath | None = None) -> Tensor:
        """The identity."""
        return t

    def density(self, t: Tensor, path: GaussianPath | None = None) -> Tensor:
        """One."""
        return torch.ones_like(t)


@dataclass(frozen=True)
class LogitNormal(TimeDensity):
    """t = sigmoid(mean + std z); a positive mean leans towards the data, a negative one towards the noise."""

    mean: float = 0.0
    std: float = 1.0

    name: ClassVar[str] = "logit_normal"

    def __post_init__(self) -> None:
        _check_finite("mean", self.mean)
        _check_above_zero("std", self.std)

    def quantile(self, u: Tensor, path: GaussianPath | None = None) -> Tensor:
        """sigmoid(mean + std Phi^-1(u))."""
        return (self.mean + self.std * normal_quantile(u)).sigmoid()

    def cdf(self, t: Tensor, path: GaussianPath | None = None) -> Tensor:
        """Phi((logit t - mean) / std)."""
        return normal_cdf((t.logit() - self.mean) / self.std)

    def density(self, t: Tensor, path: GaussianPath | None = None) -> Tensor:
        """Normal density in logit t, over t (1 - t); its limit 0 at both ends."""
        inside = _normal_density((t.logit() - self.mean) / self.std) / (self.std * t * (1 - t))
        return torch.where((t > 0) & (t < 1), inside, 0.0)


@dataclass(frozen=True)
class Mode(TimeDensity):
    """t = u + scale (cos^2(pi u / 2) - 1 + u): heavier in the middle for scale > 0, uniform at 0.

    `scale` must lie in [-1, 2 / (pi - 2)], outside of which the map is not monotone.
    """

    scale: float = 1.29

    name: ClassVar[str] = "mode"

    def __post_init__(self) -> None:
        if not -1.0 <= self.scale <= 2 / (math.pi - 2):
            raise ValueError(f"scale of density 'mode' must lie in [-1, {2 / (math.pi - 2):.4f}], got {self.scale!r}")

    def quantile(self, u: Tensor, path: GaussianPath | None = None) -> Tensor:
        """The defining map."""
        return u + self.scale * ((0.5 * math.pi * u).cos().square() - 1 + u)

    def cdf(self, t: Tensor, path: GaussianPath | None = None) -> Tensor:
        """Inverse of the map, by bisection to full precision."""
        low, high = torch.zeros_like(t), torch.ones_like(t)
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            below = self.quantile(middle, path) < t
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return 0.5 * (low + high)

    def density(self, t: Tensor, path: GaussianPath | None = None) -> Tensor:
        """One over the slope of the map."""
        u = self.cdf(t, path)
        return 1 / (1 + self.scale * (1 - 0.5 * math.pi * (math.pi * u).sin()))


@dataclass(frozen=True)
class CosMap(TimeDensity):
    """Times for which the linear path has the log-SNR law of the cosine path; density 2 / (pi (1 - 2t + 2t^2))."""

    name: ClassVar[str] = "cosmap"

    def quantile(self, u: Tensor, path: GaussianPath | None = None) -> Tensor:
        """1 - 1 / (tan(pi u / 2) + 1)."""
        return 1 - 1 / ((0.5 * math.pi * u).tan() + 1)

    def cdf(self, t: Tensor, path: GaussianPath | None = None) -> Tensor:
        """(2 / pi) atan(t / (1 - t))."""
        return torch.atan2(t, 1 - t) / (0.5 * math.pi)

    def density(self, t: Tensor, path: GaussianPath | None = None) -> Tensor:
        """2 / (pi (1 - 2t + 2t^2))."""
        return 2 / (math.pi * (1 - 2 * t + 2 * t.square()))


@dataclass(frozen=True)
class LogNormalSigma(TimeDensity):
    """log(noise / signal) normal with this mean and standard deviation (EDM: -1.2 and 1.2)."""

    mean: float = -1.2
    std: float = 1.2

    name: ClassVar[str] = "lognormal_sigma"

    def __post_init__(self) -> None:
        _check_finite("mean", self.mean)
        _check_above_zero("std", self.std)

    def quantile(self, u: Tensor, path: GaussianPath | None = None) -> Tensor:
        """Time at which log(signal / noise) = -mean + std Phi^-1(u)."""
        return required_path(path, self).time_at(-self.mean + self.std * normal_quantile(u))

    def cdf(self, t: Tensor, path: GaussianPath | None = None) -> Tensor:
        """Phi((lam(t) + mean) / std)."""
        return normal_cdf((required_path(path, self).lam(t) + self.mean) / self.std)

    def density(self, t: Tensor, path: GaussianPath | None = None) -> Tensor:
        """Normal density in lam, times d lam/dt; its limit 0 where lam is infinite."""
        point = required_path(path, self).at(t)
        rate = point.wronskian / (point.signal * point.noise)
        inside = _normal_density((point.lam + self.mean) / self.std) / self.std * rate
        return torch.where(point.lam.isfinite(), inside, 0.0)


@dataclass(frozen=True)
class UniformLogSNR(TimeDensity):
    """lam = log(signal / noise) uniform between the path's lambda_min and lambda_max."""

    name: ClassVar[str] = "uniform_logsnr"

    def quantile(self, u: Tensor, path: GaussianPath | None = None) -> Tensor:
        """Time at the interpolated lam."""
        path = required_path(path, self)
        return path.time_at(path.lambda_min + (path.lambda_max - path.lambda_min) * u)

    def cdf(self, t: Tensor, path: GaussianPath | None = None) -> Tensor:
        """(lam(t) - lambda_min) / (lambda_max - lambda_min), within [0, 1]."""
        path = required_path(path, self)
        return ((path.lam(t) - path.lambda_min) / (path.lambda_max - path.lambda_min)).clamp(0, 1)

    def density(self, t: Tensor, path: GaussianPath | None = None) -> Tensor:
        """The rate of lam over its range, zero outside of it."""
        path = required_path(path, self)
        point = path.at(t)
        inside = (point.lam >= path.lambda_min) & (point.lam <= path.lambda_max)
        rate = point.wronskian / (point.signal * point.noise)
        return torch.where(inside, rate / (path.lambda_max - path.lambda_min), 0.0)


@dataclass(frozen=True)
class Shifted(TimeDensity):
    """Another density with its times shifted towards the noise end by `shift` (> 1; below 1 towards the data)."""

    shift: float = 3.0
    base: TimeDensity = field(default_factory=UniformTime)

    name: ClassVar[str] = "shifted"

    def __post_init__(self) -> None:
        _check_above_zero("shift", self.shift)
        if isinstance(self.base, Mapping):  # as it comes from JSON
            object.__setattr__(self, "base", TimeDensity.from_config(self.base))
        if not isinstance(self.base, TimeDensity):
            raise ValueError(f"base of density 'shifted' must be a time density, got {self.base!r}")

    def quantile(self, u: Tensor, path: GaussianPath | None = None) -> Tensor:
        """The base's time, shifted."""
        return shift_time(self.base.quantile(u, path), self.shift)

    def cdf(self, t: Tensor, path: GaussianPath | None = None) -> Tensor:
        """The base's, at the time shifted back."""
        return self.base.cdf(shift_time(t, 1 / self.shift), path)

    def density(self, t: Tensor, path: GaussianPath | None = None) -> Tensor:
        """The base's, times the slope of the inverse shift."""
        slope = self.shift / (1 + (self.shift - 1) * t).square()
        return self.base.density(shift_time(t, 1 / self.shift), path) * slope


def required_path(path: GaussianPath | None, density: TimeDensity) -> GaussianPath:
    """The path, for a law stated in its log-SNR.

    Raises
    ------
    ValueError
        If there is none.
    """
    if path is None:
        raise ValueError(
            f"time density {density.name!r} is stated in the log-SNR of a Gaussian path, which an interpolant or a "
            "bridge has not; choose a density of the time, such as uniform or logit_normal"
        )
    return path


def _check_above_zero(name: str, value: Any) -> None:
    if not (isinstance(value, int | float) and 0 < value < math.inf):
        raise ValueError(f"{name} of a time density must be a finite number above 0, got {value!r}")


def _check_finite(name: str, value: Any) -> None:
    if not (isinstance(value, int | float) and math.isfinite(value)):
        raise ValueError(f"{name} of a time density must be a finite number, got {value!r}")
