"""Nodes of bridges: grids on a bridge, and the levels that published bridge models are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from pathline.interpolants import StochasticInterpolant, check_name

from .nodes import Level, Nodes
from .numerics import Array

BRIDGE_GRIDS = ("time", "karras", "logsnr")


class BridgePoint(NamedTuple):
    """A level of a bridge with d/dtime of its coefficients; the last is noise·d(noise)/dtime, finite at the ends."""

    level: Level
    anchor_rate: float
    signal_rate: float
    noise_product_rate: float


class BridgeNodes(Nodes):
    """Points of a bridge x_t = anchor·source + signal·data + noise·z, source end first.

    Parameters
    ----------
    bridge : StochasticInterpolant
        Gives base (anchor), data (signal) and latent (noise) coefficients; time 0 is the source, 1 the data.
    times : sequence of N+1 floats in (0, 1]
        Increasing; at time 0 a bridge has neither signal nor noise, so the source itself is not a node.
    labels : sequence of N+1 floats, optional
        What the network is given; default the times.
    """

    def __init__(
        self,
        bridge: StochasticInterpolant,
        times: Sequence[float] | Array,
        labels: Sequence[float] | Array | None = None,
    ) -> None:
        where = np.asarray(times, dtype=np.float64)
        if where.ndim != 1 or not (np.diff(where) > 0).all() or where[0] <= 0 or where[-1] > 1:
            raise ValueError(f"times of a bridge must increase within (0, 1], got {where.tolist()}")
        point = bridge.at(torch.from_numpy(where))
        super().__init__(
            np.asarray(point.data), np.asarray(point.latent), where if labels is None else labels,
            anchor=np.asarray(point.base),
        )  # fmt: skip
        self.bridge = bridge
        self.clock = where

    def points(self, times: Array) -> list[BridgePoint]:
        """Points of the bridge at `times`, with their rates, evaluated in one go."""
        point = self.bridge.at(torch.from_numpy(np.asarray(times)))
        labels = np.interp(times, self.clock, self.time)
        columns = (np.asarray(column).tolist() for column in (*point[:3], *point[3:5], point.gamma_gamma_rate))
        return [
            BridgePoint(Level(float(label), signal, noise, None, None, anchor, float(time)), *rates)
            for time, label, anchor, signal, noise, *rates in zip(times, labels, *columns, strict=True)
        ]

    def part(self, start: int, stop: int | None = None) -> Nodes:
        """Nodes start..stop (inclusive of both ends)."""
        window = slice(start, None if stop is None else stop + 1)
        return BridgeNodes(self.bridge, self.clock[window], self.time[window])


def bridge_nodes(
    bridge: StochasticInterpolant,
    grid: str | Sequence[float] | Array = "time",
    steps: int | None = None,
    *,
    margin: float = 1e-3,
    end: float = 1e-4,
    final: str = "zero",
    rho: float = 7.0,
) -> BridgeNodes:
    """Nodes of a bridge on a grid.

    Parameters
    ----------
    bridge : StochasticInterpolant
    grid : {"time", "karras", "logsnr"} or increasing times
        Uniform in time, in time-to-data^{1/rho}, or in log(signal/noise).
    steps : int ≥ 1
        Number of steps; not used with explicit times.
    margin : float in (0, 1)
        Time of the first node: bridges begin just after their source, where the noise is 0.
    end : float in (0, 1)
        Time to data of the last noisy node of "karras" and "logsnr".
    final : {"zero", "path"}
        "zero" ends at the data with a last step from the last noisy node, "path" stops at time 1 − end.

    Raises
    ------
    ValueError
        Unknown grid, or a number out of range.
    """
    if not isinstance(grid, str):
        return BridgeNodes(bridge, grid)
    check_name("grid of a bridge", grid, BRIDGE_GRIDS)
    check_name("final", final, ("zero", "path"))
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps={steps!r} is not possible; at least 1 step is needed")
    if not (0 < margin < 1 and 0 < end < 1 - margin and rho > 0):
        raise ValueError(
            f"margin={margin!r}, end={end!r} and rho={rho!r} need 0 < margin, 0 < end, margin + end < 1 and rho > 0"
        )
    clean = final == "zero"
    levels = steps + (not clean)
    if grid == "time":
        times = np.linspace(margin, 1.0 if clean else 1.0 - end, steps + 1)
        return BridgeNodes(bridge, times)
    if grid == "karras":
        times = 1 - np.linspace((1 - margin) ** (1 / rho), end ** (1 / rho), levels) ** rho
    else:
        times = _times_at(bridge, margin, 1 - end, levels)
    return BridgeNodes(bridge, np.append(times, 1.0) if clean else times)


def _times_at(bridge: StochasticInterpolant, low: float, high: float, count: int) -> Array:
    """Times uniform in λ = log(signal/noise), by bisection."""

    def lam(times: Array) -> Array:
        t = torch.from_numpy(times)
        return np.asarray((bridge.ends.data(t) / bridge.latent.value(t)).log())

    first, last = lam(np.array([low, high]))
    goal = np.linspace(first, last, count)
    below, above = np.full(count, low), np.full(count, high)
    for _ in range(60):
        middle = 0.5 * (below + above)
        small = lam(middle) < goal
        below, above = np.where(small, middle, below), np.where(small, above, middle)
    times = 0.5 * (below + above)
    times[0], times[-1] = (low, high) if count > 1 else (low, low)
    return times


def i2sb_nodes(steps: int, *, train_steps: int = 1000, beta_min: float = 0.1, beta_max: float = 0.3) -> Nodes:
    """The levels of I²SB (Liu et al. 2023): √β linear and mirrored in its middle; labels are training indices.

    Parameters
    ----------
    steps : int ≥ 1
        Nodes after the source (index train_steps − 1), evenly spaced down to index 0; N steps cost N calls.
    train_steps, beta_min, beta_max
        As the model was trained; β runs from beta_min/train_steps to beta_max/train_steps.
    """
    _check_positive(beta_min=beta_min, beta_max=beta_max)
    index = np.round(np.linspace(train_steps - 1, 0, _checked(steps, train_steps - 1) + 1)).astype(int)[1:]
    root = np.linspace((beta_min / train_steps) ** 0.5, (beta_max / train_steps) ** 0.5, train_steps)
    half = root[: train_steps // 2] ** 2
    variance = np.cumsum(np.concatenate([half, half[::-1]]))
    anchor = (variance / variance[-1])[index]
    return Nodes(1 - anchor, np.sqrt(variance[-1] * anchor * (1 - anchor)), index, anchor=anchor)


def bbdm_nodes(steps: int = 200, *, train_steps: int = 1000, max_variance: float = 1.0) -> Nodes:
    """The levels of BBDM (Li et al. 2023): a Brownian bridge of variance 2·max_variance·m(1 − m), m from 0.999 down.

    Parameters
    ----------
    steps : int ≥ 3
        Calls: evenly spaced training indices from train_steps − 1, then 1 and 0, whose call gives the data.
    train_steps, max_variance
        As the model was trained.
    """
    _check_positive(max_variance=max_variance)
    if _checked(steps, train_steps) < 3:
        raise ValueError(
            f"steps={steps!r} is not possible for bbdm_nodes; its last two calls are at the data, so at least 3"
        )
    stride = (train_steps - 1) / (steps - 2)
    index = np.append(np.arange(train_steps - 1, 1, -stride).astype(int)[: steps - 2], [1, 0])
    anchor = np.append(np.linspace(0.001, 0.999, train_steps)[index], 0.0)
    noise = np.sqrt(2 * max_variance * anchor * (1 - anchor))
    return Nodes(1 - anchor, noise, np.append(index, 0), anchor=anchor)


def resshift_nodes(
    steps: int = 15, *, kappa: float = 2.0, power: float = 0.3, min_noise: float = 0.04, end: float = 0.99
) -> Nodes:
    """The levels of ResShift (Yue et al. 2023): x = data + η·(source − data) + κ√η·z with √η geometric in the steps.

    Parameters
    ----------
    steps : int ≥ 1
        Calls; labels are steps − 1, …, 0. Start from source + κ·end·z.
    kappa, power, min_noise, end
        As the model was trained: √η runs from min(min_noise/κ, min_noise) to `end` along ((n − 1)/(steps − 1))^power.
    """
    _check_positive(kappa=kappa, power=power, min_noise=min_noise, end=end)
    low = min(min_noise / kappa, min_noise)
    if not low < end < 1:
        raise ValueError(f"end={end!r} is not possible; it must lie between the smallest √η, {low:g}, and 1")
    place = np.linspace(1.0, 0.0, _checked(steps, None)) ** power if steps != 1 else np.ones(1)
    anchor = np.append((low * (end / low) ** place) ** 2, 0.0)
    return Nodes(1 - anchor, kappa * np.sqrt(anchor), np.append(np.arange(steps)[::-1], 0), anchor=anchor)


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name}={value!r} is not possible; it must be above 0")


def _checked(steps: int, most: int | None) -> int:
    if not isinstance(steps, int) or steps < 1 or (most is not None and steps > most):
        allowed = "at least 1" if most is None else f"1 to {most}, as the model was trained on so many levels"
        raise ValueError(f"steps={steps!r} is not possible; allowed: {allowed}")
    return steps
