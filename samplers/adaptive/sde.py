"""Stochastic methods of torchsde with step control on the reverse-time equation, driven by a keyed Brownian path."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pathline.interpolants import epsilon_by_name

from ..registry import Reference
from .brownian import BrownianPath
from .monitor import Monitor, check_tolerances
from .problem import Problem
from .registry import register_adaptive

_KEPT = 4  # drifts kept: torchsde asks again at the start of a half step and of a repeated step
Epsilon = Callable[[Tensor], Tensor]


class _Equation:
    """dy = (1 + η)·(D − y) dλ + √(2η)·σ̃ dW for y = x/signal and σ̃ = noise/signal.

    It has the marginals of the path for every strength η(λ) ≥ 0; η dλ = ε(t)/noise² dt in terms of the ε of
    `pathline.interpolants.sde`.
    """

    noise_type = "additive"

    def __init__(self, problem: Problem, strength: Callable[[float], float], shape: torch.Size, sde_type: str) -> None:
        self.problem, self.strength, self.shape, self.sde_type = problem, strength, shape, sde_type
        self._kept: list[tuple[float, Tensor, Tensor]] = []

    def f(self, lam: Tensor, y: Tensor) -> Tensor:
        place = float(lam)
        for at, state, drift in self._kept:
            if state is y and at == place:
                return drift
        level = self.problem.level_of(place)
        x = (level.signal * y).reshape(self.shape)
        drift = (1.0 + self.strength(place)) * (self.problem.query(x, level, "data").reshape(y.shape) - y)
        self._kept = [*self._kept[1 - _KEPT :], (place, y, drift)]
        return drift

    def g_prod(self, lam: Tensor, y: Tensor, v: Tensor) -> Tensor:
        place = float(lam)
        return (math.sqrt(2.0 * self.strength(place)) * math.exp(-place)) * v


class _Driver:
    """The Brownian path in the shape torchsde wants; every third question opens a new trial step."""

    levy_area_approximation = "space-time"

    def __init__(self, path: BrownianPath, monitor: Monitor, like: Tensor) -> None:
        self.path, self.monitor, self.shape = path, monitor, like.shape
        self.dtype, self.device = like.dtype, like.device
        self.asked = 0

    def __call__(self, low: Any, high: Any = None, return_U: bool = False, return_A: bool = False) -> Any:
        low, high = float(low), float(high)
        if self.asked % 3 == 0:  # torchsde tries a full step, then its two halves
            if self.asked:
                self.monitor.finished(low > self.monitor.place)
            self.monitor.trying(low, high - low, last=True)
        self.asked += 1
        increment, area = (part.reshape(self.shape).to(self.dtype) for part in self.path.increment(low, high))
        return (increment, area) if return_U else increment


def _strength(problem: Problem, eta: float, epsilon: str | Epsilon | None) -> Callable[[float], float]:
    if not 0.0 <= eta < math.inf:
        raise ValueError(f"eta={eta!r} is not possible; it must be finite and not negative")
    if epsilon is None:
        return lambda lam: eta
    rule = epsilon_by_name(epsilon, problem.path, eta) if isinstance(epsilon, str) else epsilon

    def strength(lam: float) -> float:
        time = problem.path.time_at(lam)
        point = problem.path.at(time)
        return float(rule(time) * point.signal / (point.noise * point.wronskian))

    return strength


def _solver(name: str, sde_type: str) -> Callable[..., Tensor]:
    def solve(
        problem: Problem,
        x: Tensor,
        *,
        eta: float = 1.0,
        epsilon: str | Epsilon | None = None,
        rtol: float = 0.02,
        atol: float = 0.0078,
        first_step: float = 0.05,
        min_step: float = 1e-3,
        depth: int = 16,
    ) -> Tensor:
        """Integrate the reverse SDE in λ with torchsde.

        Parameters
        ----------
        eta : float ≥ 0
            Strength τ² of the SDE (1 is the original one), or the scale of a named `epsilon`.
        epsilon : str or callable, optional
            Noise level ε(t) of `pathline.interpolants.epsilon_by_name`, or a function of path time.
        rtol, atol : float
            Tolerance atol + rtol·|x/signal| of one step against two half steps.
        first_step, min_step : float
            First step tried and smallest step, in λ. Below it the run is given up.
        depth : int
            Resolution of the Brownian path; its finest cell should be far below `min_step`.
        """
        check_tolerances(rtol, atol)
        for key, value in (("first_step", first_step), ("min_step", min_step)):
            if not value > 0:
                raise ValueError(f"{key}={value!r} is not possible; it must be above 0")
        strength = _strength(problem, eta, epsilon)
        low, high = problem.lam_range()
        monitor = problem.monitor
        monitor.floor, monitor.label = min_step, lambda place: f"λ {place:g} (time {problem.level_of(place).time:g})"
        monitor.advice = f"Larger tolerances (rtol={rtol:g}, atol={atol:g}) need fewer calls."
        path = BrownianPath(x.shape[1:], problem.seed, problem.samples, low, high, depth=depth, device=x.device)
        first = problem.enter(x, low) / problem.level_of(low).signal
        equation = _Equation(problem, strength, x.shape, sde_type)
        options = {"method": name, "rtol": rtol, "atol": atol, "dt": first_step, "dt_min": min_step}
        level = problem.level_of(high)
        y = _integrate(equation, first, (low, high), path, options)
        return problem.leave(level.signal * y, level)

    return solve


def _integrate(
    equation: _Equation, first: Tensor, ends: tuple[float, float], path: BrownianPath, options: dict[str, Any]
) -> Tensor:
    try:
        from torchsde import sdeint
    except ImportError:
        raise ImportError("stochastic adaptive methods need torchsde; install pathline[adaptive]") from None
    y = first.reshape(len(first), -1)
    monitor = equation.problem.monitor
    driver = _Driver(path, monitor, y)
    times = torch.tensor(ends, dtype=path.dtype, device=y.device)
    devices = [y.device] if y.device.type == "cuda" else []
    # torchsde draws (and drops) one normal tensor to learn shapes, and warns where it should stop
    with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
        warnings.filterwarnings("error", message="Hitting minimum allowed step size")
        try:
            states = sdeint(equation, y, times, bm=driver, adaptive=True, **options)
        except UserWarning as warning:
            if "minimum allowed step" not in str(warning):
                raise
            raise monitor.stuck() from None
    monitor.finished(True)
    assert isinstance(states, Tensor)
    return states[1].reshape(first.shape)


BRIDGE = Reference(
    key="li2020scalable",
    authors="Li, Xuechen and Wong, Ting-Kam Leonard and Chen, Ricky T. Q. and Duvenaud, David",
    title="Scalable Gradients for Stochastic Differential Equations",
    year=2020,
    venue="AISTATS",
    arxiv="2001.01328",
)
ROESSLER = Reference(
    key="roessler2010runge",
    authors="Rößler, Andreas",
    title="Runge-Kutta Methods for the Strong Approximation of Solutions of Stochastic Differential Equations",
    year=2010,
    venue="SIAM Journal on Numerical Analysis",
)
# The noise is additive, so Itô's and Stratonovich's equations are the same.
for _name, _solver_name, _type, _summary, _reference in (
    ("sde-euler", "euler", "ito", "Euler–Maruyama on the reverse SDE, two calls per step.", BRIDGE),
    ("sde-midpoint", "midpoint", "stratonovich", "Midpoint rule on the reverse SDE, five calls per step.", BRIDGE),
    ("sde-heun", "heun", "stratonovich", "Heun's rule on the reverse SDE, five calls per step.", BRIDGE),
    ("sde-srk", "srk", "ito", "Stochastic Runge–Kutta of strong order 1.5, five calls per step.", ROESSLER),
):
    register_adaptive(
        _name,
        _solver(_solver_name, _type),
        summary=_summary,
        reference=_reference,
        stochastic=True,
        requires="torchsde",
    )
