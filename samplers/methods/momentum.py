"""Momentum: generalised heavy ball (GHVB), heavy ball and Nesterov on Adams–Bashforth."""

from __future__ import annotations

from dataclasses import replace
from math import ceil, floor

import numpy as np

from ..momentum import heavy_ball as with_heavy_ball
from ..nodes import Nodes
from ..numerics import ADAMS_BASHFORTH
from ..program import Linear, Program, dot
from ..registry import Case, Reference, register
from ..table import Table
from .dpm import dpmpp
from .multistep import check_order, check_variant
from .ratio_steps import data_step, needs_data_step, ratio_step
from .unipc import unipc

MOMENTUM = Reference(
    key="wizadwongsa2024momentum",
    authors="Wizadwongsa, Suttisak and Chinchuthakun, Worameth and Khungurn, Pramook and Raj, Amit and others",
    title="Diffusion Sampling with Momentum for Mitigating Divergence Artifacts",
    year=2024,
    venue="ICLR",
    arxiv="2307.11118",
)

BETA_PARTS: tuple[tuple[tuple[float, float], ...], ...] = (
    ((0, 1),),
    ((2 / 2, 1 / 2), (-2 / 2, 1 / 2)),
    ((18 / 12, 5 / 12), (-24 / 12, 8 / 12), (6 / 12, -1 / 12)),
    ((46 / 24, 9 / 24), (-78 / 24, 19 / 24), (42 / 24, -5 / 24), (-10 / 24, 1 / 24)),
    (
        (1650 / 720, 251 / 720),
        (-3420 / 720, 646 / 720),
        (2880 / 720, -264 / 720),
        (-1380 / 720, 106 / 720),
        (270 / 720, -19 / 720),
    ),
)
"""GHVB weights of order p on (v_0, v_−1, …): (constant + linear·β)/β; those of order 1 are 1."""


FIRST_VELOCITIES = ("noise", "v")


def _first_velocity(program: Program, i: int, x: Linear, noise: Linear, kind: str) -> Linear:
    """The noise at node i, or v = signal·noise − noise level·data in its place."""
    if kind == "noise":
        return noise
    level = program.nodes.level(i)
    return level.signal * noise - (level.noise / level.signal) * (x - level.noise * noise)


def _frame(first_velocity: str) -> str:
    return "point_mass" if first_velocity == "noise" else "none: the first velocity is not a noise"


def ghvb_weights(order: int, beta: float) -> list[float]:
    """Weights of the velocities, newest first, for GHVB of integer order and momentum β in (0, 1]."""
    return [(constant + linear * beta) / beta for constant, linear in BETA_PARTS[order - 1]]


@register(
    "ghvb",
    cases=[
        Case({"order": m}, p, min(p, 2), "noise_ratio")
        for m, p in ((2.5, 3), (1.0, 1), (0.9, 1), (1.8, 2), (3.0, 3), (3.8, 4))
    ],
    reference=MOMENTUM,
)
def ghvb(nodes: Nodes, *, order: float = 2.5, beta: float | None = None, first_velocity: str = "noise") -> Table:
    """Generalised heavy ball of any fractional order m: order ⌈m⌉ with momentum β = m − ⌊m⌋ (1 for integers).

    The weights are those of equal steps in noise/signal: on other grids the order is at most 2, as for `ipndm`.
    v ← (1 − β)·v + β·ε, and x/signal moves in noise/signal along a combination of past v. Larger stability region
    than Adams–Bashforth of the same order, which helps under strong guidance; m = 2.3 … 3.8 are used there. A last
    step to noise 0 returns the data prediction.

    Parameters
    ----------
    order : float in (0, 5]
    beta : float in (0, 1], optional
        Momentum by itself, with a whole `order`: order=3, beta=0.5 is order=2.5.
    first_velocity : {"noise", "v"}
        What v starts from. "v" is what the released code does with v networks, whose raw output it takes for the noise.
    """
    check_variant("ghvb", first_velocity, FIRST_VELOCITIES, argument="first_velocity")
    if not 0 < order <= 5:
        raise ValueError(f"order={order!r} is not possible for ghvb; allowed: above 0, at most 5")
    if beta is not None and (order != ceil(order) or not 0 < beta <= 1):
        raise ValueError(
            f"beta={beta!r} with order={order!r} is not possible for ghvb; beta in (0, 1] needs a whole order"
        )
    top = ceil(order)
    beta = beta if beta is not None else order - floor(order) or 1.0
    program = Program(nodes)
    x, velocities = program.state, list[Linear]()
    for i in range(nodes.steps):
        if needs_data_step(nodes, i):
            x, noise = data_step(program, nodes, i, x)
            velocities.insert(0, noise)  # only the first step from signal 0 is ever looked back at
            continue
        noise = program.query(x, i, "noise")
        before = velocities[0] if velocities else _first_velocity(program, i, x, noise, first_velocity)
        velocities.insert(0, program.let((1 - beta) * before + beta * noise))
        x = ratio_step(program, nodes, i, x, dot(ghvb_weights(min(top, i + 1), beta), velocities))
    return program.finish(x, frame=_frame(first_velocity))


