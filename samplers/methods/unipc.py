"""UniPC: unified predictor-corrector, all published variants and the exact one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import factorial
from typing import Any

import numpy as np

from ..nodes import Nodes
from ..numerics import Array, phi, vandermonde_weights
from ..registry import Case, Reference, register
from ..table import Table
from ..transforms import apply_corrector
from .multistep import (
    Steps,
    check_order,
    check_variant,
    data_steps,
    exponential_shape,
    grouped_weights,
    multistep,
    noise_steps,
    step_orders,
)

UNIPC = Reference(
    key="zhao2023unipc",
    authors="Zhao, Wenliang and Bai, Lujia and Rao, Yongming and Zhou, Jie and Lu, Jiwen",
    title="UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models",
    year=2023,
    venue="NeurIPS",
    arxiv="2302.04867",
)
VARIANTS = ("bh1", "bh2", "vary_coeff", "exact")


def _late(nodes: Nodes, options: Mapping[str, Any], left_out: int) -> dict[str, Any]:
    off = [step - left_out for step in options.get("disable_corrector", ()) if step >= left_out]
    return {**options, "disable_corrector": off}


@register(
    "unipc",
    cases=[
        Case({"order": p, "variant": v}, p + 1, min(p + 1, 3)) for v in ("bh2", "bh1", "exact") for p in (3, 1, 2, 4)
    ],
    reference=UNIPC,
    late_options=_late,
)
def unipc(
    nodes: Nodes,
    *,
    order: int = 3,
    variant: str = "bh2",
    form: str = "data",
    lower_order_final: bool = True,
    disable_corrector: Sequence[int] = (),
) -> Table:
    """UniPC of order 1–4: an exponential multistep predictor and a free corrector one order higher.

    The corrector uses the output at the predicted point, so it costs no call; history keeps that output.

    Parameters
    ----------
    order : {1, 2, 3, 4}
        Predictor order p; the corrected method has order p + 1.
    variant : {"bh2", "bh1", "vary_coeff", "exact"}
        B(h) = e^{−h} − 1 or −h as published (with the fixed weight ½ at predictor order 2 and corrector
        order 1); "exact" integrates the interpolating polynomial exactly; "vary_coeff" reproduces the
        released code of that name, whose corrector drops the last row of its weight matrix.
    form : {"data", "noise"}
        What is interpolated.
    lower_order_final : bool
        Lower the order to …, 2, 1 over the last steps.
    disable_corrector : sequence of int
        Steps (0 = first) that are not corrected; the authors advise [0] under strong guidance.
    """
    check_order("unipc", order, 1, 4)
    check_variant("unipc", variant, VARIANTS)
    if form not in ("data", "noise"):
        raise ValueError(f"form={form!r} is not known to unipc; allowed: data, noise")
    steps = data_steps(nodes) if form == "data" else noise_steps(nodes)
    orders = step_orders(nodes, order, lower_order_final)
    published = variant in ("bh1", "bh2")
    predictor = multistep(
        nodes, steps, orders, (lambda r, z: _bh_shape(r, z, variant)) if published else exponential_shape
    )
    shapes = grouped_weights(nodes, steps.z, orders, lambda points, z: corrector_shape(points, z, variant))
    for step in disable_corrector:
        if not 0 <= step < nodes.steps:
            raise ValueError(f"disable_corrector holds step {step}, but there are steps 0..{nodes.steps - 1}")
        shapes[step] = None
    return corrected(predictor, nodes, steps, shapes, form)


def exact_corrector(table: Table, nodes: Nodes, *, order: int = 2) -> Table:
    """Add the exact exponential Adams–Moulton corrector to any data-form method with one call per step.

    Parameters
    ----------
    table : Table
        Built on `nodes`; deterministic and without inner stages (see `transforms.apply_corrector`).
    nodes : Nodes
    order : int ≥ 1
        Number of outputs before the new one; the corrected method has order + 1 where its predictor has `order`.
    """
    check_order("exact_corrector", order, 1)
    steps = data_steps(nodes)
    orders = step_orders(nodes, order, lower_order_final=False)
    shapes = grouped_weights(nodes, steps.z, orders, lambda points, z: corrector_shape(points, z, "exact"))
    return corrected(table, nodes, steps, shapes, "data")


def corrected(table: Table, nodes: Nodes, steps: Steps, shapes: Sequence[Array | None], form: str) -> Table:
    """Apply corrector shapes (relative to the step's total weight) to a multistep table of the same steps."""
    weights = [None if shape is None else shape * steps.total[i] for i, shape in enumerate(shapes)]
    return apply_corrector(table, nodes, steps.carry, weights, form=form)


def corrector_shape(points: Array, z: Array, variant: str) -> Array:
    """Weights on the outputs up to the step's start, newest first, then its end, relative to the first-order one."""
    points = np.concatenate([points, np.ones((len(points), 1))], axis=-1)
    if variant == "exact":
        return exponential_shape(points, z)
    if variant == "vary_coeff":
        return _released_corrector_shape(points, z)
    return _bh_shape(points, z, variant)


def _bh_shape(points: Array, z: Array, variant: str) -> Array:
    """B(h)·Σ_k a_k (D_k − D₀)/ρ_k with R a = b (paper, eq. 5 and 9); a = ½ for a single unknown, as released."""
    q = points.shape[-1] - 1
    if q == 0:
        return np.ones_like(points)
    g1 = z * phi(1, z)
    b_of_h = z if variant == "bh1" else g1
    if q == 1:
        a = np.full((len(points), 1), 0.5)
    else:
        rhs = np.stack([factorial(k) * z * phi(k + 1, z) / b_of_h for k in range(1, q + 1)], axis=-1)
        a = vandermonde_weights(points[:, 1:], rhs)
    rest = (b_of_h / g1)[:, None] * a / points[:, 1:]
    return np.concatenate([1 - rest.sum(axis=-1, keepdims=True), rest], axis=-1)


def _released_corrector_shape(points: Array, z: Array) -> Array:
    """The corrector weights of the released `vary_coeff` code, quirk included.

    With C_jk = ρ_j^{k−1}/k! and A = C^{-1} it adds g_{k+1} A_k to the history for k < K only, and gives the
    new output row K−1 of A (row 1 when K = 1) times g_{K+1}.
    """
    rho = points[:, 1:]
    count = rho.shape[-1]
    columns = np.stack([rho ** (k - 1) / factorial(k) for k in range(1, count + 1)], axis=-1)
    inverse = np.linalg.inv(columns)
    g = [z * phi(k + 1, z) for k in range(1, count + 1)]
    rest = np.zeros_like(rho)
    for k in range(count - 1):
        rest[:, :-1] += g[k][:, None] * inverse[:, k, :-1]
    rest[:, -1] = g[count - 1] * inverse[:, max(count - 2, 0), -1]
    rest = rest / (z * phi(1, z))[:, None] / rho
    return np.concatenate([1 - rest.sum(axis=-1, keepdims=True), rest], axis=-1)
