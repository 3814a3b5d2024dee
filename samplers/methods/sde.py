"""Euler–Maruyama, Heun and exponential steps of the SDE with any noise level ε(t)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from pathline.interpolants import EPSILONS, coefficients, epsilon_by_name, unknown_name

from ..nodes import Level, Nodes
from ..program import Linear, Program
from ..registry import Case, Reference, register
from ..table import Table
from .multistep import Steps, check_variant, decayed_steps, exponential_shape, multistep
from .ratio_steps import data_step

SIT = Reference(
    key="ma2024sit",
    authors="Ma, Nanye and Goldstein, Mark and Albergo, Michael S. and Boffi, Nicholas M. and Vanden-Eijnden, Eric and "
    "Xie, Saining",
    title="SiT: Exploring Flow and Diffusion-based Generative Models with Scalable Interpolant Transformers",
    year=2024,
    venue="ECCV",
    arxiv="2401.08740",
)
EpsilonAt = Callable[[int, Level], float]
Epsilon = str | float | Sequence[float] | Callable[[float], float]
SOLVERS = ("euler", "heun", "exponential")
LAST_STEPS = ("tweedie", "mean", "euler")
_GAUSS, _GAUSS_WEIGHTS = (0.5 * (a + b) for a, b in zip(np.polynomial.legendre.leggauss(32), (1.0, 0.0), strict=True))


@register(
    "sde",
    cases=[
        Case({}, 1, 1, "time"),
        Case({"solver": "exponential"}, 1, 1, "time"),
        Case({"solver": "heun", "epsilon": "linear"}, 1, 1, "time"),
        Case({"solver": "euler", "epsilon": "sbdm", "scale": 0.5}, 1, 1, "time"),
    ],
    reference=SIT,
)
def sde(
    nodes: Nodes,
    *,
    epsilon: Epsilon = "sigma",
    scale: float = 1.0,
    solver: str = "euler",
    last_step: str = "tweedie",
) -> Table:
    """The SDE dx = (velocity + ε·score) dt + √(2ε) dW, stepped in time; marginals are the path's for every ε(t) ≥ 0.

    Parameters
    ----------
    epsilon : str, number, sequence or callable
        Half the squared diffusion (SiT's w): "constant", "sbdm", "sigma", "linear", "decreasing" or
        "increasing_decreasing" of SiT, a constant, one value per step, or a function of time. Where it is
        infinite, as "sbdm" at signal 0, a step draws all its noise afresh.
    scale : float ≥ 0
        The norm κ of the named levels.
    solver : {"euler", "heun", "exponential"}
        "euler" (Euler–Maruyama) and "heun" (noise first, then Heun along the drift; two calls) are SiT's.
        "exponential" freezes the data prediction and integrates the rest exactly: the law of point masses is exact at
        any step. On spread-out data its first-order error is the larger one (measured on Gaussians), so it pays only
        where the data are close to points.
    last_step : {"tweedie", "mean", "euler"}
        How a last step to noise 0 ends: the data prediction, the drift of the SDE without noise (SiT's default) or
        the velocity alone. "exponential" always ends with the data prediction.
    """
    check_variant("sde", solver, SOLVERS, argument="solver")
    check_variant("sde", last_step, LAST_STEPS, argument="last_step")
    levels = _epsilon_at(nodes, epsilon, scale)
    if solver == "exponential":
        return multistep(nodes, _exponential_steps(nodes, levels), [1] * nodes.steps, exponential_shape)
    program = Program(nodes)
    x = program.state
    for i in range(nodes.steps):
        span = nodes.clock[i + 1] - nodes.clock[i]
        if nodes.noise[i + 1] > 0.0:
            x = _step(program, x, i, levels, solver)
        elif last_step == "tweedie" or span == 0.0:
            x, _ = data_step(program, nodes, i, x)
        else:
            level = levels(i, nodes.level(i)) if last_step == "mean" else 0.0
            x = program.let(x + _drift(program, x, nodes.level(i), span, level if np.isfinite(level) else 0.0))
    return program.finish(x, frame="none: steps in time are exact to first order only", law="weak")


def _step(program: Program, x: Linear, i: int, levels: EpsilonAt, solver: str) -> Linear:
    """One Euler–Maruyama or Heun step between nodes i and i + 1."""
    nodes = program.nodes
    start, end, span = nodes.level(i), nodes.level(i + 1), nodes.clock[i + 1] - nodes.clock[i]
    here = levels(i, start)
    if here == np.inf:
        return program.let(end.signal * program.query(x, start) + end.noise * program.noise())
    spread = float(np.sqrt(2 * here * abs(span)))
    if solver == "euler":
        moved = x + _drift(program, x, start, span, here)
        return program.let(moved + spread * program.noise() if spread else moved)
    if spread:
        program.pause(start)
        x = program.let(x + spread * program.noise())
    first = _drift(program, x, start, span, here)
    return program.let(x + 0.5 * (first + _drift(program, x + first, end, span, levels(i, end))))


def _drift(program: Program, x: Linear, level: Level, span: float, epsilon: float) -> Linear:
    """velocity·span + ε·score·|span| from one call at `x`; labels may run either way, time runs towards data."""
    velocity = program.query(x, level, "velocity")
    if epsilon == 0.0:
        return span * velocity
    on_x, on_velocity = coefficients(*level[1:5], "velocity", "score")
    pull = epsilon * abs(span)
    return (pull * on_x) * x + (span + pull * on_velocity) * velocity


def _epsilon_at(nodes: Nodes, epsilon: Epsilon, scale: float) -> EpsilonAt:
    """ε at a level of step i, finite and not negative."""
    known = _named_epsilon(epsilon, scale) if isinstance(epsilon, str) else _own_epsilon(nodes, epsilon)

    def at(i: int, level: Level) -> float:
        value = known(i, level)
        if not value >= 0 or (value == np.inf and level.signal > 0.0):
            raise ValueError(
                f"epsilon={epsilon!r} is {value:g} at time {level.clock:g} (signal {level.signal:g}, noise "
                f"{level.noise:g}), but must be finite and not negative; choose another, or begin later"
            )
        return value

    return at


def _named_epsilon(name: str, scale: float) -> EpsilonAt:
    if name not in EPSILONS:
        raise unknown_name("epsilon", name, EPSILONS)
    if not 0 <= scale < np.inf:
        raise ValueError(f"scale={scale!r} is not possible for sde; it must be finite and not negative")
    if name == "sigma":
        return lambda i, level: scale * level.noise
    if name == "sbdm":
        return lambda i, level: scale * _score_based(level)
    of_time = epsilon_by_name(name, None, scale)
    return lambda i, level: float(of_time(torch.tensor(level.clock, dtype=torch.float64)))


def _score_based(level: Level) -> float:
    """noise·Wronskian/signal, the level at which the noising process has no score (`sbdm_epsilon`)."""
    if level.signal_rate is None or level.noise_rate is None:
        raise ValueError(f"epsilon='sbdm' needs the path's rates at time {level.clock:g}; pass path=... to Nodes")
    if level.signal == 0.0:
        return float("inf")
    return level.noise * abs(level.signal_rate * level.noise - level.signal * level.noise_rate) / level.signal


def _own_epsilon(nodes: Nodes, epsilon: float | Sequence[float] | Callable[[float], float]) -> EpsilonAt:
    if callable(epsilon):
        return lambda i, level: float(epsilon(level.clock))
    values = np.atleast_1d(np.asarray(epsilon, dtype=np.float64))
    if len(values) not in (1, nodes.steps):
        raise ValueError(f"epsilon has {len(values)} values; give one, or one for each of {nodes.steps} steps")
    values = np.broadcast_to(values, (nodes.steps,))
    return lambda i, level: float(values[i])


def _exponential_steps(nodes: Nodes, levels: EpsilonAt) -> Steps:
    """Data steps that keep the share exp(−∫ ε/noise² dt) of the old noise (by Gauss–Legendre; exact in law anyway)."""
    decay = np.zeros(nodes.steps)
    noisy = np.flatnonzero(nodes.noise[1:] > 0.0)
    span = np.diff(nodes.clock)[noisy]
    inside = nodes.at_clocks((nodes.clock[noisy, None] + span[:, None] * _GAUSS).ravel()) if len(noisy) else []
    for k, i in enumerate(noisy):
        points = inside[k * len(_GAUSS) : (k + 1) * len(_GAUSS)]
        rates = [levels(int(i), level) / level.noise**2 for level in points]
        decay[i] = np.exp(-abs(span[k]) * np.dot(_GAUSS_WEIGHTS, rates))
    return decayed_steps(nodes, decay, -np.diff(nodes.lam))