@register(
    "heavy-ball",
    cases=[
        Case({}, 1, 1, "noise_ratio"),
        Case({"order": 3, "beta": 1.0}, 3, 2, "noise_ratio"),
        Case({"variant": "nesterov"}, 1, 1, "noise_ratio"),
    ],
    reference=MOMENTUM,
)
def heavy_ball(
    nodes: Nodes,
    *,
    order: int = 4,
    beta: float = 0.9,
    variant: str = "heavy-ball",
    first_velocity: str = "noise",
) -> Table:
    """Heavy-ball or Nesterov momentum on the Adams–Bashforth direction: v ← (1 − β)·v + β·ê.

    Any β < 1 lowers the order to 1 and enlarges the stability region. A last step to noise 0 returns the data
    prediction.

    Parameters
    ----------
    order : {1, …, 4}
        Order of the direction ê.
    beta : float in (0, 1]
        1 is the method without momentum (PLMS in noise/signal).
    variant : {"heavy-ball", "nesterov"}
        Nesterov moves along (1 − β)·v + β·ê after the update of v.
    first_velocity : as in `ghvb`
    """
    check_variant("heavy-ball", first_velocity, FIRST_VELOCITIES, argument="first_velocity")
    check_order("heavy-ball", order, 1, 4)
    check_variant("heavy-ball", variant, ("heavy-ball", "nesterov"))
    if not 0 < beta <= 1:
        raise ValueError(f"beta={beta!r} is not possible for heavy-ball; allowed: above 0, at most 1")
    program = Program(nodes)
    x, history, velocity = program.state, list[Linear](), Linear({})
    for i in range(nodes.steps):
        if needs_data_step(nodes, i):
            x, noise = data_step(program, nodes, i, x)
            history.insert(0, noise)
            velocity = noise
            continue
        history.insert(0, program.query(x, i, "noise"))
        direction = dot(ADAMS_BASHFORTH[min(order, i + 1) - 1], history)
        before = velocity if i else _first_velocity(program, i, x, direction, first_velocity)
        velocity = program.let((1 - beta) * before + beta * direction)
        ahead = velocity if variant == "heavy-ball" else (1 - beta) * velocity + beta * direction
        x = ratio_step(program, nodes, i, x, ahead)
    return program.finish(x, frame=_frame(first_velocity))


@register(
    "dpm++-heavy-ball",
    cases=[Case({}, 1, 1), Case({"beta": 1.0}, 2, 2)],
    reference=MOMENTUM,
)
def dpmpp_heavy_ball(nodes: Nodes, *, beta: float = 0.8, lower_order_final: bool = True) -> Table:
    """DPM-Solver++ 2M with heavy-ball momentum on its second-order direction, as released.

    First-order steps (the first, and the last where the order is lowered) neither use nor change the velocity. The
    option `heavy_ball` of every method has momentum from the first step on instead.

    Parameters
    ----------
    beta : float in (0, 1]
        1 is `dpm++`.
    lower_order_final : bool
        As in `dpm++`.
    """
    return with_heavy_ball(dpmpp(nodes, lower_order_final=lower_order_final), beta, first_order=False)


@register(
    "unipc-heavy-ball",
    cases=[Case({}, 1, 1), Case({"beta": 1.0}, 3, 3), Case({"variant": "released"}, 1, 1)],
    reference=MOMENTUM,
)
def unipc_heavy_ball(
    nodes: Nodes, *, beta: float = 0.8, order: int = 2, variant: str = "data", lower_order_final: bool = True
) -> Table:
    """UniPC with heavy-ball momentum in its corrector.

    Parameters
    ----------
    beta : float in (0, 1]
        1 is `unipc`.
    order : {1, 2, 3, 4}
        Predictor order; B(h) is bh2.
    variant : {"data", "released"}
        Units in which the velocity is carried from step to step: "data" carries a data prediction, "released" divides
        by the noise level of the step's end, so that the velocity changes its scale and a constant prediction is not
        kept: it converges in theory alone. Either way momentum acts in the corrector, as in the released code, whose
        predictor overwrites the velocity.
    lower_order_final : bool
        As in `unipc`.
    """
    check_variant("unipc-heavy-ball", variant, ("data", "released"))
    table = unipc(nodes, order=order, lower_order_final=lower_order_final)
    scales = 1 / nodes.noise[1:-1] if variant == "released" else np.ones(nodes.steps - 1)
    table = with_heavy_ball(table, beta, plain=(-1,), scales=np.append(scales, 1.0))
    if variant == "released" and beta < 1:
        return replace(table, frame="none: the released velocity changes its scale between steps")
    return table
