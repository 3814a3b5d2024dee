"""Singlestep exponential Runge–Kutta: DPM-Solver(++) 2S and 3S, RES, and their stochastic form SEEDS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..nodes import Level, Nodes
from ..numerics import phi
from ..program import Linear, Program, dot
from ..registry import Case, Reference, register
from ..table import Table
from .dpm import DPM_SOLVER, DPM_SOLVER_PP
from .multistep import check_order, check_range, check_variant, exponential_shape

RES = Reference(
    key="zhang2023res",
    authors="Zhang, Qinsheng and Song, Jiaming and Chen, Yongxin",
    title="Improved Order Analysis and Design of Exponential Integrator for Diffusion Models Sampling",
    year=2023,
    venue="arXiv",
    arxiv="2308.02157",
)
SEEDS = Reference(
    key="gonzalez2023seeds",
    authors="Gonzalez, Martin and Fernandez, Nelson and Tran, Thuy and Gherbi, Elies and Hajri, Hatem and others",
    title="SEEDS: Exponential SDE Solvers for Fast High-Quality Sampling from Diffusion Models",
    year=2023,
    venue="NeurIPS",
    arxiv="2305.14267",
)
VARIANTS = {"midpoint": "midpoint", "exact": "polynomial"}


@dataclass(frozen=True)
class Scheme:
    """What distinguishes the singlestep methods.

    Attributes
    ----------
    form : {"data", "noise"}
    end : {"midpoint", "newest", "stiff", "polynomial"}
        How the stages enter a step: published 2S halves the slope of its stage; "newest" weights the slope of the
        newest stage by φ₂ (of order 3 where c₃ = 2/3); "stiff" meets the stiff order conditions for any c₂, c₃;
        "polynomial" integrates the polynomial through all stages exactly.
    strength : float
        τ² of the reverse SDE.
    """

    form: str = "data"
    end: str = "midpoint"
    strength: float = 0.0

    def weights(self, distances: list[float], h: float, z: float, is_end: bool) -> list[float]:
        """Weights of the slopes (output − first) of the stages at `distances`, relative to the step's total."""
        if not distances:
            return []
        if is_end and self.end == "stiff" and len(distances) == 2:
            c2, c3 = distances[0] / h, distances[1] / h
            share = stiff_share(c2, c3)
            weight = float(phi(2, z) / phi(1, z)) / (share * c2 + c3)
            return [share * weight, weight]
        if is_end and self.end == "polynomial":
            points = np.array([[0.0, *distances]]) / h
            return [float(w) for w in exponential_shape(points, np.array([z]))[0, 1:]]
        halved = is_end and self.end == "midpoint" and len(distances) == 1
        newest = 0.5 if halved else float(phi(2, z) / phi(1, z))
        return [0.0] * (len(distances) - 1) + [newest * h / distances[-1]]


def singlestep_orders(evaluations: int, order: int) -> list[int]:
    """Orders of the steps that spend `evaluations` calls, as published: order 3 → 3, …, 3, (2, 1 | 1 | 2).

    On a grid of as many steps they are the published allocation for uniform λ: `dpm-single` with orders=…
    """
    full, rest = divmod(evaluations, order)
    if order == 3 and rest == 0 and full:
        return [3] * (full - 1) + [2, 1]
    return [order] * full + ([rest] if rest else [])


def singlestep(nodes: Nodes, orders: Sequence[int], scheme: Scheme, stages: Sequence[float] | None = None) -> Table:
    """A step of order p spends the p nodes it spans: the inner ones are its stages.

    With `orders` as long as there are steps the nodes are the outer ones, and the stages lie at the fractions
    `stages` of each step in λ, by default 1/2 or 1/3, 2/3. Steps next to λ = ±∞ have order 1.
    """
    plan = [int(p) for p in orders]
    spans = _spans(nodes, plan)
    program = Program(nodes)
    x, start = program.state, 0
    between = _between(nodes, plan, stages) if len(plan) == nodes.steps else None
    for p, width in zip(plan, spans, strict=True):
        inner = between[start] if between else [nodes.level(start + k) for k in range(1, p)]
        x = _step(program, x, [nodes.level(start), *inner, nodes.level(start + width)], scheme)
        start += width
    return program.finish(x)


