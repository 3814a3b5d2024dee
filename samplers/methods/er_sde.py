"""ER-SDE-Solver: extended reverse SDEs with a free noise-scale function."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..nodes import Nodes
from ..numerics import Array
from ..program import Linear, Program
from ..registry import Case, Reference, register
from ..table import Table
from .multistep import check_order, check_variant

ER_SDE = Reference(
    key="cui2023ersde",
    authors="Cui, Qinpeng and Zhang, Xinyi and Lu, Zongqing and Liao, Qingmin",
    title="Elucidating the solution space of extended reverse-time SDE for diffusion models",
    year=2023,
    venue="arXiv",
    arxiv="2309.06169",
)
Scale = Callable[[Array], Array]
SCALES: dict[str, Scale] = {
    "sde5": lambda y: y * (np.exp(y**0.3) + 10.0),
    "sde": lambda y: y**2,
    "ode": lambda y: y,
    "y1.5": lambda y: y**1.5,
    "y2.5": lambda y: y**2.5,
    "log": lambda y: y**0.9 * np.log10(1.0 + 100.0 * y**1.5),
}
_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(64)


@register(
    "er-sde",
    cases=[
        Case({}, 2, 2, "noise_ratio"),
        Case({"variant": "ode"}, 2, 2, "noise_ratio"),
        Case({"order": 1, "variant": "sde5"}, 1, 1, "noise_ratio"),
    ],
    reference=ER_SDE,
)
def er_sde(nodes: Nodes, *, order: int = 3, variant: str = "sde5") -> Table:
    """ER-SDE-Solver-1, 2 and 3: one call per step, noise scale φ(noise/signal).

    Integrals of 1/φ are exact here; the released code uses a rectangle rule of 100 points.

    Parameters
    ----------
    order : {1, 2, 3}
        Taylor terms; the second derivative of order 3 is corrected only partly, so that the deterministic order
        is at most 2, as published.
    variant : {"sde5", "sde", "ode", "y1.5", "y2.5", "log"}
        φ(y) = y(e^{y^0.3} + 10), y², y, y^1.5, y^2.5, y^0.9·log₁₀(1 + 100y^1.5).
    """
    check_order("er-sde", order, 1, 3)
    check_variant("er-sde", variant, tuple(SCALES))
    scale = SCALES[variant]
    program = Program(nodes)
    x, past = program.state, list[tuple[float, Linear]]()
    for i in range(nodes.steps):
        start, end = nodes.level(i), nodes.level(i + 1)
        data = program.query(x, i)
        y = end.noise / end.signal
        before = start.noise / start.signal if start.signal else float("inf")
        shrink = _at(scale, y) / _at(scale, before) if y > 0 and np.isfinite(before) else 0.0
        if variant == "ode" and not np.isfinite(before):
            x = program.let(end.noise / start.noise * x + end.signal * data)
            continue
        carry = shrink * end.signal / start.signal if start.signal else 0.0
        mean = carry * x + (end.signal - carry * start.signal) * data
        if past and y > 0:
            mean = mean + end.signal * _taylor(order, (y, before), data, past, scale)
        fresh = end.signal * np.sqrt(max(0.0, y**2 - (shrink * before) ** 2 if np.isfinite(before) else y**2))
        if np.isfinite(before):
            past.insert(0, (before, data))
        x = program.let(mean + float(fresh) * program.noise() if fresh > 1e-12 else mean)
    return program.finish(x)


def _at(scale: Scale, y: float) -> float:
    return float(scale(np.asarray(y)))


def _taylor(
    order: int,
    ends: tuple[float, float],
    data: Linear,
    past: list[tuple[float, Linear]],
    scale: Scale,
) -> Linear:
    """Terms of D' and D'' over the step, differences taken as published."""
    (y, before), (y1, d1) = ends, past[0]
    if order == 1:
        return Linear({})
    slope = (1 / (before - y1)) * (data - d1)
    nodes = 0.5 * (before - y) * (_POINTS + 1) + y
    weights = 0.5 * (before - y) * _WEIGHTS / scale(nodes)
    at_end = _at(scale, y)
    total = (y - before + at_end * float(weights.sum())) * slope
    if order == 3 and len(past) > 1:
        y2, d2 = past[1]
        bend = (2 / (before - y2)) * (slope - (1 / (y1 - y2)) * (d1 - d2))
        total = total + (0.5 * (y - before) ** 2 + at_end * float((weights * (nodes - before)).sum())) * bend
    return total
