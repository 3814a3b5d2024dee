"""Two-stage methods with ancestral noise: DPM2 (KDPM2), DPM++ 2S ancestral and DPM++ SDE of k-diffusion."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np

from ..nodes import Level, Nodes
from ..program import Linear, Program
from ..registry import Case, register
from ..table import Table
from .dpm import K_DIFFUSION
from .multistep import check_range
from .runge_kutta import EDM


def split(start: Level, end: Level, eta: float) -> tuple[float, float]:
    """(noise reached deterministically, fresh noise) of an ancestral step; both in the units of `end`.

    fresh = η·noise'·√(1 − e^{−2h}), and the two squares sum to noise'².
    """
    shrink = end.noise * start.signal / (end.signal * start.noise)
    fresh = min(end.noise, eta * end.noise * sqrt(1.0 - shrink**2))
    return sqrt(end.noise**2 - fresh**2), fresh


def _toward(x: Linear, data: Linear, start: Level, end: Level, noise: float) -> Linear:
    """First-order data step from `start` to signal' and the given noise."""
    carry = noise / start.noise
    return carry * x + (end.signal - carry * start.signal) * data


def _with_noise(program: Program, x: Linear, fresh: float) -> Linear:
    return program.let(x + fresh * program.noise() if fresh > 0 else x)


def _stages(nodes: Nodes, reached: Sequence[float], r: float) -> list[Level | None]:
    """For each step the stage at fraction r in λ between its start and the noise reached; None where infinite."""
    ratios = [noise / end for noise, end in zip(reached, nodes.signal[1:], strict=True)]
    finite = [i for i, ratio in enumerate(ratios) if nodes.signal[i] > 0.0 and ratio > 0.0]
    starts, ends = nodes.lam[finite], -np.log([ratios[i] for i in finite])
    found = dict(zip(finite, nodes.between_all(starts + r * (ends - starts)), strict=True))
    return [found.get(i) for i in range(nodes.steps)]


def _splits(nodes: Nodes, eta: float) -> list[tuple[float, float]]:
    return [split(nodes.level(i), nodes.level(i + 1), eta) for i in range(nodes.steps)]


@register(
    "dpm2",
    cases=[
        Case({}, 2, 2, "noise_ratio"),
        Case({"r": 0.7}, 2, 2, "noise_ratio"),
        Case({"eta": 1.0}, 2, 2, "noise_ratio"),
    ],
    reference=EDM,
)
def dpm2(nodes: Nodes, *, r: float = 0.5, eta: float = 0.0) -> Table:
    """DPM2 (KDPM2): a second-order step in noise/signal with its stage at a geometric mean of the two ends.

    Two calls per step, one where the step starts at signal 0 or ends at noise 0.

    Parameters
    ----------
    r : float in (0, 1]
        Position of the stage in λ; ½ is the midpoint rule of k-diffusion and diffusers.
    eta : float in [0, 1]
        Ancestral noise; the deterministic part then stops short, as in k-diffusion's DPM2 ancestral.
    """
    if not 0 < r <= 1:
        raise ValueError(f"r={r!r} is not possible for dpm2; allowed: above 0, at most 1")
    check_range("dpm2", "eta", eta, 0, 1)
    program = Program(nodes)
    x = program.state
    splits = _splits(nodes, eta)
    for i, stage in enumerate(_stages(nodes, [down for down, _ in splits], r)):
        start, end = nodes.level(i), nodes.level(i + 1)
        down, fresh = splits[i]
        if stage is None:
            x = _with_noise(program, _toward(x, program.query(x, i), start, end, down), fresh)
            continue
        first = program.query(x, i, "noise")
        carry = stage.signal / start.signal
        second = program.query(carry * x + (stage.noise - carry * start.noise) * first, stage, "noise")
        carry = end.signal / start.signal
        direction = (1 - 1 / (2 * r)) * first + 1 / (2 * r) * second
        x = _with_noise(program, carry * x + (down - carry * start.noise) * direction, fresh)
    return program.finish(x)


@register("dpm++-2s-ancestral", cases=[Case({}, 2, 2), Case({"eta": 0.0}, 2, 2)], reference=K_DIFFUSION)
def dpmpp_2s_ancestral(nodes: Nodes, *, eta: float = 1.0) -> Table:
    """DPM++ 2S ancestral: the singlestep midpoint rule in λ to a lower level, then noise. Two calls per step.

    Parameters
    ----------
    eta : float ≥ 0
        0 is DPM++ 2S with the midpoint rule.
    """
    check_range("dpm++-2s-ancestral", "eta", eta, 0)
    program = Program(nodes)
    x = program.state
    splits = _splits(nodes, eta)
    for i, stage in enumerate(_stages(nodes, [down for down, _ in splits], 0.5)):
        start, end = nodes.level(i), nodes.level(i + 1)
        down, fresh = splits[i]
        data = program.query(x, i)
        if stage is not None:
            data = program.query(_toward(x, data, start, stage, stage.noise), stage)
        x = _with_noise(program, _toward(x, data, start, end, down), fresh)
    return program.finish(x)


@register("dpm++-sde-single", cases=[Case({}, 1, 1), Case({"eta": 0.0}, 2, 2)], reference=K_DIFFUSION)
def dpmpp_sde_single(nodes: Nodes, *, eta: float = 1.0, r: float = 0.5) -> Table:
    """DPM++ SDE of k-diffusion: a stage with its own ancestral noise, then a step with fresh noise. Two calls per step.

    Parameters
    ----------
    eta : float ≥ 0
    r : float in (0, 1]
        Position of the stage in λ.
    """
    check_range("dpm++-sde-single", "eta", eta, 0)
    if not 0 < r <= 1:
        raise ValueError(f"r={r!r} is not possible for dpm++-sde-single; allowed: above 0, at most 1")
    program = Program(nodes)
    x = program.state
    for i, stage in enumerate(_stages(nodes, nodes.noise[1:].tolist(), r)):
        start, end = nodes.level(i), nodes.level(i + 1)
        data = program.query(x, i)
        if stage is not None:
            down, fresh = split(start, stage, eta)
            inner = program.query(_with_noise(program, _toward(x, data, start, stage, down), fresh), stage)
            data = (1 - 1 / (2 * r)) * data + 1 / (2 * r) * inner
        down, fresh = split(start, end, eta)
        x = _with_noise(program, _toward(x, data, start, end, down), fresh)
    return program.finish(x)
