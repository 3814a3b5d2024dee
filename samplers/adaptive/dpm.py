"""DPM-Solver with adaptive steps: embedded singlestep pairs in λ."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ..combine import Combiner
from ..grids import make_nodes
from ..methods.dpm import DPM_SOLVER
from ..methods.multistep import check_order, check_variant
from ..methods.singlestep import Scheme, singlestep
from ..nodes import times_at
from ..table import Row, Table
from .monitor import check_tolerances, error_norm
from .problem import Problem
from .registry import register_adaptive

FORMS = ("noise", "data")
_SAFETY = 0.9
_FLOOR = 1e-7  # in λ


def solve_dpm(
    problem: Problem,
    x: Tensor,
    *,
    order: int = 3,
    form: str = "data",
    rtol: float = 0.05,
    atol: float = 0.0078,
    norm: str = "worst",
    first_step: float = 0.05,
    min_step: float = _FLOOR,
    recompute: bool = False,
) -> Tensor:
    """DPM-Solver-12 and -23 (Lu et al. 2022, Appendix C, Algorithm 3), in noise or data form.

    A step from s to t in λ is taken with singlestep formulas of orders p and p − 1 that share their calls. With E the
    norm of their difference in units of max(atol, rtol·max(|lower|, |last lower|)) it is accepted for E ≤ 1, and the
    next one has 0.9·E^(−1/p) times its length.

    Parameters
    ----------
    order : {2, 3}
        p; a step costs p calls, a repeated one p − 1.
    form : {"noise", "data"}
        DPM-Solver or DPM-Solver++ formulas.
    rtol, atol : float
        As above; the published atol is 1/256·2 for data in [−1, 1].
    norm : {"worst", "mean"}
        See `monitor.error_norm`; published: "worst".
    first_step, min_step : float
        First step tried and smallest step, in λ.
    recompute : bool
        Call the network again at the start of a repeated step, as the released code does: the same samples for more
        calls.
    """
    check_order("dpm-adaptive", order, 2, 3)
    check_variant("dpm-adaptive", form, FORMS)
    check_tolerances(rtol, atol)
    measure = error_norm(norm)
    for name, value in (("first_step", first_step), ("min_step", min_step)):
        if not value > 0:
            raise ValueError(f"{name}={value!r} is not possible; it must be above 0")
    lam, end = problem.lam_range()
    monitor = problem.monitor
    monitor.floor, monitor.label = min_step, lambda place: f"λ {place:g} (time {problem.level_of(place).time:g})"
    monitor.advice = f"Larger tolerances (rtol={rtol:g}, atol={atol:g}) need fewer calls."
    x = problem.enter(x, lam)
    combine, scheme = Combiner(x.device), Scheme(form)
    previous, first, h = x, None, min(first_step, end - lam)
    while lam < end:
        reached = end if h >= end - lam else lam + h
        monitor.trying(lam, reached - lam, last=reached == end)
        high, low = _pair(problem, (lam, reached), order, scheme)
        values = _evaluate(problem, high, x, first, combine)
        higher, lower = values[high.result], combine(low.rows[-1].updates[-1].terms, values)
        tolerance = (rtol * torch.maximum(lower.abs(), previous.abs())).clamp(min=atol)
        error = float(monitor.measured(measure((higher - lower) / tolerance)))
        monitor.finished(error <= 1.0)
        h = next_step(reached - lam, error, order)
        if error <= 1.0:
            x, previous, lam, first = higher, lower, reached, None
        elif not recompute:
            first = values[1]
    return problem.leave(x, problem.level_of(end))


def next_step(step: float, error: float, order: int) -> float:
    """0.9·error^(−1/order)·step."""
    return _SAFETY * step * error ** (-1.0 / order) if error > 0.0 else math.inf


def _pair(problem: Problem, ends: tuple[float, float], order: int, scheme: Scheme) -> tuple[Table, Table]:
    """Tables of one step with order p and p − 1; the second needs no value that the first does not compute."""
    stages = ends[0] + (ends[1] - ends[0]) * np.arange(order + 1) / order
    stages[-1] = ends[1]
    times = times_at(problem.path, stages)
    high = singlestep(make_nodes(problem.path, times), [order], scheme)
    keep = [*range(order - 1), order]  # the lower formula leaves out the last stage
    low = singlestep(make_nodes(problem.path, times[keep]), [order - 1], scheme)
    return high, low


def _evaluate(
    problem: Problem, table: Table, x: Tensor, first: Tensor | None, combine: Combiner
) -> Mapping[int, Tensor]:
    """Every value of a one-step table; `first` spares the call at its start."""
    values = {0: x}
    for row in table.rows:
        values[_output(row)] = _call(problem, row, values) if first is None or row.query != 0 else first
        for target, terms in row.updates:
            values[target] = combine(terms, values)
    return values


def _call(problem: Problem, row: Row, values: Mapping[int, Tensor]) -> Tensor:
    assert row.query is not None
    return problem.query(values[row.query], row.level, row.form)


def _output(row: Row) -> int:
    assert row.output is not None
    return row.output


register_adaptive(
    "dpm-adaptive",
    solve_dpm,
    summary="DPM-Solver-12 and -23: embedded singlestep pairs in λ with step control, data or noise form.",
    reference=DPM_SOLVER,
)
