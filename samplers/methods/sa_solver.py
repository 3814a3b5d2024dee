"""SA-Solver: stochastic Adams predictor and corrector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..nodes import Nodes
from ..numerics import Array, phi
from ..registry import Case, Reference, register
from ..table import Table
from .multistep import (
    check_order,
    check_variant,
    data_steps,
    exponential_shape,
    grouped_weights,
    multistep,
    noise_steps,
    step_orders,
)
from .unipc import corrected

WINDOW = (0.2, 0.8)

SA_SOLVER = Reference(
    key="xue2023sasolver",
    authors="Xue, Shuchen and Yi, Mingyang and Luo, Weijian and Zhang, Shifeng and Sun, Jiacheng and others",
    title="SA-Solver: Stochastic Adams Solver for Fast Sampling of Diffusion Models",
    year=2023,
    venue="NeurIPS",
    arxiv="2309.05019",
)


def _late(nodes: Nodes, options: Mapping[str, Any], left_out: int) -> dict[str, Any]:
    given = {"tau": 1.0, "window": WINDOW, **options}
    return {**options, "tau": _taus(nodes, given["tau"], given["window"])[left_out:].tolist()}


@register(
    "sa",
    cases=[
        Case({}, 2, 2),
        Case({"tau": 1.0, "window": None}, 2, 2),
        Case({"tau": 0.0}, 4, 3),
        Case({"tau": 0.0, "order": 2, "corrector_order": 0, "variant": "exact"}, 2, 2),
        Case({"tau": 0.0, "form": "noise"}, 4, 3),
        Case({"form": "noise", "order": 2, "corrector_order": 2}, 2, 2),
    ],
    reference=SA_SOLVER,
    late_options=_late,
)
def sa(
    nodes: Nodes,
    *,
    order: int = 3,
    corrector_order: int = 4,
    tau: float | Sequence[float] = 1.0,
    window: tuple[float, float] | None = WINDOW,
    variant: str = "released",
    form: str = "data",
    lower_order_final: bool = True,
) -> Table:
    """SA-Solver: exponential Adams predictor and corrector of the reverse SDE of strength τ², one call per step.

    The corrector uses the very noise and τ of its predictor. The last step is not corrected, and
    deterministic unless tau is given per step.

    Parameters
    ----------
    order : int ≥ 1
        Outputs used by the predictor.
    corrector_order : int ≥ 0
        Outputs used by the corrector, the new one included; 0 switches it off.
    tau : float ≥ 0, or one value per step
        0 is the deterministic exponential Adams method, 1 the reverse SDE.
    window : (low, high) or None
        Fraction of the way from data (0) to noise (1), in the nodes' time, in which a scalar tau applies; elsewhere
        it is 0. None applies it everywhere.
    variant : {"released", "exact"}
        "released" replaces the first moment of second-order rules by its small-step limit, as the authors' few-step
        mode and diffusers do, in data form.
    form : {"data", "noise"}
        What is interpolated; in noise form with tau > 0 the variance of point masses is right as h → 0 only.
    lower_order_final : bool
        Lower the orders over the last steps.
    """
    check_order("sa", order, 1)
    check_order("sa", corrector_order, 0, argument="corrector_order")
    strength = _taus(nodes, tau, window) ** 2
    check_variant("sa", form, ("data", "noise"), argument="form")
    steps = data_steps(nodes, strength) if form == "data" else noise_steps(nodes, strength)
    orders = step_orders(nodes, order, lower_order_final)
    check_variant("sa", variant, ("released", "exact"))
    exact = variant == "exact" or form == "noise"
    table = multistep(nodes, steps, orders, exponential_shape if exact else _predictor_shape)
    table = replace(table, law="weak") if form == "noise" and strength.any() else table
    if corrector_order == 0:
        return table
    behind = [max(0, min(corrector_order - 1, p)) for p in _corrector_orders(nodes, corrector_order, lower_order_final)]
    rule = _exact_corrector if exact else _corrector_shape
    shapes = grouped_weights(nodes, steps.z, [max(1, b) for b in behind], lambda p, z: rule(p, z, corrector_order))
    return corrected(table, nodes, steps, shapes, form)


def _taus(nodes: Nodes, tau: float | Sequence[float], window: tuple[float, float] | None) -> Array:
    values = np.atleast_1d(np.asarray(tau, dtype=np.float64))
    if (values < 0).any() or not np.isfinite(values).all() or len(values) not in (1, nodes.steps):
        raise ValueError(
            f"tau={tau!r} is not possible for sa; give one value ≥ 0 or one for each of {nodes.steps} steps"
        )
    if np.ndim(tau) == 0:
        span = nodes.time[0] - nodes.time[-1]
        place = (nodes.time[:-1] - nodes.time[-1]) / span if span else np.ones(nodes.steps)
        low, high = window or (-np.inf, np.inf)
        values = np.where((place >= low) & (place <= high), values[0], 0.0)
        values[-1] = 0.0
    return values


def _corrector_orders(nodes: Nodes, corrector_order: int, lower_order_final: bool) -> list[int]:
    n, first = nodes.steps, int(nodes.starts_pure)
    orders = [max(1, min(corrector_order - 1, i + 1 - first)) for i in range(n)]
    return [min(p, n - i) for i, p in enumerate(orders)] if lower_order_final else orders


def _predictor_shape(points: Array, z: Array) -> Array:
    if points.shape[-1] != 2:
        return exponential_shape(points, z)
    older = 0.5 / (phi(1, z) * points[:, 1])
    return np.stack([1 - older, older], axis=-1)


def _corrector_shape(points: Array, z: Array, corrector_order: int) -> Array:
    if corrector_order > 1 and points.shape[-1] == 1:
        new = 0.5 / phi(1, z)
        return np.stack([1 - new, new], axis=-1)
    return _exact_corrector(points, z, corrector_order)


def _exact_corrector(points: Array, z: Array, corrector_order: int) -> Array:
    if corrector_order == 1:
        return np.concatenate([np.zeros((len(points), 1)), np.ones((len(points), 1))], axis=-1)
    return exponential_shape(np.concatenate([points, np.ones((len(points), 1))], axis=-1), z)
