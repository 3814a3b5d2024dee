"""PNDM and PLMS: the pseudo linear multistep methods."""

from __future__ import annotations

from ..nodes import Nodes
from ..numerics import ADAMS_BASHFORTH
from ..program import Linear, Program, dot
from ..registry import Case, Reference, register
from ..table import Table
from .multistep import check_order

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
    cases=[Case({"order": p}, p, p if p < 3 else 3, "noise_ratio") for p in (4, 1, 2, 3)],
    reference=PNDM,
)
def plms(nodes: Nodes, *, order: int = 4) -> Table:
    """PLMS: equal-step Adams–Bashforth on the noise prediction, started by one improved Euler step.

    As in Stable Diffusion the first step is taken twice, with the mean of the noises at both of its ends, which
    costs one call more than there are steps; only the first of the two enters the history. A last step to noise 0
    returns the data prediction.

    Parameters
    ----------
    order : {1, 2, 3, 4}
        1 is DDIM, without the repeated step.
    """
    check_order("plms", order, 1, 4)
    program = Program(nodes)
    x, history = program.state, list[Linear]()
    signal, noise = nodes.signal, nodes.noise
    for i in range(nodes.steps):
        if noise[i + 1] == 0.0 or signal[i] == 0.0:
            data = program.query(x, i)
            carry = noise[i + 1] / noise[i]
            history.insert(0, (x - signal[i] * data) / noise[i])
            x = program.let(carry * x + (signal[i + 1] - carry * signal[i]) * data)
            continue
        carry = signal[i + 1] / signal[i]
        span = noise[i + 1] - carry * noise[i]
        history.insert(0, program.query(x, i, "noise"))
        if i == 0 and order > 1:
            ahead = program.query(carry * x + span * history[0], 1, "noise")
            x = program.let(carry * x + span * 0.5 * (history[0] + ahead))
        else:
            x = program.let(carry * x + span * dot(ADAMS_BASHFORTH[min(order, i + 1) - 1], history))
    return program.finish(x)
