"""What exponential multistep methods share: the order of every step and the loop that strings weights together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from ..nodes import Nodes
from ..numerics import Array, exponential_weights
from ..program import Linear, Program, dot
from ..table import Table

GroupRule = Callable[[Array, Array], Array]


def check_order(name: str, order: int, lowest: int, highest: int | None = None, *, argument: str = "order") -> None:
    """Raise ValueError unless `order` is an integer in the allowed range."""
    allowed = f"{lowest}..{highest}" if highest is not None else f"at least {lowest}"
    if not isinstance(order, int) or order < lowest or (highest is not None and order > highest):
        raise ValueError(f"{argument}={order!r} is not possible for {name}; allowed: {allowed}")


def check_variant(name: str, variant: str, allowed: Iterable[str], *, argument: str = "variant") -> None:
    """Raise ValueError unless `variant` is one of `allowed`."""
    if variant not in allowed:
        raise ValueError(f"{argument}={variant!r} is not known to {name}; allowed: {', '.join(allowed)}")


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


def check_range(name: str, argument: str, value: float, low: float, high: float = float("inf")) -> None:
    """Raise ValueError unless low ≤ value ≤ high."""
    if not low <= value <= high:
        allowed = f"{low:g} to {high:g}" if np.isfinite(high) else f"at least {low:g}"
        raise ValueError(f"{argument}={value!r} is not possible for {name}; allowed: {allowed}")


@dataclass(frozen=True)
class Steps:
    """The exponential step between nodes: x' = carry·x + total·(Σ shape·output) + fresh·noise.

    Attributes
    ----------
    carry, total, fresh : arrays (N,)
        Finite for every step, also next to λ = ±∞.
    z : array (N,)
        Exponent of the weights ∫_0^1 e^{(1−u)z} f(u) du: −κh in data form, +h in noise form.
    forms : list of N
        What each step's output is stored as; "data" next to λ = ±∞ whatever the form of the others.
    """

    carry: Array
    total: Array
    fresh: Array
    z: Array
    forms: list[str]


def data_steps(nodes: Nodes, strength: float | Array = 0.0) -> Steps:
    """Data form; `strength` τ² ≥ 0 of the reverse SDE, per step or one for all (κ = 1 + τ²).

    carry = (noise'/noise)·e^{−τ²h}, total = signal'·(1 − e^{−κh}), fresh = noise'·√(1 − e^{−2τ²h}).
    """
    strength = np.broadcast_to(np.asarray(strength, dtype=np.float64), (nodes.steps,))
    h = np.diff(nodes.lam)
    decay = np.exp(-np.multiply(strength, h, where=strength > 0, out=np.zeros(nodes.steps)))
    return decayed_steps(nodes, decay, -(1.0 + strength) * h)


def decayed_steps(nodes: Nodes, decay: Array, z: Array) -> Steps:
    """Data form that keeps the share `decay` in [0, 1] of the old noise and draws the rest afresh; exact in law."""
    carry = nodes.noise[1:] / nodes.noise[:-1] * decay
    fresh = nodes.noise[1:] * np.sqrt(1.0 - decay**2)
    return Steps(carry, nodes.signal[1:] - carry * nodes.signal[:-1], fresh, z, ["data"] * nodes.steps)


def noise_steps(nodes: Nodes, strength: float | Array = 0.0) -> Steps:
    """Noise form; `strength` τ² as in `data_steps`. Next to λ = ±∞ the steps are those of the data form.

    carry = signal'/signal, total = −κ·noise'·(e^h − 1), fresh = τ·noise'·√(e^{2h} − 1): with noise the mean of point
    masses is exact, their variance only as h → 0.
    """
    strength = np.broadcast_to(np.asarray(strength, dtype=np.float64), (nodes.steps,))
    ends = data_steps(nodes, strength)
    h = np.diff(nodes.lam)
    infinite = ~np.isfinite(h)
    h = np.where(infinite, 0.0, h)
    carry = np.divide(nodes.signal[1:], nodes.signal[:-1], where=~infinite, out=ends.carry.copy())
    total = np.where(infinite, ends.total, (1.0 + strength) * (nodes.noise[1:] - carry * nodes.noise[:-1]))
    fresh = np.where(infinite, ends.fresh, nodes.noise[1:] * np.sqrt(strength * np.expm1(2 * h)))
    return Steps(carry, total, fresh, -ends.z / (1.0 + strength), ["data" if end else "noise" for end in infinite])


def grouped_weights(nodes: Nodes, z: Array, orders: list[int], rule: GroupRule) -> list[Array | None]:
    """Weights of every finite step, computed in one batch per order; None where the step is infinite.

    `rule(points, z)` gets the nodes (m, p) of the m steps of order p, in units of the step with the newest
    output at 0, and their exponents z (m,); it returns weights (m, ≥ p).
    """
    weights: list[Array | None] = [None] * len(orders)
    for p in sorted(set(orders)):
        steps = np.array([i for i, q in enumerate(orders) if q == p and np.isfinite(z[i])], dtype=int)
        if len(steps):
            here, h = nodes.lam[steps], np.diff(nodes.lam)[steps]
            points = np.stack([(nodes.lam[steps - j] - here) / h for j in range(p)], axis=-1)
            for i, w in zip(steps, rule(points, z[steps]), strict=True):
                weights[i] = w
    return weights


def exponential_shape(points: Array, z: Array) -> Array:
    """Exact weights relative to the first-order weight; they sum to 1."""
    weights = exponential_weights(points, z)
    return weights / weights.sum(axis=-1, keepdims=True)


def multistep(nodes: Nodes, steps: Steps, orders: list[int], rule: GroupRule) -> Table:
    """x_{i+1} = carry_i·x_i + total_i·Σ_j shape_ij·output_{i−j} + fresh_i·z: one call per step."""
    program = Program(nodes)
    return program.finish(extend(program, program.state, steps, grouped_weights(nodes, steps.z, orders, rule)))


def extend(program: Program, x: Linear, steps: Steps, shapes: list[Array | None]) -> Linear:
    """The rows of `multistep` from node 0 on, in a program of any beginning; returns the state at the last node.

    On a bridge the algebra holds for x − anchor·source, so each step adds what the anchor moves.
    """
    nodes, history = program.nodes, list[Linear]()
    for i in range(nodes.steps):
        history.insert(0, program.query(x, i, steps.forms[i]))
        shape = shapes[i]
        weights = steps.total[i] * (shape if shape is not None else np.ones(1))
        step = float(steps.carry[i]) * x + dot(weights, history)
        if program.anchors:
            moved = float(nodes.anchor[i + 1] - steps.carry[i] * nodes.anchor[i])
            step = step + moved * program.anchor("source")
        x = program.let(step + float(steps.fresh[i]) * program.noise() if steps.fresh[i] > 0 else step)
    return x
