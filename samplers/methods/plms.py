"""PNDM and PLMS: the pseudo linear multistep methods."""

from __future__ import annotations

from ..nodes import Level, Nodes
from ..numerics import ADAMS_BASHFORTH
from ..program import Linear, Program, dot
from ..registry import Case, Reference, register
from ..table import Table
from .multistep import check_order, check_variant
from .ratio_steps import data_step, ratio_step

PNDM = Reference(
    key="liu2022pndm",
    authors="Liu, Luping and Ren, Yi and Lin, Zhijie and Zhao, Zhou",
    title="Pseudo Numerical Methods for Diffusion Models on Manifolds",
    year=2022,
    venue="ICLR",
    arxiv="2202.09778",
)


@register(
    "plms",
    cases=[
        *(Case({"order": p}, p, p if p < 3 else 3, "noise_ratio") for p in (4, 1, 2, 3)),
        Case({"order": 3, "warmup": "runge-kutta"}, 3, 3, "noise_ratio"),
    ],
    reference=PNDM,
)
def plms(nodes: Nodes, *, order: int = 4, warmup: str = "repeat", lower_order_final: bool = True) -> Table:
    """PLMS: equal-step Adams–Bashforth on the noise prediction, started by one improved Euler step.

    As in Stable Diffusion the first step is taken twice, with the mean of the noises at both of its ends, which
    costs one call more than there are steps; only the first of the two enters the history.

    Parameters
    ----------
    order : {1, 2, 3, 4}
        1 is DDIM, without the repeated step.
    warmup : {"repeat", "runge-kutta"}
        "runge-kutta" is PNDM proper: the first order − 1 steps are pseudo Runge–Kutta steps of four calls each, with
        stages half-way in time.
    lower_order_final : bool
        False keeps the order on a last step to noise 0, as diffusers does with `set_alpha_to_one`.
    """
    check_order("plms", order, 1, 4)
    check_variant("plms", warmup, ("repeat", "runge-kutta"), argument="warmup")
    program = Program(nodes)
    x, history = program.state, list[Linear]()
    for i in range(nodes.steps):
        if nodes.signal[i] == 0.0 or (nodes.noise[i + 1] == 0.0 and (lower_order_final or i == 0)):
            x, noise = data_step(program, nodes, i, x)
            history.insert(0, noise)
            continue
        history.insert(0, program.query(x, i, "noise"))
        if warmup == "runge-kutta" and i < order - 1:
            x = ratio_step(program, nodes, i, x, _pseudo_runge_kutta(program, i, x, history[0]))
        elif i == 0 and order > 1:
            ahead = program.query(ratio_step(program, nodes, i, x, history[0]), 1, "noise")
            x = ratio_step(program, nodes, i, x, 0.5 * (history[0] + ahead))
        else:
            x = ratio_step(program, nodes, i, x, dot(ADAMS_BASHFORTH[min(order, i + 1) - 1], history))
    return program.finish(x)


def _pseudo_runge_kutta(program: Program, i: int, x: Linear, first: Linear) -> Linear:
    """Direction of step i from four noises, all of them carried from its start by DDIM steps (paper, eq. 12)."""
    nodes = program.nodes
    start, end = nodes.level(i), nodes.level(i + 1)
    middle = nodes.at_clock(0.5 * float(nodes.clock[i] + nodes.clock[i + 1]))

    def ahead(noise: Linear, level: Level) -> Linear:
        carry = level.signal / start.signal
        return program.query(carry * x + (level.noise - carry * start.noise) * noise, level, "noise")

    second = ahead(first, middle)
    third = ahead(second, middle)
    return (first + 2 * second + 2 * third + ahead(third, end)) / 6
