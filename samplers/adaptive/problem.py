"""The differential equation that an adaptive method integrates: a network, a path and two times."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pathline.interpolants import GaussianPath

from ..border import Border
from ..nodes import Level
from .monitor import Monitor


def level_at(path: GaussianPath, time: float) -> Level:
    """The point of a path at `time` (clamped to [0, 1]); rates are None where they are infinite."""
    point = path.at(min(max(time, 0.0), 1.0))
    signal_rate, noise_rate = (float(rate) for rate in (point.signal_rate, point.noise_rate))
    return Level(
        time,
        float(point.signal),
        float(point.noise),
        signal_rate if math.isfinite(signal_rate) else None,
        noise_rate if math.isfinite(noise_rate) else None,
        clock=time,
    )


@dataclass
class Problem:
    """Everything an adaptive method may use.

    Attributes
    ----------
    path : GaussianPath
    border : Border
        The network; counts its calls.
    kwargs : mapping
        Keyword arguments of the model.
    monitor : Monitor
    start, end : float
        Path times of the initial state and of the result.
    open_end : bool
        True for a run to the clean end of the whole path, where the result is a data prediction.
    seed : int
    samples : (B,) int64
        Global indices that key the noise.
    tick : function
        Called once for every network call.
    """

    path: GaussianPath
    border: Border
    kwargs: Mapping[str, Any]
    monitor: Monitor
    start: float
    end: float
    open_end: bool
    seed: int
    samples: Tensor
    tick: Callable[[], None] = field(default=lambda: None)

    def query(self, x: Tensor, level: Level, form: str) -> Tensor:
        """The network's output at the state `x` on `level`, in `form`.

        Raises
        ------
        ValueError
            The prediction does not determine `form` there.
        AdaptiveError
            The cap on calls is reached.
        NonFiniteError
            The output holds NaN or infinite values.
        """
        self.monitor.calling(self.border.evaluations)
        output = self.border.at(level, form, x, self.kwargs)
        self.tick()
        return self.monitor.checked(output, level.time)

    def level(self, time: float) -> Level:
        """The point of the path at `time`."""
        return level_at(self.path, time)

    def level_of(self, lam: float) -> Level:
        """The point of the path at half log-SNR λ."""
        return self.level(float(self.path.time_at(lam)))

    def gives(self, form: str, time: float) -> bool:
        """Whether the network's prediction determines `form` at `time`."""
        try:
            self.border.conversion(self.level(time), form)
        except ValueError:
            return False
        return True

    def lam_range(self) -> tuple[float, float]:
        """λ between which an equation in λ or noise/signal is integrated, inside the path's default range.

        Raises
        ------
        ValueError
            Nothing is left between them.
        """
        low, high = (float(self.path.lam(time)) for time in (self.start, self.end))
        low = max(low, self.path.lambda_min) if math.isinf(low) else low
        high = min(high, self.path.lambda_max) if math.isinf(high) or self.open_end else high
        if not low < high:
            raise ValueError(f"grid=({self.start:g}, {self.end:g}) leaves nothing between λ = {low:g} and {high:g}")
        return low, high

    def enter(self, x: Tensor, lam: float) -> Tensor:
        """The state at λ from the one at `start`: a first-order data step where λ is infinite at the start."""
        first = self.level(self.start)
        if first.signal > 0.0:
            return x
        level = self.level_of(lam)
        data = self.query(x, first, "data")
        return level.signal * data + level.noise / first.noise * x

    def leave(self, x: Tensor, level: Level) -> Tensor:
        """The result from the state at the last level: the data prediction, or the state of a run between two times."""
        clean = self.open_end or float(self.path.noise(self.end)) == 0.0
        return self.query(x, level, "data") if clean and level.noise > 0.0 else x
