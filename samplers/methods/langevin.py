"""Predictor-corrector sampling of score models: steps down the path, Langevin steps on each level."""

from __future__ import annotations

from ..nodes import Nodes
from ..program import Program
from ..registry import Case, Reference, register
from ..table import Table
from .ddim import ddim_coefficients, ddim_step
from .multistep import check_order, check_range, check_variant

SCORE_SDE = Reference(
    key="song2021score",
    authors="Song, Yang and Sohl-Dickstein, Jascha and Kingma, Diederik P. and Kumar, Abhishek and Ermon, Stefano and "
    "Poole, Ben",
    title="Score-Based Generative Modeling through Stochastic Differential Equations",
    year=2021,
    venue="ICLR",
    arxiv="2011.13456",
)


@register(
    "langevin-pc",
    cases=[
        Case({}, 0, 0),  # the bias of a Langevin step of fixed size remains
        Case({"snr": 0.002}, 1, 1),
        Case({"snr": 0.002, "eta": 0.0, "variant": "released"}, 1, 1),
    ],
    reference=SCORE_SDE,
)
def langevin_pc(
    nodes: Nodes, *, snr: float = 0.16, corrections: int = 1, eta: float = 1.0, variant: str = "exact"
) -> Table:
    """Predictor-corrector: a DDIM(η) step to the next level, then Langevin steps on it; 1 + corrections calls per step.

    A Langevin step moves by δ·score + √(2δ)·z with δ = 2(snr·noise)². The published code divides by the norms of the
    very noise and score it meets; here they have their expected ratio, so that steps are known beforehand. It corrects
    a level before leaving it, here it is corrected on arrival: the same sequence but for the first and the last level.
    A level's law is left biased by snr² in relative variance, which no finer grid removes.

    Parameters
    ----------
    snr : float in [0, 0.7]
        Signal-to-noise ratio of a Langevin step; published 0.16 for VE and 0.01 to 0.075 for others.
    corrections : int ≥ 0
        Langevin steps per level.
    eta : float in [0, 1]
        Predictor: 1 is ancestral sampling, 0 the probability flow (DDIM).
    variant : {"exact", "released"}
        Noise of a Langevin step: "exact" keeps the law of point masses (an exact Ornstein–Uhlenbeck step), "released"
        has √(2δ), too much by the factor 1/√(1 − snr²).
    """
    check_range("langevin-pc", "snr", snr, 0, 0.7)
    check_order("langevin-pc", corrections, 0, argument="corrections")
    check_variant("langevin-pc", variant, ("exact", "released"))
    check_range("langevin-pc", "eta", eta, 0, 1)
    carry, fresh = ddim_coefficients(nodes, eta)
    kept, drawn = 1 - 2 * snr**2, 2 * snr * ((1 - snr**2) ** 0.5 if variant == "exact" else 1.0)
    program = Program(nodes)
    x = program.state
    for i in range(nodes.steps):
        x = ddim_step(program, i, x, carry[i], fresh[i])
        level = nodes.level(i + 1)
        for _ in range(corrections if level.noise > 0 and snr > 0 else 0):
            mean = level.signal * program.query(x, level)
            x = program.let(mean + kept * (x - mean) + (drawn * level.noise) * program.noise())
    return program.finish(x, law="exact" if variant == "exact" else "weak")
