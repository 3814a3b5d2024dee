"""Declared orders are measured, for every case of every registered method."""

from math import ceil

import numpy as np
import pytest
import torch

from pathline.interpolants import Gaussian
from pathline.samplers import Case, Table, method_info, run
from support.problems import PATH, end_error, gaussian_methods, slope, uniform_nodes, without_lowering

CASES = [(name, case) for name in gaussian_methods() for case in method_info(name).cases]
IDS = [f"{name}-{case.options}" for name, case in CASES]


def step_counts(name: str, order: int, variable: str) -> list[int]:
    if name == "runge-kutta":
        return [12, 16, 24, 32]
    if name.endswith("-single") and order == 3:
        return [60, 96, 132]
    if variable == "noise_ratio" and order > 1:
        return [96, 128, 192, 256]  # the step in λ is uneven there, so that the slope settles later
    return {1: [96, 132, 192], 2: [60, 96, 132]}.get(order, [36, 48, 60, 72])


def deterministic(cases: list[tuple[str, Case]]) -> list[tuple[str, Case]]:
    return [
        (n, c) for n, c in cases if not without_lowering(n, uniform_nodes(c.variable, 4), dict(c.options)).stochastic
    ]


DETERMINISTIC = deterministic(CASES)


@pytest.mark.parametrize(("name", "case"), DETERMINISTIC, ids=lambda v: getattr(v, "options", v))
@pytest.mark.parametrize("cold", [False, True], ids=["exact-history", "cold"])
def test_order(name: str, case: Case, cold: bool) -> None:
    declared = case.cold_order if cold else case.order
    options = {**method_info(name).options, **case.options}
    if "base" in options:  # a method on top of another one
        options = {**method_info(options["base"]).options, **(options["base_options"] or {})}
    history = 0 if cold else ceil(max(options.get("order", 0), options.get("corrector_order", 0)))
    steps = step_counts(name, declared, case.variable)
    errors = [end_error(name, case, n, history) for n in steps]
    assert declared - 0.15 < slope(steps, errors) < declared + 0.6


def law_error(table: Table, data: Gaussian, variance: float) -> float:
    """Error of the output variance for Gaussian data, closed form: the run is linear in (x₀, z₁, z₂, …)."""
    draws = sum(z >= 0 for row in table.rows for z in row.noises)
    unit = torch.eye(draws + 1, dtype=torch.float64)
    count = iter(range(1, draws + 1))
    response = run(
        table,
        data.as_model(PATH),
        unit[:, :1] * np.sqrt(table.start.signal**2 * variance + table.start.noise**2),
        prediction="data",
        noise=lambda row, slot, like: unit[:, [next(count)]],
    )
    assert isinstance(response, torch.Tensor)
    return abs(float((response**2).sum()) - (table.end.signal**2 * variance + table.end.noise**2))


@pytest.mark.parametrize(
    ("name", "case"), [c for c in CASES if c not in DETERMINISTIC], ids=lambda v: getattr(v, "options", v)
)
def test_weak_order(name: str, case: Case) -> None:
    data = Gaussian(mean=[0.0], variance=[0.3])
    steps = step_counts(name, case.order, case.variable)
    errors = [
        law_error(without_lowering(name, uniform_nodes(case.variable, n), dict(case.options)), data, 0.3) for n in steps
    ]
    assert case.order - 0.15 < slope(steps, errors) < case.order + 0.6
