"""The path evaluated once on a grid: what every method is compiled from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from pathline.interpolants import GaussianPath

from .numerics import Array

_FAMILY_TOLERANCE = 1e-6  # schedules rounded to float32 still belong to their family
_PATH_TOLERANCE = 1e-5


class Level(NamedTuple):
    """One point of a path: x = signal·data + noise·ε (+ anchor·source).

    `time` is the label the network gets; `clock` is the time that the rates and velocities refer to.
    """

    time: float
    signal: float
    noise: float
    signal_rate: float | None = None
    noise_rate: float | None = None
    anchor: float = 0.0
    clock: float = 0.0

    @property
    def lam(self) -> float:
        """λ = log(signal/noise), half the log signal-to-noise ratio; ±inf at the ends, nan at a bridge's source."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(np.log(self.signal) - np.log(self.noise))


class Nodes:
    """N + 1 points of a path, noise end first, in float64.

    Parameters
    ----------
    signal, noise : sequences of N+1 floats ≥ 0
        Coefficients of data and noise; signal/noise must strictly increase.
    time : sequence of N+1 floats, optional
        Labels given to the network, monotone in either direction. Default: the time of `path`; without
        one, `signal` for linear schedules, `noise` for VE, the cosine path's time for VP.
    path : GaussianPath, optional
        Supplies points between nodes and rates. Without it both come from the family the nodes belong to:
        VP (signal² + noise² = 1), linear (signal + noise = 1) or VE (signal = 1).
    signal_rate, noise_rate : sequences of N+1 floats, optional
        d/d(time) of the coefficients, both or none; needed only by velocity networks and methods that step in time.
        Without them a velocity is d x/d(time of `path`), whatever the labels are; for linear nodes without a path it is
        data − noise; for VE nodes d x/d(time).
    anchor : sequence of N+1 floats, optional
        Coefficients of the source of a bridge.

    Raises
    ------
    ValueError
        Unequal lengths, fewer than two nodes, negative or non-finite entries, levels out of order, nodes
        that do not lie on `path`.
    """

    def __init__(
        self,
        signal: Sequence[float] | Array,
        noise: Sequence[float] | Array,
        time: Sequence[float] | Array | None = None,
        path: GaussianPath | None = None,
        signal_rate: Sequence[float] | Array | None = None,
        noise_rate: Sequence[float] | Array | None = None,
        anchor: Sequence[float] | Array | None = None,
    ) -> None:
        self.signal = _column("signal", signal)
        self.noise = _column("noise", noise, len(self.signal))
        self.anchor = _column("anchor", anchor, len(self.signal)) if anchor is not None else np.zeros_like(self.signal)
        self.path = path
        self._check_coefficients()
        with np.errstate(divide="ignore"):
            self.lam: Array = np.log(self.signal) - np.log(self.noise)
        self._check_levels()
        self.family = _family(self.signal, self.noise) if path is None else _path_family(path)
        self._path_time = self._locate()
        self.time = _column("time", time, len(self.signal)) if time is not None else self._default_time()
        self._check_time()
        self._given_rates = signal_rate is not None or noise_rate is not None
        self.clock, self.signal_rate, self.noise_rate = self._rates(signal_rate, noise_rate)

    @property
    def steps(self) -> int:
        """Number of steps N (one less than the number of nodes)."""
        return len(self.signal) - 1

    @property
    def ends_clean(self) -> bool:
        """True where the last node has noise 0, so that the last step must return the data prediction."""
        return float(self.noise[-1]) == 0.0

    @property
    def starts_pure(self) -> bool:
        """True where the first node has signal 0 (λ = −∞), as a flow path at t = 0."""
        return float(self.signal[0]) == 0.0

    def level(self, index: int) -> Level:
        """Node `index` as a Level; rates are None where they are unknown or infinite."""
        rates = (self.signal_rate, self.noise_rate)
        signal_rate, noise_rate = (float(r[index]) if r is not None and np.isfinite(r[index]) else None for r in rates)
        return Level(
            float(self.time[index]),
            float(self.signal[index]),
            float(self.noise[index]),
            signal_rate,
            noise_rate,
            float(self.anchor[index]),
            float(self.clock[index]),
        )

    @property
    def is_bridge(self) -> bool:
        """True where a source image takes part: some anchor coefficient is not 0."""
        return bool(self.anchor.any())

    def between(self, lam: float) -> Level:
        """The point of the path at half log-SNR `lam`, for stages between nodes; errors as `between_all`."""
        return self.between_all(np.array([lam]))[0]

    def between_all(self, lams: Array) -> list[Level]:
        """As `between` for many stages at once, which costs little more than one.

        Raises
        ------
        ValueError
            The nodes belong to no known family and no path was given, or a bridge is asked for.
        """
        self._refuse_bridge()
        if self.path is not None:
            return self._on_path(times_at(self.path, lams))
        if self.family is None:
            raise ValueError(
                "points between nodes are needed, but the nodes are neither VP (signal² + noise² = 1), linear "
                "(signal + noise = 1) nor VE (signal = 1); pass path=..."
            )
        rate = 1.0 if self.family == "linear" and not self._given_rates else None
        points = [(float(lam), *_family_point(self.family, float(lam))) for lam in lams]
        return [
            Level(self._interpolated_label(lam), signal, noise, rate, rate and -rate, clock=signal)
            for lam, signal, noise in points
        ]

    def at_clock(self, clock: float) -> Level:
        """The point of the path at a time between two nodes' `clock`, for stages of methods that step in time.

        Raises
        ------
        ValueError
            The nodes have no path and are not linear, so that nothing is known between them, or belong to a bridge.
        """
        return self.at_clocks(np.array([clock]))[0]

    def at_clocks(self, clocks: Array) -> list[Level]:
        """As `at_clock` for many times at once."""
        self._refuse_bridge()
        if self.path is not None:
            return self._on_path(self._path_time_of_label(clocks) if self._given_rates else clocks)
        if self.family != "linear" or self._given_rates:
            raise ValueError("points between nodes at given times need the path; pass path=... to Nodes")
        return self.between_all(np.log(clocks) - np.log1p(-clocks))

    def _refuse_bridge(self) -> None:
        if self.is_bridge:
            raise ValueError("points between the nodes of a bridge are not defined; use a method without inner stages")

    def _on_path(self, where: Array) -> list[Level]:
        """The points at times of `path`."""
        assert self.path is not None
        columns = points_at(self.path, where)
        labels = self._label(where)
        clocks = labels if self._given_rates else where
        unit = self._label_slope() if self._given_rates else 1.0  # given rates are per unit of the label
        return [
            Level(
                float(label),
                float(signal),
                float(noise),
                None if unit is None else float(signal_rate) / unit,
                None if unit is None else float(noise_rate) / unit,
                clock=float(clock),
            )
            for label, clock, signal, noise, signal_rate, noise_rate in zip(labels, clocks, *columns, strict=True)
        ]

    def part(self, start: int, stop: int | None = None) -> Nodes:
        """Nodes start..stop (inclusive of both ends), for runs that begin late or end early."""
        window = slice(start, None if stop is None else stop + 1)

        def cut(values: Array | None) -> Array | None:
            return None if values is None or not self._given_rates else values[window]

        return Nodes(
            self.signal[window],
            self.noise[window],
            self.time[window],
            self.path,
            cut(self.signal_rate),
            cut(self.noise_rate),
            self.anchor[window] if self.is_bridge else None,
        )

    def config(self) -> dict[str, Any]:
        """The nodes as JSON-ready lists (the path is not included)."""
        config: dict[str, Any] = {
            "signal": self.signal.tolist(),
            "noise": self.noise.tolist(),
            "time": self.time.tolist(),
        }
        if self.is_bridge:
            config["anchor"] = self.anchor.tolist()
        return config

    def __repr__(self) -> str:
        family = self.path.name if self.path is not None else self.family or "unknown family"
        return f"Nodes({self.steps} steps, {family}, noise {self.noise[0]:.4g} → {self.noise[-1]:.4g})"

    # --- checks and defaults ----------------------------------------------------------------------------

    def _check_coefficients(self) -> None:
        if len(self.signal) < 2:
            raise ValueError(f"signal has {len(self.signal)} entries; at least 2 nodes (1 step) are needed")
        for name, values in (("signal", self.signal), ("noise", self.noise)):
            if (values < 0).any():
                raise ValueError(f"{name}[{int(np.argmax(values < 0))}] is negative; coefficients must be ≥ 0")
        both = (self.signal == 0) & (self.noise == 0)
        if both.any():
            raise ValueError(f"signal and noise are both 0 at node {int(np.argmax(both))}")

    def _check_levels(self) -> None:
        stuck = ~(np.diff(self.lam) > 0)
        if stuck.any():
            i = int(np.argmax(stuck))
            raise ValueError(
                f"nodes must go from noise to data with signal/noise strictly increasing, but it goes from "
                f"{_ratio(self, i)} at node {i} to {_ratio(self, i + 1)} at node {i + 1}"
            )

    def _check_time(self) -> None:
        change = np.diff(self.time)
        if not ((change >= 0).all() or (change <= 0).all()):
            i = int(np.argmax(change * np.sign(change[np.argmax(np.abs(change))]) < 0))
            raise ValueError(
                f"time must be monotone, but turns at node {i + 1}: {self.time[i]:g} → {self.time[i + 1]:g}"
            )

    def _locate(self) -> Array | None:
        if self.path is None:
            return None
        where = times_at(self.path, self.lam)
        signal, noise, _, _ = points_at(self.path, where)
        apart = np.abs(signal - self.signal) + np.abs(noise - self.noise)
        apart[self.noise == 0] = 0.0  # a clean end may be added to a path that stops at its smallest noise
        scale = np.maximum(1.0, self.noise)
        if (apart > _PATH_TOLERANCE * scale).any():
            i = int(np.argmax(apart / scale))
            raise ValueError(
                f"node {i} (signal {self.signal[i]:.6g}, noise {self.noise[i]:.6g}) does not lie on path "
                f"{self.path.name!r}, which has "
                f"signal {signal[i]:.6g}, noise {noise[i]:.6g} there"
            )
        return where

    def _default_time(self) -> Array:
        if self._path_time is not None:
            return self._path_time
        if self.family == "linear":
            return self.signal.copy()
        if self.family == "ve":
            return self.noise.copy()
        return np.asarray(np.arctan2(self.signal, self.noise) * (2 / np.pi))

    def _rates(
        self, signal_rate: Sequence[float] | Array | None, noise_rate: Sequence[float] | Array | None
    ) -> tuple[Array, Array | None, Array | None]:
        """(clock, signal rate, noise rate): as given, else of the path, else of the family."""
        if self._given_rates:
            if signal_rate is None or noise_rate is None:
                raise ValueError("signal_rate and noise_rate belong together; give both or none")
            rates = [
                _column(n, r, len(self.signal)) for n, r in (("signal_rate", signal_rate), ("noise_rate", noise_rate))
            ]
            self._check_direction(*rates)
            return self.time, rates[0], rates[1]
        if self.path is not None and self._path_time is not None:
            _, _, *slopes = points_at(self.path, self._path_time)
            return self._path_time, slopes[0], slopes[1]
        if self.family == "linear":
            return self.signal, np.ones_like(self.signal), -np.ones_like(self.signal)
        slope = _slope(self.noise, self.time)
        if self.family == "ve" and slope is not None:
            return self.time, np.zeros_like(self.noise), np.full_like(self.noise, 1 / slope)
        return self.time, None, None

    def _check_direction(self, signal_rate: Array, noise_rate: Array) -> None:
        """Rates must make signal/noise grow the way the labels run."""
        growth = (signal_rate * self.noise - self.signal * noise_rate) * np.sign(self.time[-1] - self.time[0])
        wrong = growth[:-1] < 0
        if wrong.any():
            i = int(np.argmax(wrong))
            raise ValueError(
                f"signal_rate[{i}]={signal_rate[i]:g} and noise_rate[{i}]={noise_rate[i]:g} make signal/noise fall "
                f"towards data; they are derivatives by `time`, which runs {self.time[0]:g} → {self.time[-1]:g}"
            )

    def _label_slope(self) -> float | None:
        """d(label)/d(path time) where labels are an affine function of the path's time, else None."""
        assert self._path_time is not None
        inner = self.noise > 0  # the clean end may lie beyond the path
        return _slope(self._path_time[inner], self.time[inner]) if inner.sum() > 1 else None

    def _path_time_of_label(self, labels: Array) -> Array:
        assert self._path_time is not None
        slope = self._label_slope()
        if slope is None:
            raise ValueError("points between nodes at given times need labels that are affine in the path's time")
        return np.asarray(self._path_time[0] + (labels - self.time[0]) / slope)

    def _label(self, path_times: Array) -> Array:
        assert self._path_time is not None
        slope = self._label_slope()
        if slope is not None:
            return np.asarray(self.time[0] + slope * (path_times - self._path_time[0]))
        return np.interp(path_times, self._path_time, self.time)

    def _interpolated_label(self, lam: float) -> float:
        if self.family == "linear" and (slope := _slope(self.signal, self.time)) is not None:
            return float(self.time[0] + slope * (_family_point("linear", lam)[0] - self.signal[0]))
        if self.family == "ve" and (slope := _slope(self.noise, self.time)) is not None:
            return float(self.time[0] + slope * (np.exp(-lam) - self.noise[0]))
        finite = np.isfinite(self.lam)
        return float(np.interp(lam, self.lam[finite], self.time[finite]))


