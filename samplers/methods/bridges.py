"""Bridge samplers, through the reduction of a bridge to a Gaussian path: x − anchor·source."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from pathline.interpolants import DiffusionBridge

from ..bridge_grids import BridgeNodes, BridgePoint
from ..nodes import Level, Nodes
from ..numerics import Array
from ..program import Linear, Program
from ..registry import Case, Reference, register
from ..table import Table
from .ddim import ddim_coefficients
from .multistep import (
    Steps,
    check_order,
    check_range,
    check_variant,
    data_steps,
    exponential_shape,
    extend,
    grouped_weights,
    step_orders,
)

DBIM = Reference(
    key="zheng2025dbim",
    authors="Zheng, Kaiwen and He, Guande and Chen, Jianfei and Bao, Fan and Zhu, Jun",
    title="Diffusion Bridge Implicit Models",
    year=2025,
    venue="ICLR",
    arxiv="2405.15885",
)
I2SB = Reference(
    key="liu2023i2sb",
    authors="Liu, Guan-Horng and Vahdat, Arash and Huang, De-An and Theodorou, Evangelos A. and Nie, Weili and "
    "Anandkumar, Anima",
    title="I2SB: Image-to-Image Schrödinger Bridge",
    year=2023,
    venue="ICML",
    arxiv="2302.05872",
)
BBDM = Reference(
    key="li2023bbdm",
    authors="Li, Bo and Xue, Kaitao and Liu, Bin and Lai, Yu-Kun",
    title="BBDM: Image-to-image Translation with Brownian Bridge Diffusion Models",
    year=2023,
    venue="CVPR",
    arxiv="2205.07680",
)
DDBM = Reference(
    key="zhou2024ddbm",
    authors="Zhou, Linqi and Lou, Aaron and Khanna, Samar and Ermon, Stefano",
    title="Denoising Diffusion Bridge Models",
    year=2024,
    venue="ICLR",
    arxiv="2309.16948",
)


@register(
    "dbim",
    cases=[Case({"order": 1}, 1, 1), Case({"order": 2}, 2, 2), Case({"order": 3}, 3, 2), Case({"eta": 1.0}, 1, 1)],
    reference=DBIM,
    requires="a bridge: Nodes with anchor",
)
def dbim(
    nodes: Nodes, *, order: int = 1, eta: float = 0.0, variant: str = "exact", source_time: float | None = None
) -> Table:
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
    variant : {"exact", "released"}
        How the noise of η > 0 is found: from signal and noise, or as in the authors' code for I²SB from the anchor
        coefficients, which differ where those are off by one β, as in their tables (reference of signal 1 only).
    source_time : float, optional
        Label of the source end; default 1e-3 beyond node 0, as in the authors' code.
    """
    check_order("dbim", order, 1, 3)
    check_range("dbim", "eta", eta, 0, 1)
    if eta > 0 and order > 1:
        raise ValueError(f"eta={eta!r} with order={order} is not possible for dbim; orders above 1 are deterministic")
    check_variant("dbim", variant, ("exact", "released"))
    program, x, source = _from_source("dbim", nodes, source_time)
    carry, fresh = ddim_coefficients(nodes, eta) if variant == "exact" else _released_coefficients(nodes, eta)
    fresh[-1] = 0.0  # the last step keeps the smaller carry but drops its noise, as released
    steps = _bridge_steps(nodes, carry, fresh)
    orders = step_orders(nodes, order, lower_order_final=False)
    orders[-1] = 1
    table = program.finish(
        extend(program, x, steps, grouped_weights(nodes, steps.z, orders, exponential_shape)),
        law="weak" if eta > 0 else "exact",
    )
    return replace(table, start=source)


