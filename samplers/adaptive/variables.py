"""Well-scaled forms of the probability-flow equation: the variable that is stepped, and what is stepped in it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from pathline.interpolants import DiscretePath, check_name

from ..nodes import Level
from .problem import Problem

VARIABLES = ("auto", "sigma", "time")


@dataclass(frozen=True)
class TimeFlow:
    """dx/dt = velocity between two path times; `beyond` allows labels past the end (velocity networks only)."""

    problem: Problem
    low: float
    high: float
    beyond: bool = False

    def slope(self, place: float, state: Tensor) -> Tensor:
        """The velocity; places outside the interval count as its ends unless `beyond`."""
        inside = min(max(place, self.low), self.high)
        level = self.problem.level(inside)
        if self.beyond:
            level = level._replace(time=max(place, self.low))
        return self.problem.query(state, level, "velocity")

    def state(self, x: Tensor) -> Tensor:
        """The stepped state of an x at the start."""
        return x

    def finish(self, state: Tensor) -> Tensor:
        """X at the end of the run."""
        return self.problem.leave(state, self.problem.level(self.high))

    def label(self, place: float) -> str:
        """A place in words."""
        return f"time {place:g}"


@dataclass(frozen=True)
class RatioFlow:
    """d(x/signal)/dσ̃ = noise prediction with σ̃ = noise/signal; places are −σ̃, so that they increase."""

    problem: Problem
    lam: tuple[float, float]

    @property
    def low(self) -> float:
        """−σ̃ at the start."""
        return -math.exp(-self.lam[0])

    @property
    def high(self) -> float:
        """−σ̃ at the end."""
        return -math.exp(-self.lam[1])

    def slope(self, place: float, state: Tensor) -> Tensor:
        """Minus the noise prediction."""
        level = self._level(place)
        return -self.problem.query(level.signal * state, level, "noise")

    def state(self, x: Tensor) -> Tensor:
        """x/signal at the start."""
        return self.problem.enter(x, self.lam[0]) / self.problem.level_of(self.lam[0]).signal

    def finish(self, state: Tensor) -> Tensor:
        """X at the end of the run."""
        level = self.problem.level_of(self.lam[1])
        return self.problem.leave(level.signal * state, level)

    def label(self, place: float) -> str:
        """A place in words."""
        return f"noise/signal {-place:g} (time {self._level(place).time:g})"

    def _level(self, place: float) -> Level:
        return self.problem.level_of(-math.log(-min(max(place, self.low), self.high)))


def make_flow(problem: Problem, variable: str, overshoot: bool = False) -> TimeFlow | RatioFlow:
    """The probability flow in a variable, checked before the first call.

    Parameters
    ----------
    problem : Problem
    variable : {"auto", "sigma", "time"}
        "time": x in path time along the velocity; "sigma": x/signal in noise/signal along the noise prediction. "auto":
        time, which needs fewer calls on every smooth path; sigma on discrete ones, whose rates jump between levels, and
        where the velocity is not determined at the start.
    overshoot : bool
        The last step may go beyond the end.

    Raises
    ------
    ValueError
        Unknown variable; a prediction that does not determine the equation at the start; an overshoot of anything but
        a velocity network in time.
    """
    check_name("variable", variable, VARIABLES)
    smooth = not isinstance(problem.path, DiscretePath) and problem.gives("velocity", problem.start)
    in_time = variable == "time" or (variable == "auto" and smooth)
    if overshoot and not (in_time and problem.border.prediction == "velocity" and not problem.border.thresholding):
        raise ValueError(
            "overshoot=True evaluates the network beyond the end of the path, where only a velocity network in "
            "variable='time' (without thresholding) needs no conversion"
        )
    if not in_time:
        flow = RatioFlow(problem, problem.lam_range())
        _check_start(problem, "data" if problem.level(problem.start).signal == 0.0 else "noise")
        return flow
    _check_start(problem, "velocity")
    high = problem.end if problem.gives("velocity", problem.end) else problem.level_of(problem.lam_range()[1]).time
    return TimeFlow(problem, problem.start, high, overshoot)


def _check_start(problem: Problem, form: str) -> None:
    if not problem.gives(form, problem.start):
        raise ValueError(
            f"a {problem.border.prediction} prediction cannot give the {form} at time {problem.start:g}, where the "
            f"signal is {problem.level(problem.start).signal:g}; start a little later with grid=(0.001, 1.0)"
        )
