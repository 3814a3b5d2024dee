"""Improved PNDM: Adams–Bashforth with equal-step weights in noise/signal."""

from __future__ import annotations

from collections.abc import Sequence

from ..nodes import Nodes
from ..numerics import ADAMS_BASHFORTH
from ..registry import Case, Reference, register
from ..table import Table
from .multistep import check_order
from .ratio_steps import needs_data_step, ratio_multistep

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
    weights: list[Sequence[float] | None] = []
    for i in range(nodes.steps):
        p = min(order, i + 1, nodes.steps - i if lower_order_final else order)
        weights.append(None if needs_data_step(nodes, i) else ADAMS_BASHFORTH[p - 1])
    return ratio_multistep(nodes, weights)
