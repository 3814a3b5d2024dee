"""DDIM with any amount of noise."""

from __future__ import annotations

import numpy as np

from ..nodes import Nodes
from ..numerics import Array
from ..program import Linear, Program
from ..registry import Case, Reference, register
from ..table import Table
from .multistep import check_range

DDIM = Reference(
    key="song2021ddim",
    authors="Song, Jiaming and Meng, Chenlin and Ermon, Stefano",
    title="Denoising Diffusion Implicit Models",
    year=2021,
    venue="ICLR",
    arxiv="2010.02502",
)


@register("ddim", cases=[Case({}, 1, 1), Case({"eta": 0.5}, 1, 1), Case({"eta": 1.0}, 1, 1)], reference=DDIM)
def ddim(nodes: Nodes, *, eta: float = 0.0) -> Table:
    """First-order exponential step; eta adds noise, 1 is DDPM ancestral sampling.

    x' = signal'·D + √(noise'² − s²)·ε + s·z with s² = η²·noise'²·(1 − e^{−2h}) (Song et al. 2021, eq. 16).

    Parameters
    ----------
    eta : float in [0, 1]
        0 is deterministic, 1 the ancestral posterior.
    """
    check_range("ddim", "eta", eta, 0, 1)
    carry, fresh = ddim_coefficients(nodes, eta)
    program = Program(nodes)
    x = program.state
    for i in range(nodes.steps):
        x = ddim_step(program, i, x, carry[i], fresh[i])
    return program.finish(x)


def ddim_coefficients(nodes: Nodes, eta: float) -> tuple[Array, Array]:
    """(carry, fresh) of every step: factors of the old state and of new noise; carry² noise² + fresh² = noise'²."""
    signal, noise = nodes.signal, nodes.noise
    shrink = (noise[1:] * signal[:-1]) / (signal[1:] * noise[:-1])  # e^{−h}, finite at both ends
    fresh = eta * noise[1:] * np.sqrt(np.maximum(0.0, 1.0 - shrink**2))
    return np.sqrt(np.maximum(0.0, noise[1:] ** 2 - fresh**2)) / noise[:-1], fresh


def ddim_step(program: Program, i: int, x: Linear, carry: float, fresh: float) -> Linear:
    """carry·x + (signal' − carry·signal)·D + fresh·z: the step from node i that keeps point masses."""
    signal = program.nodes.signal
    step = carry * x + (signal[i + 1] - carry * signal[i]) * program.query(x, i)
    return program.let(step + fresh * program.noise() if fresh > 0 else step)
