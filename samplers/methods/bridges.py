"""Bridge samplers, through the reduction of a bridge to a Gaussian path: x − anchor·source."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..nodes import Level, Nodes
from ..numerics import Array
from ..program import Program
from ..registry import Case, Reference, register
from ..table import Table
from .multistep import Steps, check_order, data_steps, exponential_shape, extend, grouped_weights, step_orders

DBIM = Reference(
    key="zheng2025dbim",
    authors="Zheng, Kaiwen and He, Guande and Chen, Jianfei and Bao, Fan and Zhu, Jun",
    title="Diffusion Bridge Implicit Models",
    year=2025,
    venue="ICLR",
    arxiv="2405.15885",
)


@register(
    "dbim",
    cases=[Case({"order": 1}, 1, 1), Case({"order": 2}, 2, 2), Case({"order": 3}, 3, 2), Case({"eta": 1.0}, 1, 1)],
    reference=DBIM,
    requires="a bridge: Nodes with anchor",
)
def dbim(nodes: Nodes, *, order: int = 1, eta: float = 0.0, source_time: float | None = None) -> Table:
    """DBIM(η) and its deterministic orders 2 and 3: DDIM and exponential Adams on x − anchor·source.

    The nodes hold the bridge (signal, noise, anchor) from just below its source end to the data. The state starts
    at the source itself, where the noise is 0: one call there and one draw of booting noise lead to node 0, so that
    N steps cost N + 1 calls. The last step has order 1 and adds no noise.

    The source is the initial state; `run` takes it from there unless it is given as an anchor.

    Parameters
    ----------
    order : {1, 2, 3}
        Orders 2 and 3 are deterministic.
    eta : float in [0, 1]
        0 is deterministic after the booting noise, 1 the posterior of the bridge; order 1 only.
    source_time : float, optional
        Label of the source end; default 1e-3 beyond node 0, as in the authors' code.
    """
    check_order("dbim", order, 1, 3)
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta!r} is not possible for dbim; allowed: 0 to 1")
    if eta > 0 and order > 1:
        raise ValueError(f"eta={eta!r} with order={order} is not possible for dbim; orders above 1 are deterministic")
    if not nodes.is_bridge:
        raise ValueError("dbim needs a bridge: Nodes(signal, noise, time, anchor=...) with the source's coefficients")
    outward = float(np.sign(nodes.time[0] - nodes.time[-1]))
    time = float(nodes.time[0]) + 1e-3 * outward if source_time is None else float(source_time)
    source = Level(time, 0.0, 0.0, anchor=1.0)
    program = Program(nodes, ("source",))
    first = program.query(program.state, source)
    start = nodes.level(0)
    boot = start.anchor * program.anchor("source") + start.signal * first + start.noise * program.noise()
    steps = _steps(nodes, eta)
    orders = step_orders(nodes, order, lower_order_final=False)
    orders[-1] = 1
    shapes = grouped_weights(nodes, steps.z, orders, exponential_shape)
    x = extend(program, program.let(boot), steps, shapes)
    table = program.finish(x, law="weak" if eta > 0 else "exact")
    return replace(table, start=source)


def _steps(nodes: Nodes, eta: float) -> Steps:
    """DDIM(η) steps of the reduced path; the last one keeps the smaller carry but drops its noise, as released."""
    plain = data_steps(nodes)
    fresh: Array = eta * nodes.noise[1:] * np.sqrt(-np.expm1(-2 * np.diff(nodes.lam)))
    carry = np.sqrt(nodes.noise[1:] ** 2 - fresh**2) / nodes.noise[:-1]
    fresh[-1] = 0.0
    return replace(plain, carry=carry, total=nodes.signal[1:] - carry * nodes.signal[:-1], fresh=fresh)
