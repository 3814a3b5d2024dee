"""The table that follows the diffusion of a composition step by step, and noise scaled in any table."""

from __future__ import annotations

import math
from dataclasses import replace

from ..nodes import Nodes
from ..program import Program
from ..table import Row, Table, Update


def score_steps(nodes: Nodes, noise_scale: float = 1.0) -> Table:
    """Euler–Maruyama steps of dx = (−f·x + ½(1 + ζ²)·g²·score) dτ + ζ·g dW, the score held and the rest integrated.

    In y = x/signal and q = (noise/signal)²: y' = y + ½(1 + ζ²)·(q − q')·signal·score + ζ·√(q − q')·z, so that the
    variance put in is exact on any path. Steps from signal 0 draw afresh around the data prediction, and a last step to
    noise 0 ends in it.

    Parameters
    ----------
    nodes : Nodes
    noise_scale : float ≥ 0
        ζ; 0 is deterministic, 1 the reverse of the noising process.

    Raises
    ------
    ValueError
        ζ out of range, or nodes of a bridge.
    """
    if not 0.0 <= noise_scale < math.inf:
        raise ValueError(f"noise_scale={noise_scale!r} is not possible; it must be finite and not negative")
    if nodes.is_bridge:
        raise ValueError("the nodes belong to a bridge; compositions need a Gaussian path")
    program = Program(nodes)
    x = program.state
    for i in range(nodes.steps):
        start, end = nodes.level(i), nodes.level(i + 1)
        if end.noise == 0.0:
            x = program.let(end.signal * program.query(x, i))
        elif start.signal == 0.0:
            step = end.signal * program.query(x, i)
            carry = end.noise / start.noise if noise_scale == 0.0 else 0.0
            x = program.let(step + (carry * x if carry else end.noise * program.noise()))
        else:
            ratio = start.noise / start.signal
            gone = ratio**2 - (end.noise / end.signal) ** 2
            push = -0.5 * (1 + noise_scale**2) * gone / ratio * end.signal
            step = end.signal / start.signal * x + push * program.query(x, i, "noise")
            if noise_scale:
                step = step + noise_scale * math.sqrt(gone) * end.signal * program.noise()
            x = program.let(step)
    table = program.finish(x, frame="none: first order in the squared noise ratio", law="weak")
    return replace(table, method="score-steps", options={"noise_scale": noise_scale})


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