def _plan(nodes: Nodes, order: int, lower_order_final: bool) -> list[int]:
    """Orders that spend every node, 1 next to λ = ±∞."""
    first, last = int(nodes.starts_pure), int(nodes.ends_clean and nodes.steps > int(nodes.starts_pure))
    inner = nodes.steps - first - last
    whole = not lower_order_final and inner % order == 0
    return [1] * first + ([order] * (inner // order) if whole else singlestep_orders(inner, order)) + [1] * last


def _spans(nodes: Nodes, plan: list[int]) -> list[int]:
    """How many nodes each step advances: its order, or 1 where there is one order per step."""
    if not all(1 <= p <= 3 for p in plan) or nodes.steps not in (sum(plan), len(plan)):
        raise ValueError(
            f"orders={plan} must hold 1, 2 or 3 and either sum to the {nodes.steps} steps (stages on the nodes) or "
            f"have that many entries (stages between them)"
        )
    if (nodes.starts_pure and plan[0] > 1) or (nodes.ends_clean and plan[-1] > 1):
        raise ValueError(f"orders={plan}: a step from signal 0 or to noise 0 has infinite length in λ and only order 1")
    return [1] * len(plan) if len(plan) == nodes.steps else plan


def _between(nodes: Nodes, plan: list[int], stages: Sequence[float] | None) -> list[list[Level]]:
    """The stages of steps from node to node, which have order 1 where their length is infinite."""
    fractions = [[k / p for k in range(1, p)] if stages is None or p == 1 else list(stages) for p in plan]
    lams = [nodes.lam[i] + (nodes.lam[i + 1] - nodes.lam[i]) * np.array(row) for i, row in enumerate(fractions) if row]
    found = iter(nodes.between_all(np.concatenate(lams)) if lams else ())
    levels = [[next(found) for _ in row] for row in fractions]
    return [
        [nodes.level(i + 1) if c == 1 else level for c, level in zip(fractions[i], row, strict=True)]
        for i, row in enumerate(levels)
    ]


def _step(program: Program, x: Linear, levels: list[Level], scheme: Scheme) -> Linear:
    """One step of order len(levels) − 1 through its stages; noise increments follow one Brownian path."""
    s, t = levels[0], levels[-1]
    form = "data" if not np.isfinite(t.lam - s.lam) or t.noise == 0 else scheme.form
    first = program.query(x, s, form)
    distances: list[float] = []
    slopes: list[Linear] = []
    path, reached = Linear({}), s.lam
    for k, level in enumerate(levels[1:], start=1):
        path, reached = _noise(program, path, reached, level, scheme), level.lam
        carry, total, z = _exponential(s, level, form, scheme.strength)
        weights = scheme.weights(distances, level.lam - s.lam, z, is_end=k == len(levels) - 1)
        if scheme.end == "stiff" and k == 2 and len(levels) == 4:
            weights[0] += _stiff_inner(s, levels[1:], scheme.strength)
        x_k = carry * x + total * (first + dot(weights, slopes)) + level.noise * path
        if k == len(levels) - 1:
            return program.let(x_k)
        distances.append(level.lam - s.lam)
        slopes.append(program.query(x_k, level, form) - first)
    raise AssertionError("a step has an end")


def stiff_share(c2: float, c3: float) -> float:
    """γ = b₂/b₃ of the three-stage method of order 3 (Hochbruck and Ostermann 2005; 0 where c₃ = 2/3)."""
    if abs(c2 - 2 / 3) < 1e-9:
        raise ValueError("stages of order 3 need c₂ ≠ 2/3; the third order cannot be reached with it")
    return c3 * (3 * c3 - 2) / (c2 * (2 - 3 * c2))


def _stiff_inner(s: Level, levels: list[Level], strength: float) -> float:
    """What "stiff" adds to the weight of stage 2 in stage 3, γc₂φ₂(c₂z), relative to that stage's total c₃φ₁(c₃z)."""
    h = levels[2].lam - s.lam
    c2, c3 = ((level.lam - s.lam) / h for level in levels[:2])
    z = -(1.0 + strength) * h
    return stiff_share(c2, c3) * c2 * float(phi(2, c2 * z)) / (c3 * float(phi(1, c3 * z)))


def _exponential(s: Level, t: Level, form: str, strength: float) -> tuple[float, float, float]:
    """(carry, total, z) of the exponential step between two levels, as in `multistep.Steps`."""
    h = t.lam - s.lam
    if form == "noise":
        carry = t.signal / s.signal
        return carry, t.noise - carry * s.noise, h
    decay = float(np.exp(-strength * h)) if strength else 1.0
    carry = t.noise / s.noise * decay
    return carry, t.signal - carry * s.signal, -(1.0 + strength) * h


def _noise(program: Program, path: Linear, reached: float, level: Level, scheme: Scheme) -> Linear:
    """Noise of unit level accumulated up to `level`: n ← e^{−τ²Δ}·n + √(1 − e^{−2τ²Δ})·z."""
    if scheme.strength == 0.0 or level.noise == 0.0:
        return Linear({})
    decay = float(np.exp(-scheme.strength * (level.lam - reached)))
    return decay * path + (1.0 - decay**2) ** 0.5 * program.noise()


def _late(nodes: Nodes, options: Mapping[str, Any], left_out: int) -> dict[str, Any]:
    """The orders of the steps left; the published ones where a step would be cut in two."""
    orders = options.get("orders")
    if orders is None:
        return dict(options)
    reached = [0, *np.cumsum([1] * nodes.steps if len(orders) == nodes.steps else orders)]
    return {**options, "orders": list(orders[reached.index(left_out) :]) if left_out in reached else None}


@register(
    "dpm-single",
    cases=[
        Case({"order": p, "variant": v}, p, p)
        for p, v in ((3, "midpoint"), (2, "midpoint"), (2, "exact"), (3, "exact"))
    ],
    reference=DPM_SOLVER,
    late_options=_late,
)
def dpm_single(
    nodes: Nodes,
    *,
    order: int = 3,
    variant: str = "midpoint",
    orders: Sequence[int] | None = None,
    lower_order_final: bool = True,
) -> Table:
    """DPM-Solver singlestep 2S and 3S (noise form); N nodes cost N calls, inner stages included.

    Parameters
    ----------
    order : {1, 2, 3}
        The calls are shared out as published, 3, 3, …, ending in 1 or 2.
    variant : {"midpoint", "exact"}
        The published default, or the exact rule of the polynomial through all stages ("taylor" in the released code).
    orders : sequence of {1, 2, 3}, optional
        Explicit orders: they sum to the number of steps (each step spends nodes as its stages), or there is one
        per step (stages lie between the nodes, at equal fractions in λ), as `singlestep_orders` gives them.
    lower_order_final : bool
        Order 3 ends with steps of order 2 and 1 also where 3 divides the number of calls, as published.
    """
    check_order("dpm-single", order, 1, 3)
    check_variant("dpm-single", variant, VARIANTS)
    return singlestep(nodes, orders or _plan(nodes, order, lower_order_final), Scheme("noise", VARIANTS[variant]))


@register(
    "dpm++-single",
    cases=[
        Case({"order": p, "variant": v}, p, p)
        for p, v in ((2, "midpoint"), (3, "midpoint"), (2, "exact"), (3, "exact"))
    ],
    reference=DPM_SOLVER_PP,
    late_options=_late,
)
def dpmpp_single(
    nodes: Nodes,
    *,
    order: int = 2,
    variant: str = "midpoint",
    orders: Sequence[int] | None = None,
    lower_order_final: bool = True,
) -> Table:
    """DPM-Solver++ singlestep 2S and 3S (data form); options as `dpm-single`."""
    check_order("dpm++-single", order, 1, 3)
    check_variant("dpm++-single", variant, VARIANTS)
    return singlestep(nodes, orders or _plan(nodes, order, lower_order_final), Scheme("data", VARIANTS[variant]))


@register(
    "res",
    cases=[
        Case({"order": 2}, 2, 2),
        Case({"order": 3}, 3, 3),
        Case({"order": 2, "stages": (1.0,)}, 2, 2),
        Case({"order": 3, "stages": (0.3, 0.8)}, 3, 3),
    ],
    reference=RES,
    late_options=_late,
)
def res(
    nodes: Nodes,
    *,
    order: int = 2,
    stages: Sequence[float] | None = None,
    orders: Sequence[int] | None = None,
    lower_order_final: bool = True,
) -> Table:
    """Refined exponential solver of order 2 and 3 (data form), satisfying the stiff order conditions.

    b₂ = φ₂(−h)/c₂ where DPM-Solver++ 2S has φ₁(−h)/(2c₂); `res-multistep` is the multistep version. The released
    "2mid_stable" is `dpm++-2s-ancestral` with eta=0, "3kutta" is `runge-kutta` with "kutta3". Options as `dpm-single`,
    and:

    Parameters
    ----------
    stages : sequence of order − 1 fractions in (0, 1], optional
        Where the stages of every step lie in λ: c₂, or c₂ < c₃ with the step then between two nodes. (1.0,) is the
        exponential Heun method. By default the nodes themselves are the stages.
    """
    check_order("res", order, 1, 3)
    if stages is None:
        return singlestep(nodes, orders or _plan(nodes, order, lower_order_final), Scheme("data", "stiff"))
    if orders is not None or len(stages) != order - 1 or list(stages) != sorted({c for c in stages if 0 < c <= 1}):
        raise ValueError(
            f"stages={stages!r} is not possible for res of order {order} with orders={orders!r}; give {order - 1} "
            f"increasing fractions in (0, 1] and no orders"
        )
    plan = [order] * nodes.steps
    for end, infinite in ((0, nodes.starts_pure), (-1, nodes.ends_clean)):
        plan[end] = 1 if infinite else plan[end]
    return singlestep(nodes, plan, Scheme("data", "stiff"), stages)


@register(
    "seeds",
    cases=[Case({"order": 3}, 2, 2), Case({"order": 2}, 2, 2), Case({"order": 1}, 1, 1)],
    reference=SEEDS,
    late_options=_late,
)
def seeds(
    nodes: Nodes,
    *,
    order: int = 3,
    eta: float = 1.0,
    variant: str = "exact",
    orders: Sequence[int] | None = None,
    lower_order_final: bool = True,
) -> Table:
    """SEEDS-1, 2 and 3: singlestep exponential solvers of the reverse SDE, stages on one Brownian path.

    Written from the formulas; the released code scales some stage noises differently.

    Parameters
    ----------
    order : {1, 2, 3}
        Stages per step.
    eta : float ≥ 0
        Strength τ² of the SDE, 0 is the deterministic solver.
    variant : {"midpoint", "exact"}
        Weights of the two-stage step ("phi_1" and "phi_2" in the released code).
    orders, lower_order_final : as in `dpm-single`.
    """
    check_order("seeds", order, 1, 3)
    check_variant("seeds", variant, VARIANTS)
    check_range("seeds", "eta", eta, 0)
    return singlestep(
        nodes,
        orders or _plan(nodes, order, lower_order_final),
        Scheme("data", "midpoint" if variant == "midpoint" else "newest", eta),
    )
