"""DBIM: official outputs, the reduction to a Gaussian path, order, and refusals."""

import numpy as np
import pytest
import torch

from pathline.samplers import InvariantError, Nodes, build_table, check, residuals, run
from support.bridges import bridge_goldens, reproduce_bridge

# the released I2SB tables are off by one β in one of two sums, which the noise of η > 0 sees and ours does not
LOOSE = {"dbim_eta0.5-i2sb-n19": 2e-3, "dbim_eta1-i2sb-n9": 4e-3}


def brownian(steps: int) -> Nodes:
    """Brownian bridge of diffusivity 1 on a grid uniform in λ: anchor m, signal 1 − m, noise √(m(1 − m))."""
    m = 1 / (1 + np.exp(2 * np.linspace(-3.0, 1.0, steps + 1)))
    return Nodes(1 - m, np.sqrt(m * (1 - m)), m, anchor=m)


@pytest.mark.parametrize("name", bridge_goldens())
def test_official_output(name: str) -> None:
    ours, official, table = reproduce_bridge(name)
    assert float((ours - official).abs().max()) < LOOSE.get(name, 1e-9)
    assert table.evaluations == len(table.rows)


@pytest.mark.parametrize("options", [{}, {"order": 2}, {"order": 3}, {"eta": 1.0}], ids=str)
def test_exact_for_point_masses_and_every_mutation_is_caught(options: dict[str, float]) -> None:
    table = build_table("dbim", brownian(6), **options)
    assert residuals(table).max() < 1e-12
    for where, value in table.coefficients():
        drawn = table.rows[where[0]].updates[where[1]].terms[where[2]][0] in table.rows[where[0]].noises
        if options.get("eta") and (drawn or where[2] == 0):
            continue  # the last step drops its noise, so the law is declared weak there
        assert isinstance(value, float)
        with pytest.raises(InvariantError):
            check(table.with_coefficient(where, value + 1e-3))


def end(order: int, steps: int) -> float:
    """Deterministic end point for Gaussian data given the source, with the booting noise fixed."""
    nodes = brownian(steps)
    spread = 0.25

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        m = t[:, None]
        gain = (1 - m) * spread / ((1 - m) ** 2 * spread + m * (1 - m))
        gain = torch.where(m > 0.9999, torch.zeros_like(m), gain)
        return 0.5 + gain * (x - m * 0.7 - (1 - m) * 0.5)

    y = torch.full((1, 1), 0.7, dtype=torch.float64)
    out = run(
        build_table("dbim", nodes, order=order, source_time=1.0),
        model,
        y,
        noise=lambda row, slot, like: torch.ones_like(like),
    )
    return float(out)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_higher_orders_converge_faster(order: int) -> None:
    """Cold start and a first-order last step: order 1 gives 1, the others 2 on this problem."""
    exact = end(3, 6000)
    errors = [abs(end(order, n) - exact) for n in (100, 200, 400)]
    slope = -np.polyfit(np.log([100, 200, 400]), np.log(errors), 1)[0]
    assert slope > min(order, 2) - 0.3


def test_refusals() -> None:
    nodes = brownian(4)
    plain = Nodes([0.1, 0.5, 1.0], [0.9, 0.5, 0.1])
    for call, message in (
        (lambda: build_table("dbim", plain), "needs a bridge"),
        (lambda: build_table("dbim", nodes, order=2, eta=0.5), "orders above 1 are deterministic"),
        (lambda: build_table("dbim", nodes, eta=2.0), "allowed: 0 to 1"),
        (lambda: nodes.between(0.0), "points between the nodes of a bridge"),
        (
            lambda: run(build_table("dbim", nodes), lambda x, t: x, torch.zeros(1, 2), anchors={"y": torch.zeros(2)}),
            "unknown",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
