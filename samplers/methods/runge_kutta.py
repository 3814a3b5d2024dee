"""Euler and Heun, in noise/signal (EDM) or in time (flow models)."""

from __future__ import annotations

import numpy as np

from ..nodes import Level, Nodes
from ..program import Linear, Program
from ..registry import Case, Reference, register
from ..table import Table
from .multistep import check_variant
from .ratio_steps import data_step

EDM = Reference(
    key="karras2022edm",
    authors="Karras, Tero and Aittala, Miika and Aila, Timo and Laine, Samuli",
    title="Elucidating the Design Space of Diffusion-Based Generative Models",
    year=2022,
    venue="NeurIPS",
    arxiv="2206.00364",
)
FLOW = Reference(
    key="lipman2023flow",
    authors="Lipman, Yaron and Chen, Ricky T. Q. and Ben-Hamu, Heli and Nickel, Maximilian and Le, Matt",
    title="Flow Matching for Generative Modeling",
    year=2023,
    venue="ICLR",
    arxiv="2210.02747",
)
VARIANTS = ("auto", "sigma", "time")


@register(
    "euler",
    cases=[
        Case({}, 1, 1, "noise_ratio"),
        Case({"variant": "sigma"}, 1, 1, "noise_ratio"),
        Case({"variant": "time"}, 1, 1, "time"),
    ],
    reference=FLOW,
)
def euler(nodes: Nodes, *, variant: str = "auto") -> Table:
    """Euler step along the probability-flow ODE.

    Parameters
    ----------
    variant : {"auto", "sigma", "time"}
        "sigma": x/signal steps in noise/signal along the noise prediction (equal to DDIM). "time": x steps in
        time along the velocity, as flow models do. "auto": time on linear paths, where both agree, else sigma.
    """
    check_variant("euler", variant, VARIANTS)
    if in_time(nodes, variant):
        program = Program(nodes)
        x = program.state
        for i in range(nodes.steps):
            x = program.let(x + (nodes.clock[i + 1] - nodes.clock[i]) * program.query(x, i, "velocity"))
        return program.finish(x, frame="velocity")
    program = Program(nodes)
    x = program.state
    for i in range(nodes.steps):
        x, _ = data_step(program, nodes, i, x)
    return program.finish(x)


@register(
    "heun",
    cases=[
        Case({}, 2, 2, "noise_ratio"),
        Case({"variant": "sigma"}, 2, 2, "noise_ratio"),
        Case({"variant": "time"}, 2, 2, "time"),
    ],
    reference=EDM,
)
def heun(nodes: Nodes, *, variant: str = "auto", lower_order_final: bool = True) -> Table:
    """Heun's second-order method: two calls per step, one on a last step to noise 0 (EDM, Algorithm 1).

    Parameters
    ----------
    variant : {"auto", "sigma", "time"}
        The variable that is stepped, as in `euler`.
    lower_order_final : bool
        In time only: False evaluates the velocity at noise 0 too, instead of an Euler step there.
    """
    check_variant("heun", variant, VARIANTS)
    if in_time(nodes, variant):
        return _heun_in_time(nodes, lower_order_final)
    program = Program(nodes)
    x = program.state
    for i in range(nodes.steps):
        x = heun_step(program, x, nodes.level(i), nodes.level(i + 1))
    return program.finish(x)


def euler_step(program: Program, x: Linear, start: Level, end: Level) -> Linear:
    """Euler in noise/signal from `start` to `end`, which is the first-order data step; finite at both ends of λ."""
    carry = end.noise / start.noise
    return program.let(carry * x + (end.signal - carry * start.signal) * program.query(x, start))


def heun_step(program: Program, x: Linear, start: Level, end: Level) -> Linear:
    """Heun in noise/signal from `start` to `end`; a data step from signal 0 or to noise 0."""
    if start.signal == 0.0 or end.noise == 0.0:
        return euler_step(program, x, start, end)
    carry = end.signal / start.signal
    span = end.noise - carry * start.noise
    first = program.query(x, start, "noise")
    second = program.query(carry * x + span * first, end, "noise")
    return program.let(carry * x + span * 0.5 * (first + second))


def _heun_in_time(nodes: Nodes, lower_order_final: bool) -> Table:
    program = Program(nodes)
    x = program.state
    for i in range(nodes.steps):
        span = nodes.clock[i + 1] - nodes.clock[i]
        first = program.query(x, i, "velocity")
        if nodes.noise[i + 1] == 0.0 and lower_order_final:
            x = program.let(x + span * first)
        else:
            second = program.query(x + span * first, i + 1, "velocity")
            x = program.let(x + span * 0.5 * (first + second))
    return program.finish(x, frame="velocity")


def in_time(nodes: Nodes, variant: str) -> bool:
    """Whether `variant` steps in time on these nodes, along the velocity; raises where their time stands still."""
    if variant == "auto":
        return nodes.family == "linear" and nodes.signal_rate is not None
    if variant == "time" and not np.diff(nodes.clock).all():
        raise ValueError(
            f"variant='time' cannot take the step to noise 0 on path {getattr(nodes.path, 'name', None)!r}, whose time "
            f"ends before it; use variant='sigma' or a grid with final='path'"
        )
    return variant == "time"
