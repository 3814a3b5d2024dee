"""Improved PNDM: Adams–Bashforth with equal-step weights in noise/signal."""

from __future__ import annotations

from ..nodes import Nodes
from ..numerics import ADAMS_BASHFORTH
from ..program import Linear, Program, dot
from ..registry import Case, Reference, register
from ..table import Table
from .multistep import check_order

IPNDM = Reference(
    key="zhang2023deis",
    authors="Zhang, Qinsheng and Chen, Yongxin",
    title="Fast Sampling of Diffusion Models with Exponential Integrator",
    year=2023,
    venue="ICLR",
    arxiv="2204.13902",
)


@register(
    "ipndm",
    cases=[Case({"order": p}, p, min(p, 2), "noise_ratio") for p in (4, 1, 2, 3)],
    reference=IPNDM,
)
def ipndm(nodes: Nodes, *, order: int = 4, lower_order_final: bool = False) -> Table:
    """iPNDM: classical Adams–Bashforth weights of order 1–4 on the noise prediction, whatever the spacing.

    x'/signal' = x/signal + (ratio' − ratio)·Σ_j b_j·ε_{−j} with ratio = noise/signal. On grids that are not
    uniform in the ratio the order is at most 2, but the fixed weights over-extrapolate on log-spaced grids,
    which helps at very few steps.

    Parameters
    ----------
    order : {1, 2, 3, 4}
    lower_order_final : bool
        Lower the order to …, 2, 1 over the last steps; a last step to noise 0 returns the data prediction.
    """
    check_order("ipndm", order, 1, 4)
    return fixed_weights(nodes, ADAMS_BASHFORTH[:order], lower_order_final)


def fixed_weights(nodes: Nodes, rows: tuple[tuple[float, ...], ...], lower_order_final: bool) -> Table:
    """Multistep rule in noise/signal with the weights rows[p−1] for order p, warm-up 1, 2, and so on.

    From signal 0 the first step is DDIM and its noise x/noise is the first entry of the history.
    """
    program = Program(nodes)
    x, history = program.state, list[Linear]()
    signal, noise = nodes.signal, nodes.noise
    for i in range(nodes.steps):
        to_clean = noise[i + 1] == 0.0
        if signal[i] == 0.0 or to_clean:
            data = program.query(x, i)
            history.insert(0, (x - signal[i] * data) / noise[i])
            carry = noise[i + 1] / noise[i]
            x = program.let(carry * x + (signal[i + 1] - carry * signal[i]) * data)
            continue
        history.insert(0, program.query(x, i, "noise"))
        order = min(len(rows), i + 1, nodes.steps - i if lower_order_final else len(rows))
        carry = signal[i + 1] / signal[i]
        x = program.let(carry * x + (noise[i + 1] - carry * noise[i]) * dot(rows[order - 1], history))
    return program.finish(x)
