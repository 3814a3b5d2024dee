"""What exponential multistep methods share: the order of every step and the loop that strings weights together."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..nodes import Nodes
from ..numerics import Array, exponential_weights
from ..program import Linear, Program, dot
from ..table import Table

GroupRule = Callable[[Array, Array], Array]


def check_order(name: str, order: int, lowest: int, highest: int | None = None) -> None:
    """Raise ValueError unless `order` is an integer in the allowed range."""
    allowed = f"{lowest}..{highest}" if highest is not None else f"at least {lowest}"
    if not isinstance(order, int) or order < lowest or (highest is not None and order > highest):
        raise ValueError(f"order={order!r} is not possible for {name}; allowed: {allowed}")


def check_variant(name: str, variant: str, allowed: tuple[str, ...]) -> None:
    """Raise ValueError unless `variant` is one of `allowed`."""
    if variant not in allowed:
        raise ValueError(f"variant={variant!r} is not known to {name}; allowed: {', '.join(allowed)}")


def step_orders(nodes: Nodes, order: int, lower_order_final: bool) -> list[int]:
    """Order of every step: warm-up 1, 2, …; lowered to …, 2, 1 at the end; 1 next to λ = ±∞.

    A first node at λ = −∞ is left out of later steps, because its distance in λ is infinite.
    """
    n = nodes.steps
    first = 1 if nodes.starts_pure else 0
    orders = [max(1, min(order, i + 1 - first)) for i in range(n)]
    if lower_order_final:
        orders = [min(p, n - i) for i, p in enumerate(orders)]
    if nodes.ends_clean:
        orders[-1] = 1
    return orders


def step_sizes(nodes: Nodes) -> Array:
    """λ-steps h_i = λ_{i+1} − λ_i; infinite at the ends λ = ±∞."""
    with np.errstate(invalid="ignore"):
        return np.diff(nodes.lam)


def grouped_weights(nodes: Nodes, orders: list[int], rule: GroupRule) -> list[Array | None]:
    """Weights of every finite step, computed in one batch per order; None where h is infinite.

    `rule(points, h)` gets the nodes (m, p) of the m steps of order p, in units of the step with the newest
    output at 0, and their λ-steps h (m,); it returns weights (m, ≥ p).
    """
    h = step_sizes(nodes)
    weights: list[Array | None] = [None] * len(orders)
    for p in sorted(set(orders)):
        steps = [i for i, q in enumerate(orders) if q == p and np.isfinite(h[i])]
        if steps:
            points = np.array([[(nodes.lam[i - j] - nodes.lam[i]) / h[i] for j in range(p)] for i in steps])
            for i, w in zip(steps, rule(points, h[steps]), strict=True):
                weights[i] = w
    return weights


def data_carry(nodes: Nodes) -> tuple[Array, Array]:
    """(carry, weight) of the first-order data step x' = carry·x + weight·D, finite also at λ = ±∞."""
    carry = nodes.noise[1:] / nodes.noise[:-1]
    return carry, nodes.signal[1:] - carry * nodes.signal[:-1]


def exponential_shape(points: Array, h: Array) -> Array:
    """Exact data-form weights relative to the first-order weight signal'(1 − e^{−h}); they sum to 1."""
    weights = exponential_weights(points, -h)
    return weights / weights.sum(axis=-1, keepdims=True)


def multistep(nodes: Nodes, orders: list[int], rule: GroupRule) -> Table:
    """x_{i+1} = carry_i·x_i + total_i·Σ_j shape_ij·D_{i−j}: one call per step, `rule` gives the shapes."""
    carry, total = data_carry(nodes)
    shapes = grouped_weights(nodes, orders, rule)
    program = Program(nodes)
    x, history = program.state, list[Linear]()
    for i in range(nodes.steps):
        history.insert(0, program.query(x, i))
        shape = shapes[i]
        weights = total[i] * (shape if shape is not None else np.ones(1))
        x = program.let(float(carry[i]) * x + dot(weights, history))
    return program.finish(x)
