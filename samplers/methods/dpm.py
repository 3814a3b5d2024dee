"""DPM-Solver and DPM-Solver++ multistep, deterministic and stochastic, as published and exact."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..nodes import Nodes
from ..numerics import Array, phi
from ..registry import Case, Reference, register
from ..table import Table
from .multistep import (
    Steps,
    check_order,
    check_range,
    check_variant,
    data_steps,
    exponential_shape,
    multistep,
    noise_steps,
    step_orders,
)

DPM_SOLVER = Reference(
    key="lu2022dpmsolver",
    authors="Lu, Cheng and Zhou, Yuhao and Bao, Fan and Chen, Jianfei and Li, Chongxuan and Zhu, Jun",
    title="DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps",
    year=2022,
    venue="NeurIPS",
    arxiv="2206.00927",
)
DPM_SOLVER_PP = Reference(
    key="lu2022dpmsolverpp",
    authors="Lu, Cheng and Zhou, Yuhao and Bao, Fan and Chen, Jianfei and Li, Chongxuan and Zhu, Jun",
    title="DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models",
    year=2022,
    venue="arXiv",
    arxiv="2211.01095",
)
K_DIFFUSION = Reference(
    key="crowson2022kdiffusion",
    authors="Crowson, Katherine",
    title="k-diffusion",
    year=2022,
    venue="https://github.com/crowsonkb/k-diffusion",
)
VARIANTS = ("midpoint", "heun", "exact")
CASES = [
    Case({"order": 2}, 2, 2),
    Case({"order": 1}, 1, 1),
    Case({"order": 3}, 2, 2),
    Case({"order": 2, "variant": "heun"}, 2, 2),
    Case({"order": 2, "variant": "exact"}, 2, 2),
    Case({"order": 3, "variant": "exact"}, 3, 2),
]


@register("dpm++", cases=CASES, reference=DPM_SOLVER_PP)
def dpmpp(nodes: Nodes, *, order: int = 2, variant: str = "midpoint", lower_order_final: bool = True) -> Table:
    """DPM-Solver++ multistep 1M, 2M and 3M (data form).

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
    return _multistep("dpm++", nodes, data_steps(nodes), order, variant, lower_order_final)


@register("dpm", cases=CASES, reference=DPM_SOLVER)
def dpm(nodes: Nodes, *, order: int = 2, variant: str = "midpoint", lower_order_final: bool = True) -> Table:
    """DPM-Solver multistep 1M, 2M and 3M (noise form).

    Options as `dpm++`. Steps from signal 0 and to noise 0 are first-order data steps, the only finite ones.
    """
    return _multistep("dpm", nodes, noise_steps(nodes), order, variant, lower_order_final)


@register(
    "dpm++-sde",
    cases=[
        Case({"order": 2}, 2, 2),
        Case({"order": 1}, 1, 1),
        Case({"order": 2, "variant": "heun"}, 2, 2),
        Case({"order": 3}, 2, 2),
    ],
    reference=K_DIFFUSION,
)
def dpmpp_sde(
    nodes: Nodes,
    *,
    order: int = 2,
    variant: str = "midpoint",
    eta: float = 1.0,
    s_noise: float = 1.0,
    lower_order_final: bool = False,
) -> Table:
    """DPM-Solver++ multistep for the reverse SDE: 1M, 2M and 3M SDE of k-diffusion.

    x' = (noise'/noise)·e^{−ηh}·x + signal'·(1 − e^{−κh})·Σ shape·D + noise'·√(1 − e^{−2ηh})·z with κ = 1 + η.

    Parameters
    ----------
    order : {1, 2, 3}
    variant : {"midpoint", "heun", "exact"}
        Second-order rule as in `dpm++`; at order 3 the warm-up step uses "heun", as released.
    eta : float ≥ 0
        Strength of the SDE; 0 is `dpm++`, 1 the reverse SDE (diffusers' `sde-dpmsolver++`).
    s_noise : float ≥ 0
        Factor of the noise; the variance is right at 1 only.
    lower_order_final : bool
        As in `dpm++`; k-diffusion lowers only the step to noise 0.
    """
    check_range("dpm++-sde", "eta", eta, 0)
    check_range("dpm++-sde", "s_noise", s_noise, 0)
    steps = data_steps(nodes, eta)
    steps = replace(steps, fresh=steps.fresh * s_noise)
    second_order = "heun" if order == 3 and variant == "midpoint" else variant
    table = _multistep("dpm++-sde", nodes, steps, order, second_order, lower_order_final)
    return table if s_noise == 1.0 else replace(table, law="none: s_noise is not 1")


@register(
    "dpm-sde",
    cases=[Case({"order": 2}, 2, 2), Case({"order": 1}, 1, 1), Case({"order": 2, "variant": "heun"}, 2, 2)],
    reference=DPM_SOLVER_PP,
)
def dpm_sde(
    nodes: Nodes, *, order: int = 2, variant: str = "midpoint", eta: float = 1.0, lower_order_final: bool = True
) -> Table:
    """DPM-Solver multistep for the reverse SDE in noise form (diffusers' `sde-dpmsolver`).

    x' = (signal'/signal)·x − κ·noise'·(e^h − 1)·Σ shape·ε + √η·noise'·√(e^{2h} − 1)·z with κ = 1 + η. The variance of
    point masses is right in the limit h → 0 only; that of `dpm++-sde` is exact.

    Parameters
    ----------
    order : {1, 2}
    variant, lower_order_final : as in `dpm`
    eta : float ≥ 0
        Strength of the SDE; 0 is `dpm`.
    """
    check_order("dpm-sde", order, 1, 2)
    check_range("dpm-sde", "eta", eta, 0)
    table = _multistep("dpm-sde", nodes, noise_steps(nodes, eta), order, variant, lower_order_final)
    return replace(table, law="weak") if eta > 0 else table


def _multistep(name: str, nodes: Nodes, steps: Steps, order: int, variant: str, lower_order_final: bool) -> Table:
    check_order(name, order, 1, 3)
    check_variant(name, variant, VARIANTS)

    def rule(points: Array, z: Array) -> Array:
        if variant == "exact" or (variant == "heun" and points.shape[-1] == 2):
            return exponential_shape(points, z)  # at order 2 the published "heun" rule is the exact one
        return _PUBLISHED[points.shape[-1]](points, z)

    return multistep(nodes, steps, step_orders(nodes, order, lower_order_final), rule)


def midpoint_shape(points: Array, z: Array) -> Array:
    """Published second-order weights (1 + 1/2r, −1/2r), r the last step over this one."""
    half = 0.5 / points[:, 1]
    return np.stack([1 - half, half], axis=-1)


def third_order_shape(points: Array, z: Array) -> Array:
    """Published third-order weights relative to the first-order one, on the outputs (0, −1, −2).

    First and second differences D1, D2 as in the released code; the weight of D2 is φ₃(z)/φ₁(z), where the
    exact one would be 2φ₃(z)/φ₁(z).
    """
    r0, r1 = -points[:, 1], points[:, 1] - points[:, 2]
    first, second = phi(2, z) / phi(1, z), phi(3, z) / phi(1, z)
    # D1 = (1 + m)A − mB and D2 = (A − B)/(r0 + r1), with A, B the backward differences
    m = r0 / (r0 + r1)
    a = (first * (1 + m) + second / (r0 + r1)) / r0
    b = -(first * m + second / (r0 + r1)) / r1
    return np.stack([1 + a, b - a, -b], axis=-1)


_PUBLISHED = {1: exponential_shape, 2: midpoint_shape, 3: third_order_shape}
