"""What the zoo page shows of a method: its cost, its stability and its error per network evaluation."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathline.interpolants import DiffusionBridge, EDMPath, GaussianMixture, LinearPath
from pathline.samplers import (
    MethodInfo,
    Nodes,
    Result,
    Table,
    adaptive_info,
    bridge_nodes,
    build_table,
    make_nodes,
    method_info,
    plan,
    run,
    sample,
)
from pathline.samplers.analysis import Stability, stability

from ..testbeds import make_bed
from ..truth import dense_times

BUDGETS = (3, 4, 5, 6, 8, 10, 14, 20, 28, 40)
TOLERANCES = (0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 1e-4)
"""rtol of the adaptive methods; atol is a tenth of it."""
GRID = "logsnr"
STARTS = 64
DRAWS = 1024
EXACT_DRAWS = 2048
SLOPE = 0.5
"""The bridge bed: data = SLOPE·source + a draw of the mixture."""
_TRUTH_STEPS = 400
_SIZES = (12, 24)

Curve = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Entry:
    """One method as the page shows it.

    Attributes
    ----------
    info : MethodInfo
    calls : network evaluations as a function of the number of steps N, in words
    stochastic : bool
    optional_noise : bool
        True where some declared configuration differs in that.
    registers : state-sized tensors alive at once
    region : Stability or None
    no_region : why there is no stability function ("" where there is one)
    curve : ((evaluations, error), ...)
    """

    info: MethodInfo
    calls: str
    stochastic: bool
    optional_noise: bool
    registers: int
    region: Stability | None
    no_region: str
    curve: Curve

    @property
    def bridge(self) -> bool:
        """True for methods of bridges, which have another bed."""
        return is_bridge(self.info)

    @property
    def kind(self) -> str:
        """Deterministic or stochastic, by default and by option."""
        words = ("stochastic", "deterministic")
        default, other = words if self.stochastic else words[::-1]
        return f"{default}, {other} by option" if self.optional_noise else default

    @property
    def lawful(self) -> bool:
        """True where the error is a distance of laws, False where it is one to the converged end of the same noise."""
        return self.stochastic or self.bridge


def is_bridge(info: MethodInfo) -> bool:
    """True where a source takes part."""
    return "bridge" in info.requires


def measure(name: str) -> Entry:
    """Everything the page shows of a registered method, in its default configuration."""
    info = method_info(name)
    small, large = (_compiled(info, steps) for steps in _SIZES)
    region, why = _region(info)
    stochastic = large.stochastic
    optional = any(_compiled(info, _SIZES[0], **case.options).stochastic != stochastic for case in info.cases)
    curves = bridge_curve if is_bridge(info) else law_curve if stochastic else error_curve
    return Entry(info, _calls(small, large), stochastic, optional, large.registers, region, why, curves(name))


def family(info: MethodInfo) -> str:
    """What the module of a method says it holds; a preset belongs with the method it presets."""
    base = re.search(r"This is `([^`]+)`", info.build.__doc__ or "")
    build = method_info(base[1]).build if base else info.build
    return (sys.modules[build.__module__].__doc__ or build.__module__).strip().split("\n", 1)[0].rstrip(".")


def _compiled(info: MethodInfo, steps: int, **options: Any) -> Table:
    nodes = _bridge(steps) if is_bridge(info) else make_nodes(LinearPath(), GRID, steps)
    return build_table(info.name, nodes, **options)


def _calls(small: Table, large: Table) -> str:
    """Evaluations of N steps, from two tables."""
    (first, second), (low, high) = _SIZES, (small.evaluations, large.evaluations)
    slope = (high - low) / (second - first)
    rest = low - slope * first
    if slope != round(slope):
        return f"{slope:g} per step"
    times = "N" if slope == 1 else f"{slope:g}N"
    return times + (f" {'+' if rest > 0 else '−'} {abs(rest):g}" if rest else "")


def _region(info: MethodInfo) -> tuple[Stability | None, str]:
    try:
        return stability(info.name), ""
    except ValueError as error:
        return None, str(error)


# --- deterministic methods: distance to the converged end of the same start -------------------------------------


@cache
def _starts_and_ends() -> tuple[Tensor, Tensor]:
    """Starts of the mixture bed and where the exact flow carries them."""
    path, target = LinearPath(), _mixture()
    start = path.prior((STARTS, *target.sample(1).shape[1:]), torch.Generator().manual_seed(3), dtype=torch.float64)
    times = dense_times(path, _TRUTH_STEPS)
    ends = sample(target.as_model(path, "data"), start, path=path, method="unipc", grid=times)
    assert isinstance(ends, Tensor)
    return start, ends


@cache
def _mixture() -> GaussianMixture:
    target = make_bed("mixture").target
    assert isinstance(target, GaussianMixture)
    return target


@cache
def error_curve(name: str) -> Curve:
    """RMSE per value to the converged end, for every budget the method can use."""
    path, (start, ends) = LinearPath(), _starts_and_ends()
    model = _mixture().as_model(path, "data")

    def error(table: Table) -> float:
        result = run(table, model, start, prediction="data")
        assert isinstance(result, Tensor)
        return float((result - ends).square().mean().sqrt())

    return _over_budgets(name, error)


@cache
def adaptive_curve(name: str) -> Curve:
    """The same for a deterministic adaptive method, over tolerances."""
    path, (start, ends) = LinearPath(), _starts_and_ends()
    points = []
    for rtol in TOLERANCES:
        result = sample(
            _mixture().as_model(path, "data"), start, path=path, method=name, rtol=rtol, atol=0.1 * rtol,
            prediction="data", grid=(0.0, 1.0), full=True,
        )  # fmt: skip
        assert isinstance(result, Result)
        points.append((int(result.evaluations), float((result.sample - ends).square().mean().sqrt())))
    return tuple(sorted(points))


def measurable(name: str) -> bool:
    """True for adaptive methods whose error can be measured against the flow."""
    return not adaptive_info(name).stochastic


def _over_budgets(name: str, error: Callable[[Table], float]) -> Curve:
    points: dict[int, float] = {}
    for budget in BUDGETS:
        try:
            table = plan(LinearPath(), name, nfe=budget, grid=GRID)
        except ValueError:  # one step costs more
            continue
        if table.evaluations not in points:
            points[table.evaluations] = error(table)
    return tuple(sorted(points.items()))


# --- laws: stochastic methods and bridges ------------------------------------------------------------------------


@cache
def law_curve(name: str) -> Curve:
    """Energy distance between samples and the data law, for every budget the method can use."""
    path = LinearPath()
    start = path.prior((DRAWS, *_mixture().sample(1).shape[1:]), torch.Generator().manual_seed(5), dtype=torch.float64)
    model = _mixture().as_model(path, "data")

    def error(table: Table) -> float:
        result = run(table, model, start, prediction="data", seed=5)
        assert isinstance(result, Tensor)
        return energy_distance(result, _exact())

    return _over_budgets(name, error)


@cache
def _exact() -> Tensor:
    return _mixture().sample(EXACT_DRAWS, torch.Generator().manual_seed(9))


@cache
def law_floor() -> float:
    """Energy distance of exact draws, as many as are sampled: the smallest a curve can show."""
    return energy_distance(_mixture().sample(DRAWS, torch.Generator().manual_seed(10)), _exact())


def energy_distance(x: Tensor, y: Tensor) -> float:
    """√(2E|X − Y| − E|X − X'| − E|Y − Y'|) over all pairs, shapes (n, ...) and (m, ...); never 0 for finite draws."""
    first, second = x.flatten(1), y.flatten(1)
    square = 2 * torch.cdist(first, second).mean() - torch.cdist(first, first).mean() - _own_distance(second)
    return math.sqrt(max(float(square), 0.0)) if bool(torch.isfinite(first).all()) else math.inf


_OWN: dict[int, float] = {}


def _own_distance(y: Tensor) -> float:
    key = y.data_ptr()
    if key not in _OWN:
        _OWN[key] = float(torch.cdist(y, y).mean())
    return _OWN[key]


@cache
def _bridge(steps: int) -> Nodes:
    """A Brownian bridge of variance up to 1/4, uniform in log(signal/noise) from t = 1e-3 to 1 − 1e-4.

    With share s = (1 − t)² of the source, log(signal/noise) = log((1 − s)/s)/2.
    """
    low, high = (0.5 * math.log((1 - s) / s) for s in ((1 - 1e-3) ** 2, 1e-4**2))
    share = 1.0 / (1.0 + np.exp(2.0 * np.linspace(low, high, steps)))
    times = np.append(1.0 - np.sqrt(share), 1.0)
    return bridge_nodes(DiffusionBridge(EDMPath(sigma_max=1.0, rho=1.0)), times)


@cache
def bridge_curve(name: str) -> Curve:
    """Energy distance of what is drawn given the source, from exact states where the method starts."""
    generator = torch.Generator().manual_seed(7)
    target = _mixture()
    rest = target.sample(DRAWS, generator)
    source, noise = (torch.randn(rest.shape, generator=generator, dtype=torch.float64) for _ in range(2))
    points: dict[int, float] = {}
    for budget in BUDGETS:
        table = _largest(name, budget)
        if table is None or table.evaluations in points:
            continue
        level = table.start
        start = level.anchor * source + level.signal * (SLOPE * source + rest) + level.noise * noise
        drawn = _run_bridge(table, start, source)
        points[table.evaluations] = energy_distance(drawn - SLOPE * source, _exact())
    return tuple(sorted(points.items()))


def _largest(name: str, budget: int) -> Table | None:
    """The bridge table of most steps within the budget; evaluations grow with steps."""
    low, high, best = 0, budget + 1, None
    while high - low > 1:
        middle = (low + high) // 2
        table = build_table(name, _bridge(middle))
        low, high, best = (middle, high, table) if table.evaluations <= budget else (low, middle, best)
    return best


def _run_bridge(table: Table, start: Tensor, source: Tensor) -> Tensor:
    calls: Sequence[tuple[float, float, float]] = [
        (row.level.anchor, row.level.signal, row.level.noise) for row in table.rows if row.calls_network
    ]
    left = iter(calls)
    target = _mixture()

    def network(x: Tensor, t: Tensor) -> Tensor:
        anchor, signal, noise = next(left)
        shift = SLOPE * source
        if noise == 0.0 and signal == 0.0:  # at the source itself nothing but it is known
            return shift + target.mean.reshape(x.shape[1:])
        return shift + target.data_prediction(x - anchor * source - signal * shift, signal, max(noise, 1e-12))

    given = {"source": source} if table.anchors else None
    result = run(table, network, start, prediction="data", anchors=given, seed=7)
    assert isinstance(result, Tensor)
    return result