@register(
    "bridge-posterior",
    cases=[Case({}, 1, 1), Case({"deterministic": True}, 1, 1), Case({"start": "node"}, 1, 1)],
    reference=I2SB,
    requires="a bridge: Nodes with anchor",
)
def bridge_posterior(
    nodes: Nodes, *, start: str = "source", deterministic: bool = False, source_time: float | None = None
) -> Table:
    """Steps of a Brownian posterior between the state and the predicted data: I²SB, ResShift, consecutive bridges.

    x' = (anchor'/anchor)·x + (1 − anchor'/anchor)·D + noise, where signal + anchor = 1: the source enters through the
    state alone. A last step that does not reach the data drops its noise, as released.

    Parameters
    ----------
    start : {"source", "node"}
        "source": the state is the source itself, and the first call is made there (I²SB, consecutive Brownian bridge).
        "node": the state is at node 0 (ResShift, whose first level is noisy: start from source + noise[0]·z).
    deterministic : bool
        I²SB's OT-ODE: no noise at all, for networks trained with noise 0.
    source_time : float, optional
        Label of the source end; default 1e-3 beyond node 0.
    """
    check_variant("bridge-posterior", start, ("source", "node"), argument="start")
    _check_bridge("bridge-posterior", nodes)
    if start == "node":
        program, source = Program(nodes), nodes.level(0)
        x = program.state
    else:
        program, x, source = _from_source("bridge-posterior", nodes, source_time, noisy=not deterministic)
    carry = nodes.anchor[1:] / nodes.anchor[:-1]
    variance = nodes.noise[1:] ** 2 - (carry * nodes.noise[:-1]) ** 2
    if (variance < -1e-12 * nodes.noise[1:] ** 2).any():
        raise ValueError("bridge-posterior needs noise²/anchor² to grow towards the data, as Brownian bridges have it")
    fresh = np.zeros(nodes.steps) if deterministic else np.sqrt(np.maximum(0.0, variance))
    dropped = fresh[-1] > 0
    fresh[-1] = 0.0
    x = extend(program, x, _bridge_steps(nodes, carry, fresh), [None] * nodes.steps)
    table = replace(program.finish(x, law="weak" if dropped else "exact"), start=source)
    return _noiseless(table) if deterministic else table


def _noiseless(table: Table) -> Table:
    """The same steps on the mean of the bridge: levels without noise."""
    rows = tuple(replace(row, level=row.level._replace(noise=0.0)) for row in table.rows)
    return replace(table, rows=rows, start=table.start._replace(noise=0.0), end=table.end._replace(noise=0.0))


@register(
    "bbdm",
    cases=[Case({}, 1, 1), Case({"eta": 0.0}, 1, 1)],
    reference=BBDM,
    requires="a bridge: Nodes with anchor",
)
def bbdm(nodes: Nodes, *, eta: float = 1.0) -> Table:
    """BBDM: posterior steps of a bridge from a state at node 0, which is the source itself.

    Parameters
    ----------
    eta : float in [0, 1]
        Factor of the noise. The share of the old noise is that of η = 1 whatever eta is, as released, so that the
        marginals are kept at 1 only; `dbim` keeps them for any η.
    """
    check_range("bbdm", "eta", eta, 0, 1)
    _check_bridge("bbdm", nodes)
    carry, fresh = ddim_coefficients(nodes, 1.0)
    program = Program(nodes, ("source",))
    x = extend(program, program.state, _bridge_steps(nodes, carry, eta * fresh), [None] * nodes.steps)
    if eta == 0.0:
        return program.finish(x, frame="none: without its noise a step shrinks what noise is left")
    return program.finish(x, law="exact" if eta == 1.0 else "none: eta scales the noise alone")


