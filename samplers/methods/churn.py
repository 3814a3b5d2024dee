"""EDM's stochastic Heun sampler and Restart: noise is added before a step, and taken away by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from math import log, sqrt

import numpy as np

from ..nodes import Level, Nodes
from ..program import Linear, Program
from ..registry import Case, Reference, register
from ..table import Table
from .multistep import check_variant
from .runge_kutta import EDM, euler_step, heun_step

RESTART = Reference(
    key="xu2023restart",
    authors="Xu, Yilun and Deng, Mingyang and Cheng, Xiang and Tian, Yonglong and Liu, Ziming and Jaakkola, Tommi",
    title="Restart Sampling for Improving Generative Processes",
    year=2023,
    venue="NeurIPS",
    arxiv="2306.14878",
)
Interval = tuple[int, int, float, float]


def _ratio(level: Level) -> float:
    return level.noise / level.signal if level.signal else float("inf")


def renoise(program: Program, x: Linear, start: Level, end: Level, s_noise: float = 1.0) -> Linear:
    """X at `start` with noise added until it lies on the noisier `end`: x/signal + √(ratio'² − ratio²)·z."""
    grown = sqrt(max(0.0, _ratio(end) ** 2 - _ratio(start) ** 2))
    return program.let((end.signal / start.signal) * x + (end.signal * grown * s_noise) * program.noise())


@register(
    "edm",
    cases=[
        Case({"churn": 0.0}, 2, 2, "noise_ratio"),
        Case({"churn": 4.0}, 2, 2, "noise_ratio"),
        Case({"churn": 4.0, "solver": "euler"}, 1, 1, "noise_ratio"),
    ],
    reference=EDM,
)
def edm(
    nodes: Nodes,
    *,
    churn: float = 0.0,
    s_min: float = 0.0,
    s_max: float | None = None,
    s_noise: float = 1.0,
    solver: str = "heun",
) -> Table:
    """EDM's stochastic sampler: churn up by γ = min(churn/N, √2 − 1), then a Heun step (Algorithm 2).

    Parameters
    ----------
    churn : float ≥ 0
        S_churn; 0 is `heun`.
    s_min, s_max : float
        Range of noise/signal in which noise is added; s_max None is no upper limit.
    s_noise : float
        Factor of the added noise; the variance is right at 1 only.
    solver : {"heun", "euler"}
        The step taken after the churn; "euler" is k-diffusion's `sample_euler` with s_churn, one call per step.
    """
    check_variant("edm", solver, ("heun", "euler"), argument="solver")
    step = heun_step if solver == "heun" else euler_step
    if churn < 0 or s_noise < 0:
        raise ValueError(f"churn={churn!r} and s_noise={s_noise!r} must not be negative for edm")
    gamma = min(churn / nodes.steps, sqrt(2.0) - 1.0)
    top = float("inf") if s_max is None else s_max
    if not s_min <= top:
        raise ValueError(
            f"s_min={s_min!r} and s_max={s_max!r} leave no level for the churn of edm; s_min must be smaller"
        )
    program = Program(nodes)
    x = program.state
    for i in range(nodes.steps):
        level = nodes.level(i)
        if gamma > 0 and level.signal > 0 and s_min <= _ratio(level) <= top:
            raised = nodes.between(-log(_ratio(level) * (1 + gamma)))
            if _ratio(raised) > _ratio(level):  # a path has no level above its first
                program.pause(level)
                x = renoise(program, x, level, raised, s_noise)
                level = raised
        x = step(program, x, level, nodes.level(i + 1))
    noisy = gamma > 0 and s_noise != 1.0
    return program.finish(x, law="none: s_noise is not 1" if noisy else "exact")


@register(
    "restart",
    cases=[Case({}, 2, 2, "noise_ratio")],
    reference=RESTART,
)
def restart(
    nodes: Nodes, *, intervals: Sequence[Interval] = ((3, 2, 0.06, 0.30),), s_noise: float = 1.0, rho: float = 7.0
) -> Table:
    """Restart sampling: Heun, with jumps back to a noisier level and Heun down again.

    Parameters
    ----------
    intervals : sequence of (levels, repeats, low, high)
        After the node nearest `low` (in noise/signal), `repeats` times: add noise up to `high` and come down again
        in levels − 1 Heun steps on a ρ grid. An interval outside the nodes' range is skipped. The default is the
        published one for CIFAR-10.
    s_noise : float
        Factor of the added noise.
    rho : float
        Exponent of the inner grids.
    """
    plan = _restarts(nodes, intervals)
    program = Program(nodes)
    x = program.state
    for i in range(nodes.steps):
        x = heun_step(program, x, nodes.level(i), nodes.level(i + 1))
        for levels, repeats, high in plan.get(i + 1, []):
            low = nodes.level(i + 1)
            inner = np.linspace(high ** (1 / rho), _ratio(low) ** (1 / rho), levels) ** rho
            ladder = [nodes.between(-log(r)) for r in inner[:-1]] + [low]
            for _ in range(repeats):
                program.pause(low)
                x = renoise(program, x, low, ladder[0], s_noise)
                for start, end in pairwise(ladder):
                    x = heun_step(program, x, start, end)
    table = program.finish(x)
    # Heun steps are not exact in law, so jumps keep the variance of point-mass data only where s_noise is 1
    return table if s_noise == 1.0 else replace(table, law="none: s_noise is not 1")


def _restarts(nodes: Nodes, intervals: Sequence[Interval]) -> dict[int, list[tuple[int, int, float]]]:
    ratios = np.array([_ratio(nodes.level(i)) for i in range(1, nodes.steps)])
    plan: dict[int, list[tuple[int, int, float]]] = {}
    for interval in intervals:
        if len(interval) != 4:
            raise ValueError(f"restart interval {interval} must be (levels, repeats, low, high)")
        levels, repeats, low, high = interval
        if levels < 2 or repeats < 1 or not 0 < low < high:
            raise ValueError(
                f"restart interval {(levels, repeats, low, high)} needs levels ≥ 2, repeats ≥ 1 and 0 < low < high"
            )
        if len(ratios) and ratios.min() <= high and (ratios > 0).any():
            node = 1 + int(np.argmin(np.abs(np.log(ratios) - log(low))))
            if 0 < ratios[node - 1] < high:
                plan.setdefault(node, []).append((levels, repeats, high))
    return plan
