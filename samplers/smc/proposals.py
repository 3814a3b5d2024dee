"""The table that follows the diffusion of a composition step by step, and noise scaled in any table."""

from __future__ import annotations

import math
from dataclasses import replace

from ..nodes import Level, Nodes
from ..program import Program
from ..table import Row, Table, Update


def score_steps(nodes: Nodes, noise_scale: float = 1.0, total: float | None = None) -> Table:
    """Euler–Maruyama steps of dx = (−f·x + ½(1 + ζ²)·g²·score) dτ + ζ·g dW, the score held and the rest integrated.

    In y = x/signal and q = (noise/signal)²: y' = y + ½(1 + ζ²)·(q − q')·signal·score + ζ·√(q − q')·z, so that the
    variance put in is exact on any path. Steps from signal 0 draw afresh around the data prediction, and a last step to
    noise 0 ends in it.

    With a `total` W the score is −W·x/noise² and a rest: only the rest is held, so that pure noise, where the score is
    W times that of noise, stays stable at any step (an Euler step multiplies y by 1 − ½(1 + ζ²)·W·(1 − q'/q) there):
    y' = y + (1 − (q'/q)^κ)·(q·signal·score)/W with κ = ½(1 + ζ²)·W, and noise of variance ζ²·∫(q'/u)^2κ du over q'..q.

    Parameters
    ----------
    nodes : Nodes
    noise_scale : float ≥ 0
        ζ; 0 is deterministic, 1 the reverse of the noising process.
    total : float > 0, optional
        W, the sum of the weights of a composition; by default the whole score is held.

    Raises
    ------
    ValueError
        ζ or W out of range, or nodes of a bridge.
    """
    if not 0.0 <= noise_scale < math.inf:
        raise ValueError(f"noise_scale={noise_scale!r} is not possible; it must be finite and not negative")
    if total is not None and not 0.0 < total < math.inf:
        raise ValueError(f"total={total!r} is not possible; it must be finite and above 0")
    if nodes.is_bridge:
        raise ValueError("the nodes belong to a bridge; compositions need a Gaussian path")
    program = Program(nodes)
    x = program.state
    for i in range(nodes.steps):
        start, end = nodes.level(i), nodes.level(i + 1)
        if end.noise == 0.0 and (total is None or start.signal == 0.0):
            x = program.let(end.signal * program.query(x, i))
        elif start.signal == 0.0:
            step = end.signal * program.query(x, i)
            carry = end.noise / start.noise if noise_scale == 0.0 else 0.0
            x = program.let(step + (carry * x if carry else end.noise * program.noise()))
        else:
            push, spread = _push(start, end, noise_scale, total)
            step = end.signal / start.signal * x + end.signal * push * program.query(x, i, "noise")
            if spread:
                step = step + end.signal * spread * program.noise()
            x = program.let(step)
    table = program.finish(x, frame="none: first order in the squared noise ratio", law="weak")
    given = {"noise_scale": noise_scale, **({} if total is None else {"total": total})}
    return replace(table, method="score-steps", options=given)


def _push(start: Level, end: Level, zeta: float, total: float | None) -> tuple[float, float]:
    """Factor of the noise prediction in a step of y = x/signal, and the standard deviation of its noise."""
    before, after = (start.noise / start.signal) ** 2, (end.noise / end.signal) ** 2
    root, half = math.sqrt(before), 0.5 * (1.0 + zeta**2)
    if total is None:
        return -half * (before - after) / root, zeta * math.sqrt(before - after)
    if after == 0.0:
        return -root / total, 0.0
    length = math.log(before / after)
    rate = (2.0 * half * total - 1.0) * length
    variance = after * length * (-math.expm1(-rate) / rate if rate else 1.0)
    return math.expm1(-half * total * length) * root / total, zeta * math.sqrt(variance)


def with_noise_factor(table: Table, factor: float) -> Table:
    """A copy in which every draw counts `factor` times as much, for laws whose variance is factor² of the path's."""

    def scaled(row: Row) -> Row:
        updates = tuple(
            Update(u.target, tuple((v, factor * c if v in row.noises else c) for v, c in u.terms)) for u in row.updates
        )
        return replace(row, updates=updates)

    if factor == 1.0:
        return table
    reason = f"none: noise times {factor:g}"
    return replace(table, rows=tuple(scaled(row) for row in table.rows), frame=reason, law=reason)
