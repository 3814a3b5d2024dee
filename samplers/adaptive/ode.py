"""Embedded Runge–Kutta methods of torchdiffeq on the probability-flow equation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..methods.butcher import BUTCHER
from ..registry import Reference
from .monitor import Monitor, check_tolerances, error_norm
from .problem import Problem
from .registry import register_adaptive
from .variables import RatioFlow, TimeFlow, make_flow

_FLOOR = 1e-9  # of the length of the interval


class _Field:
    """Right-hand side in the shape torchdiffeq wants, with its callbacks."""

    def __init__(self, flow: TimeFlow | RatioFlow, monitor: Monitor) -> None:
        self.flow, self.monitor = flow, monitor

    def __call__(self, place: Tensor, state: Tensor) -> Tensor:
        return self.flow.slope(float(place), state)

    def callback_step(self, place: Tensor, state: Tensor, step: Tensor) -> None:
        left = self.flow.high - float(place)
        self.monitor.trying(float(place), float(step), last=float(step) >= left)

    def callback_accept_step(self, place: Tensor, state: Tensor, step: Tensor) -> None:
        self.monitor.finished(True)

    def callback_reject_step(self, place: Tensor, state: Tensor, step: Tensor) -> None:
        self.monitor.finished(False)


def _solver(name: str) -> Callable[..., Tensor]:
    def solve(
        problem: Problem,
        x: Tensor,
        *,
        rtol: float = 1e-3,
        atol: float = 1e-6,
        variable: str = "auto",
        norm: str = "worst",
        first_step: float | None = None,
        min_step: float | None = None,
        overshoot: bool = False,
    ) -> Tensor:
        """Integrate with torchdiffeq.

        Parameters
        ----------
        rtol, atol : float
            Tolerance atol + rtol·|state| of one step, per coordinate.
        variable : {"auto", "sigma", "time"}
            See `variables.make_flow`.
        norm : {"worst", "mean"}
            See `monitor.error_norm`.
        first_step : float, optional
            First step tried, in the unit of the variable; default by Hairer's rule, at the cost of one more call.
        min_step : float, optional
            Smallest step, in the unit of the variable; default 1e-9 of the interval. Below it the run is given up.
        overshoot : bool
            Let the last step go beyond the end and interpolate, as the released SiT code does, instead of landing
            on it. Velocity networks in time only.
        """
        check_tolerances(rtol, atol)
        measure = error_norm(norm)
        for key, value in (("first_step", first_step), ("min_step", min_step)):
            if value is not None and not value > 0:
                raise ValueError(f"{key}={value!r} is not possible; it must be above 0")
        flow = make_flow(problem, variable, overshoot)
        monitor = problem.monitor
        monitor.floor = min_step or _FLOOR * (flow.high - flow.low)
        monitor.label = flow.label
        monitor.advice = f"Larger tolerances (rtol={rtol:g}, atol={atol:g}) need fewer calls."
        return flow.finish(_integrate(name, flow, problem, x, (rtol, atol, measure, first_step, overshoot)))

    return solve


def _integrate(
    name: str,
    flow: TimeFlow | RatioFlow,
    problem: Problem,
    x: Tensor,
    control: tuple[float, float, Callable[[Tensor], Tensor], float | None, bool],
) -> Tensor:
    from torchdiffeq import odeint

    rtol, atol, measure, first_step, overshoot = control
    start = flow.state(x)
    wide = torch.float32 if start.device.type == "mps" else torch.float64
    ends = torch.tensor([flow.low, flow.high], dtype=wide, device=start.device)
    options = {"norm": lambda error: problem.monitor.measured(measure(error)), "dtype": wide, "first_step": first_step}
    if not overshoot:
        options["step_t"] = ends[1:]
    states = odeint(_Field(flow, problem.monitor), start, ends, rtol=rtol, atol=atol, method=name, options=options)
    return states[1]


DORMAND_PRINCE = Reference(
    key="dormand1980family",
    authors="Dormand, J. R. and Prince, P. J.",
    title="A family of embedded Runge-Kutta formulae",
    year=1980,
    venue="Journal of Computational and Applied Mathematics",
)
BOGACKI_SHAMPINE = Reference(
    key="bogacki1989pair",
    authors="Bogacki, P. and Shampine, L. F.",
    title="A 3(2) pair of Runge-Kutta formulas",
    year=1989,
    venue="Applied Mathematics Letters",
)
FEHLBERG = Reference(
    key="fehlberg1969low",
    authors="Fehlberg, Erwin",
    title="Low-order classical Runge-Kutta formulas with stepsize control",
    year=1969,
    venue="NASA Technical Report R-315",
)
for _name, _summary, _reference in (
    ("adaptive_heun", "Heun–Euler pair of order 2(1), two calls per step.", BUTCHER),
    ("fehlberg2", "Fehlberg's pair of order 2(1).", FEHLBERG),
    ("bosh3", "Bogacki–Shampine pair of order 3(2), three calls per step.", BOGACKI_SHAMPINE),
    ("dopri5", "Dormand–Prince pair of order 5(4), six calls per step.", DORMAND_PRINCE),
    ("dopri8", "Dormand–Prince pair of order 8(7), thirteen calls per step.", DORMAND_PRINCE),
):
    register_adaptive(_name, _solver(_name), summary=_summary, reference=_reference)