@register(
    "ddbm",
    cases=[Case({}, 1, 1, "time"), Case({"churn": 0.0}, 2, 2, "time")],
    reference=DDBM,
    requires="a bridge: BridgeNodes",
)
def ddbm(nodes: Nodes, *, churn: float = 0.33) -> Table:
    """DDBM's hybrid sampler: Euler–Maruyama over a share of each step, Heun's method over the rest; 3 calls per step.

    The state starts at node 0 (the released code puts the source there). A last step to the data is an Euler step.

    Parameters
    ----------
    churn : float in [0, 1)
        Share of each step that follows the SDE; 0 is Heun on the probability flow, 2 calls per step.
    """
    if not 0 <= churn < 1:
        raise ValueError(f"churn={churn!r} is not possible for ddbm; allowed: 0 to below 1")
    if not isinstance(nodes, BridgeNodes):
        raise ValueError("ddbm steps in time, so it needs the rates of the bridge: nodes from bridge_nodes(...)")
    clock, share = nodes.clock, churn * np.diff(nodes.clock)
    points, inner = nodes.points(clock), nodes.points(clock[:-1] + share)
    epsilon = _epsilon(nodes) if churn > 0 else np.zeros(nodes.steps)
    program = Program(nodes, ("source",))
    x = program.state
    for i in range(nodes.steps):
        if churn > 0:
            drift = _bridge_drift(program, x, points[i], float(epsilon[i]))
            x = program.let(x + share[i] * drift + np.sqrt(2 * epsilon[i] * share[i]) * program.noise())
        span = clock[i + 1] - inner[i].level.clock
        first = _bridge_drift(program, x, inner[i], 0.0)
        if nodes.noise[i + 1] == 0.0:
            x = program.let(x + span * first)
        else:
            second = _bridge_drift(program, x + span * first, points[i + 1], 0.0)
            x = program.let(x + 0.5 * span * (first + second))
    return program.finish(x, frame="none: steps in time are exact to their order only", law="weak")


def _epsilon(nodes: BridgeNodes) -> Array:
    """Half the squared diffusion of the bridge's own SDE at the start of every step."""
    if not isinstance(nodes.bridge, DiffusionBridge):
        raise ValueError("churn above 0 needs the bridge's own noise level: nodes of a DiffusionBridge")
    return np.asarray(nodes.bridge.epsilon(torch.from_numpy(nodes.clock[:-1])))


def _bridge_drift(program: Program, x: Linear, point: BridgePoint, epsilon: float) -> Linear:
    """Velocity + ε·score given the source, from one call; the score is −rest/noise²."""
    level = point.level
    data, source = program.query(x, level), program.anchor("source")
    rest = x - level.anchor * source - level.signal * data
    pull = (point.noise_product_rate - epsilon) / level.noise**2
    return point.anchor_rate * source + point.signal_rate * data + pull * rest


def _check_bridge(name: str, nodes: Nodes) -> None:
    if not nodes.is_bridge:
        raise ValueError(
            f"{name} needs a bridge: Nodes(signal, noise, time, anchor=...) with the source's coefficients"
        )


def _from_source(
    name: str, nodes: Nodes, source_time: float | None, noisy: bool = True
) -> tuple[Program, Linear, Level]:
    """A program whose state is the source: one call there and one draw of booting noise lead to node 0."""
    _check_bridge(name, nodes)
    outward = float(np.sign(nodes.time[0] - nodes.time[-1]))
    time = float(nodes.time[0]) + 1e-3 * outward if source_time is None else float(source_time)
    source, start = Level(time, 0.0, 0.0, anchor=1.0), nodes.level(0)
    program = Program(nodes, ("source",))
    first = program.query(program.state, source)
    x = start.anchor * program.anchor("source") + start.signal * first
    return program, program.let(x + start.noise * program.noise() if noisy and start.noise else x), source


def _released_coefficients(nodes: Nodes, eta: float) -> tuple[Array, Array]:
    """`ddim_coefficients` with fresh = ηρ'√(1 − ρ'²/ρ²), where ρ² = noise²/signal and ρ'²/ρ² = anchor'/anchor."""
    rho = nodes.noise[1:] / np.sqrt(nodes.signal[1:])
    fresh = eta * rho * np.sqrt(1.0 - nodes.anchor[1:] / nodes.anchor[:-1])
    return np.sqrt(np.maximum(0.0, nodes.noise[1:] ** 2 - fresh**2)) / nodes.noise[:-1], fresh


def _bridge_steps(nodes: Nodes, carry: Array, fresh: Array) -> Steps:
    """Steps with given shares of the old state and of new noise, on x − anchor·source."""
    plain = data_steps(nodes)
    return replace(plain, carry=carry, total=nodes.signal[1:] - carry * nodes.signal[:-1], fresh=fresh)
