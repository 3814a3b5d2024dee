"""DPM-Solver++ multistep (data form), as published and exact."""

from __future__ import annotations

import numpy as np

from ..nodes import Nodes
from ..numerics import Array, phi
from ..registry import Case, Reference, register
from ..table import Table
from .multistep import check_order, check_variant, exponential_shape, multistep, step_orders

DPM_SOLVER_PP = Reference(
    key="lu2022dpmsolverpp",
    authors="Lu, Cheng and Zhou, Yuhao and Bao, Fan and Chen, Jianfei and Li, Chongxuan and Zhu, Jun",
    title="DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models",
    year=2022,
    venue="arXiv",
    arxiv="2211.01095",
)


@register(
    "dpm++",
    cases=[
        Case({"order": 2}, 2, 2),
        Case({"order": 1}, 1, 1),
        Case({"order": 3}, 2, 2),
        Case({"order": 2, "variant": "heun"}, 2, 2),
        Case({"order": 2, "variant": "exact"}, 2, 2),
        Case({"order": 3, "variant": "exact"}, 3, 2),
    ],
    reference=DPM_SOLVER_PP,
)
def dpmpp(nodes: Nodes, *, order: int = 2, variant: str = "midpoint", lower_order_final: bool = True) -> Table:
    """DPM-Solver++ multistep 1M, 2M and 3M.

    Parameters
    ----------
    order : {1, 2, 3}
        With the published weights order 3 converges with order 2: the released second-difference
        coefficient is half of the exact one. `variant="exact"` has order 3.
    variant : {"midpoint", "heun", "exact"}
        "midpoint" and "heun" are the two published second-order rules (they differ at order 2 only);
        "exact" integrates the interpolating polynomial exactly, as `exp-adams`.
    lower_order_final : bool
        Lower the order to …, 2, 1 over the last steps; a last step to noise 0 always has order 1.
    """
    check_order("dpm++", order, 1, 3)
    check_variant("dpm++", variant, ("midpoint", "heun", "exact"))
    orders = step_orders(nodes, order, lower_order_final)

    def rule(points: Array, h: Array) -> Array:
        if variant == "exact" or (variant == "heun" and points.shape[-1] == 2):
            return exponential_shape(points, h)  # at order 2 the published "heun" rule is the exact one
        return _PUBLISHED[points.shape[-1]](points, h)

    return multistep(nodes, orders, rule)


def midpoint_shape(points: Array, h: Array) -> Array:
    """Published second-order weights (1 + 1/2r, −1/2r), r the last step over this one."""
    half = 0.5 / points[:, 1]
    return np.stack([1 - half, half], axis=-1)


def third_order_shape(points: Array, h: Array) -> Array:
    """Published third-order weights relative to 1 − e^{−h}, on outputs (D₀, D₋₁, D₋₂).

    First and second differences D1, D2 as in the paper's Algorithm 2 and released code:
    x' = … + signal'·(φ₁h·D₀ + ψ₂·D1 − ψ₃·D2), where the exact last term would be −2ψ₃·D2.
    """
    r0, r1 = -points[:, 1], points[:, 1] - points[:, 2]
    psi2, psi3 = phi(2, -h) / phi(1, -h), -phi(3, -h) / phi(1, -h)
    # D1 = (1 + m)A − mB and D2 = (A − B)/(r0 + r1), with A, B the backward differences
    m = r0 / (r0 + r1)
    on_a = psi2 * (1 + m) - psi3 / (r0 + r1)
    on_b = -psi2 * m + psi3 / (r0 + r1)
    a, b = on_a / r0, on_b / r1
    return np.stack([1 + a, b - a, -b], axis=-1)


_PUBLISHED = {1: exponential_shape, 2: midpoint_shape, 3: third_order_shape}
