"""Gaussian paths: the law of x_t = signal(t) * data + noise(t) * eps, with eps ~ N(0, I)."""

from abc import ABC, abstractmethod
from dataclasses import fields
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .errors import check_name
from .tensors import Time, as_float_tensor, as_time, holds, in_wide_precision, match, time_for

PREDICTIONS = ("data", "noise", "velocity", "v", "score")
_FLOW_MARGIN = 1e-3
_RATE_MARGIN = 1e-5


class PathPoint(NamedTuple):
    """Signal, noise and their rates d/dt at some times; four tensors of one shape."""

    signal: Tensor
    noise: Tensor
    signal_rate: Tensor
    noise_rate: Tensor

    @property
    def lam(self) -> Tensor:
        """Half the log signal-to-noise ratio, log(signal / noise)."""
        return self.signal.log() - self.noise.log()

    @property
    def wronskian(self) -> Tensor:
        """signal_rate * noise - signal * noise_rate = signal * noise * d lam/dt, positive on every path."""
        return self.signal_rate * self.noise - self.signal * self.noise_rate


class GaussianPath(ABC):
    """A path from noise (t = 0) to data (t = 1).

    A sub-class is a frozen dataclass of its parameters and gives `_signal`, `_noise`, their rates and
    `_time_at`, each for float32 or float64 tensors. Every public function takes a float or a tensor of any
    shape; a float is evaluated in float64, a tensor keeps its type and device. Results have the shape of `t`.
    """

    name: ClassVar[str]
    constant_rates: ClassVar[bool] = False

    @abstractmethod
    def _signal(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _noise(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _signal_rate(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _noise_rate(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _time_at(self, lam: Tensor) -> Tensor: ...

    def _lam(self, t: Tensor) -> Tensor:
        return self._signal(t).log() - self._noise(t).log()

    def _noise_noise_rate(self, t: Tensor) -> Tensor:
        return self._noise(t) * self._noise_rate(t)

    def signal(self, t: Time) -> Tensor:
        """Coefficient of the data."""
        return in_wide_precision(self._signal, as_time(t))

    def noise(self, t: Time) -> Tensor:
        """Coefficient of the standard normal noise."""
        return in_wide_precision(self._noise, as_time(t))

    def signal_rate(self, t: Time) -> Tensor:
        """Rate d signal/dt; infinite only where the path has an infinite slope."""
        return in_wide_precision(self._signal_rate, as_time(t))

    def noise_rate(self, t: Time) -> Tensor:
        """Rate d noise/dt; minus infinity where noise falls like a square root (t = 1 if preserving)."""
        return in_wide_precision(self._noise_rate, as_time(t))

    def noise_noise_rate(self, t: Time) -> Tensor:
        """Half the rate of noise^2, noise * d noise/dt; finite also where `noise_rate` is not."""
        return in_wide_precision(self._noise_noise_rate, as_time(t))

    def lam(self, t: Time) -> Tensor:
        """log(signal / noise), strictly increasing in t; infinite where signal or noise is zero."""
        return in_wide_precision(self._lam, as_time(t))

    @cached_property
    def _lam_ends(self) -> tuple[float, float]:
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
        low, high = self._lam(ends).tolist()
        return low, high

    def time_at(self, lam: Time) -> Tensor:
        """Invert `lam`: the time at which log(signal / noise) has the given value.

        Values at or beyond the ends of the path, infinities included, give exactly 0 or 1.

        Raises
        ------
        ValueError
            If a value is NaN (not checked on an accelerator).
        """
        values = as_float_tensor(lam)
        if not holds(~values.isnan()):
            raise ValueError("lam must not be NaN")
        low, high = self._lam_ends

        def inverse(value: Tensor) -> Tensor:
            before, after = value <= low, value >= high
            # A harmless value in place of those outside keeps infinities out of formula and gradient.
            inside = value.masked_fill(before | after, 0.5 * (self.lambda_min + self.lambda_max))
            return self._time_at(inside).clamp(0, 1).masked_fill(before, 0.0).masked_fill(after, 1.0)

        return in_wide_precision(inverse, values)

    def at(self, t: Time) -> PathPoint:
        """Signal, noise and both rates at `t`."""
        times = as_time(t)
        functions = (self._signal, self._noise, self._signal_rate, self._noise_rate)
        return PathPoint(*(in_wide_precision(function, times) for function in functions))

    def sample(self, data: Tensor, noise: Tensor, t: Time) -> Tensor:
        """Return x_t = signal * data + noise * eps for t of shape () or (B,) and data of shape (B, ...)."""
        times = time_for(t, data)
        return match(self.signal(times), data) * data + match(self.noise(times), data) * noise

    def velocity(self, data: Tensor, noise: Tensor, t: Time) -> Tensor:
        """Return d x_t/dt = signal_rate * data + noise_rate * eps; shapes as `sample`."""
        times = time_for(t, data)
        return match(self.signal_rate(times), data) * data + match(self.noise_rate(times), data) * noise

    def prior(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Draw the state at t = 0: noise(0) times a standard normal tensor (80 * z for the EDM path)."""
        z = torch.randn(shape, generator=generator, device=device, dtype=dtype)
        return z * self.noise(0.0).item()

    @property
    @abstractmethod
    def lambda_min(self) -> float:
        """Lower end of the default range of lam for grids; finite also where lam(0) is minus infinity."""

    @property
    @abstractmethod
    def lambda_max(self) -> float:
        """Upper end of the default range of lam for grids; finite also where lam(1) is infinite."""

    def train_interval(self, prediction: str) -> tuple[float, float]:
        """Times (low, high) between which a network with this prediction has bounded targets.

        Data and v predictions use all of [0, 1]. Noise and score predictions leave out the ends at which the
        data cannot be recovered or the score diverges (1e-3 on paths that start from pure noise, else 1e-5 at
        the data end); the velocity leaves out 1e-5 where a rate is infinite.

        Raises
        ------
        ValueError
            If `prediction` is not one of `PREDICTIONS`.
        """
        check_name("prediction", prediction, PREDICTIONS)
        low = high = 0.0
        if prediction in ("noise", "score"):
            from_pure_noise = self._lam_ends[0] == float("-inf")
            low = _FLOW_MARGIN if from_pure_noise else 0.0
            if self._lam_ends[1] == float("inf"):
                high = _FLOW_MARGIN if from_pure_noise else _RATE_MARGIN
        elif prediction == "velocity":
            first, last = self.at(0.0), self.at(1.0)
            low = 0.0 if bool((first.signal_rate - first.noise_rate).isfinite()) else _RATE_MARGIN
            high = 0.0 if bool((last.signal_rate - last.noise_rate).isfinite()) else _RATE_MARGIN
        return low, 1.0 - high

    def config(self) -> dict[str, Any]:
        """Name and parameters as a dictionary for JSON; `path_from_config` makes the path again."""
        result: dict[str, Any] = {"name": self.name}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            result[field.name] = list(value) if isinstance(value, tuple) else value
        return result