def points_at(path: GaussianPath, times: Array) -> tuple[Array, Array, Array, Array]:
    """Signal, noise and their rates at `times`, as float64 arrays."""
    signal, noise, signal_rate, noise_rate = (np.asarray(c) for c in path.at(torch.from_numpy(times)))
    return signal, noise, signal_rate, noise_rate


def times_at(path: GaussianPath, lam: Array) -> Array:
    """Path times of half log-SNRs (±inf are the ends), as a float64 array."""
    return np.asarray(path.time_at(torch.from_numpy(np.asarray(lam, dtype=np.float64))))


def _column(name: str, values: Sequence[float] | Array, length: int | None = None) -> Array:
    column = np.array(values, dtype=np.float64)
    if column.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, got shape {column.shape}")
    if length is not None and len(column) != length:
        raise ValueError(f"{name} has {len(column)} entries, but signal has {length}")
    if name not in ("signal_rate", "noise_rate") and not np.isfinite(column).all():
        raise ValueError(f"{name}[{int(np.argmin(np.isfinite(column)))}] is not finite")
    return column


def _ratio(nodes: Nodes, index: int) -> str:
    return f"{nodes.signal[index]:.6g}/{nodes.noise[index]:.6g}"


def _family(signal: Array, noise: Array) -> str | None:
    if np.allclose(signal, 1.0, rtol=0, atol=_FAMILY_TOLERANCE):
        return "ve"
    if np.allclose(signal + noise, 1.0, rtol=0, atol=_FAMILY_TOLERANCE):
        return "linear"
    if np.allclose(signal**2 + noise**2, 1.0, rtol=0, atol=_FAMILY_TOLERANCE):
        return "vp"
    return None


def _path_family(path: GaussianPath) -> str | None:
    return "linear" if path.constant_rates else None


def _family_point(family: str, lam: float) -> tuple[float, float]:
    if family == "ve":
        return 1.0, float(np.exp(-lam))
    power = 1.0 if family == "linear" else 2.0
    signal = float(np.exp(-np.logaddexp(0.0, -power * lam) / power))
    noise = float(np.exp(-np.logaddexp(0.0, power * lam) / power))
    return signal, noise


def _slope(x: Array, y: Array) -> float | None:
    """Slope of y over x where y is affine in x to rounding, else None."""
    span = x[-1] - x[0]
    if span == 0 or y[-1] == y[0]:
        return None
    slope = (y[-1] - y[0]) / span
    straight = np.abs(y[0] + slope * (x - x[0]) - y).max() <= 1e-7 * max(1.0, float(np.abs(y).max()))
    return float(slope) if straight else None
