"""Bridge samplers: official outputs, the reduction to a Gaussian path, order, law, and refusals."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pathline.interpolants import BrownianBridge, DiffusionBridge, LinearPath, StochasticInterpolant, VPPath
from pathline.samplers import (
    InvariantError,
    Nodes,
    bbdm_nodes,
    bridge_nodes,
    build_table,
    check,
    i2sb_nodes,
    list_methods,
    make_nodes,
    method_info,
    residuals,
    resshift_nodes,
    run,
    sample,
)
from support.bridges import bridge_goldens, reproduce_bridge


def brownian(steps: int) -> Nodes:
    """Brownian bridge of diffusivity 1 on a grid uniform in λ: anchor m, signal 1 − m, noise √(m(1 − m))."""
    m = 1 / (1 + np.exp(2 * np.linspace(-3.0, 1.0, steps + 1)))
    return Nodes(1 - m, np.sqrt(m * (1 - m)), m, anchor=m)


@pytest.mark.parametrize("name", bridge_goldens())
def test_official_output(name: str) -> None:
    ours, official, table = reproduce_bridge(name)
    assert float((ours - official).abs().max()) < 1e-9
    assert table.evaluations == len(table.rows)


CASES = [
    ("dbim", {}),
    ("dbim", {"order": 2}),
    ("dbim", {"order": 3}),
    ("dbim", {"eta": 1.0}),
    ("i2sb", {}),
    ("i2sb", {"deterministic": True}),
    ("consecutive-bridge", {}),
    ("resshift", {}),
    ("bbdm", {}),
]


def test_every_bridge_method_is_tried() -> None:
    named = {name for name, _ in CASES} | {"ddbm", "bridge-posterior"}
    assert named == {name for name in list_methods() if "bridge" in method_info(name).requires}


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_exact_for_point_masses_and_every_mutation_is_caught(name: str, options: dict[str, Any]) -> None:
    table = build_table(name, brownian(6), **options)
    assert residuals(table).max() < 1e-12
    for where, value in table.coefficients():
        drawn = table.rows[where[0]].updates[where[1]].terms[where[2]][0] in table.rows[where[0]].noises
        if table.law == "weak" and (drawn or where[2] == 0):
            continue  # the last step drops its noise, so the law is declared weak there
        assert isinstance(value, float)
        with pytest.raises(InvariantError):
            check(table.with_coefficient(where, value + 1e-3))


def linear_model(spread: float, nodes: Nodes) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """E[data | x, source] for data of mean 0 and variance `spread`, source 0, on any nodes labelled by time."""

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        m = 1 - t[:, None]
        signal, noise = 1 - m, (m * (1 - m)).clamp_min(0).sqrt()
        variance = signal**2 * spread + noise**2
        gain = torch.where(variance > 0, signal * spread / variance.clamp_min(1e-300), torch.zeros_like(m))
        return gain * x

    return model


def output_variance(name: str, steps: int, options: dict[str, Any], spread: float = 0.3) -> float:
    """Variance of the output given the source, in closed form: the run is linear in its draws."""
    bridge = BrownianBridge()
    last = 1.0 if name in ("i2sb", "resshift") else 0.8  # these drop the noise of their last step
    nodes = bridge_nodes(bridge, np.linspace(0.2 if name == "ddbm" else 1e-3, last, steps + 1))
    table = build_table(name, nodes, **options)
    draws = sum(z >= 0 for row in table.rows for z in row.noises)
    unit, count = torch.eye(draws + 1, dtype=torch.float64), iter(range(1, draws + 1))
    start = table.start.signal**2 * spread + table.start.noise**2
    out = run(
        table,
        linear_model(spread, nodes),
        unit[:, :1] * np.sqrt(start),
        anchors={"source": torch.zeros(draws + 1, 1, dtype=torch.float64)} if table.anchors else {},
        noise=lambda row, slot, like: unit[:, [next(count)]],
    )
    assert isinstance(out, torch.Tensor)
    return float((out**2).sum()) - (table.end.signal**2 * spread + table.end.noise**2)


@pytest.mark.parametrize(
    ("name", "options", "order"),
    [("i2sb", {}, 1), ("resshift", {}, 1), ("bbdm", {}, 1), ("ddbm", {"churn": 0.0}, 2)],
    ids=str,
)
def test_variance_converges_to_that_of_the_bridge(name: str, options: dict[str, Any], order: int) -> None:
    counts = (100, 200, 400)
    errors = [abs(output_variance(name, n, options)) for n in counts]
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert order - 0.35 < slope < order + 0.5  # the jump off the source costs a logarithm


@pytest.mark.slow
def test_hybrid_sampler_with_churn_keeps_the_law() -> None:
    bridge = DiffusionBridge(VPPath(0.1, 2.1))
    spread = 0.3

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        point = bridge.at(t[:, None])
        return point.data * spread / (point.data**2 * spread + point.latent**2) * x

    def error(steps: int) -> float:
        table = build_table("ddbm", bridge_nodes(bridge, np.linspace(0.2, 0.8, steps + 1)), churn=0.33)
        unit, count = torch.eye(steps + 1, dtype=torch.float64), iter(range(1, steps + 1))
        start = table.start.signal**2 * spread + table.start.noise**2
        out = run(
            table,
            model,
            unit[:, :1] * np.sqrt(start),
            anchors={"source": torch.zeros(steps + 1, 1, dtype=torch.float64)},
            noise=lambda row, slot, like: unit[:, [next(count)]],
        )
        assert isinstance(out, torch.Tensor)
        return float((out**2).sum()) - (table.end.signal**2 * spread + table.end.noise**2)

    errors = [abs(error(n)) for n in (50, 100, 200)]
    assert -np.polyfit(np.log([50, 100, 200]), np.log(errors), 1)[0] == pytest.approx(1.0, abs=0.2)


def test_the_posterior_of_a_brownian_bridge_is_dbim_with_eta_one() -> None:
    m = np.append(np.linspace(0.98, 0.1, 6), 0.0)
    nodes = Nodes(1 - m, np.sqrt(m * (1 - m)), m, anchor=m)
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours, theirs = (
        run(build_table(name, nodes, **options), lambda x, t: torch.tanh(x + t[:, None]), x, seed=3)
        for name, options in (("i2sb", {}), ("dbim", {"eta": 1.0}))
    )
    assert isinstance(ours, torch.Tensor)
    assert isinstance(theirs, torch.Tensor)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_published_levels() -> None:
    shift = resshift_nodes(4, kappa=2.0)
    assert shift.anchor[0] == pytest.approx(0.99**2)
    assert shift.anchor[-2] == pytest.approx(0.02**2)
    np.testing.assert_allclose(shift.noise, 2 * np.sqrt(shift.anchor))
    assert bbdm_nodes(20).time[-3:].tolist() == [1.0, 0.0, 0.0]
    image = i2sb_nodes(5)
    assert image.time.tolist() == [799, 599, 400, 200, 0]
    np.testing.assert_allclose(image.noise**2 / image.anchor / image.signal, image.noise[2] ** 2 / 0.25, rtol=0.2)


@pytest.mark.parametrize("name", [*sorted({name for name, _ in CASES}), "ddbm"])
def test_any_number_of_steps_shape_and_dtype(name: str) -> None:
    bridge = DiffusionBridge(VPPath(0.1, 2.1))
    shapes: list[tuple[int, ...]] = [(1, 3), (2, 5, 4), (1, 2, 3, 4, 5), (2, 3, 4, 6)]
    dtypes = [torch.float32, torch.bfloat16, torch.float64]
    for steps in range(1, 51):
        table = build_table(name, bridge_nodes(bridge, "time", steps))
        shape, dtype = shapes[steps % 4], dtypes[steps % 3]
        calls: list[torch.dtype] = []

        def model(x: torch.Tensor, t: torch.Tensor, calls: list[torch.dtype] = calls) -> torch.Tensor:
            calls.append(x.dtype)
            return torch.tanh(x)

        source = torch.randn(shape, generator=torch.Generator().manual_seed(steps)).to(dtype)
        out = run(table, model, source)
        assert isinstance(out, torch.Tensor)
        assert out.isfinite().all()
        assert out.shape == shape
        assert out.dtype == dtype
        assert calls == [dtype] * table.evaluations


@pytest.mark.parametrize("grid", ["time", "karras", "logsnr"])
@pytest.mark.parametrize("bridge", [DiffusionBridge(VPPath(0.1, 2.1)), BrownianBridge(2.0)], ids=["vp", "brownian"])
def test_sample_on_a_bridge_by_name(grid: str, bridge: StochasticInterpolant) -> None:
    source = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    calls: list[float] = []

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        calls.append(float(t[0]))
        return 0.5 + 0 * x

    out = sample(model, source, path=bridge, method="dbim", grid=grid, nfe=7)
    assert isinstance(out, torch.Tensor)
    torch.testing.assert_close(out, torch.full_like(out, 0.5))
    assert len(calls) == 7
    assert calls == sorted(calls)


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
        (lambda: build_table("bbdm", plain), "bbdm needs a bridge"),
        (lambda: build_table("i2sb", plain), "bridge-posterior needs a bridge"),
        (lambda: build_table("ddbm", nodes), "needs the rates of the bridge"),
        (lambda: bridge_nodes(BrownianBridge(), "shifted", 4), "grid of a bridge 'shifted'"),
        (lambda: bridge_nodes(BrownianBridge(), "time", 0), "at least 1 step"),
        (lambda: bridge_nodes(BrownianBridge(), [0.0, 0.5]), r"within \(0, 1\]"),
        (lambda: DiffusionBridge(LinearPath()), "signal above 0 at t = 0"),
        (lambda: i2sb_nodes(5000), "allowed: 1 to 999"),
        (lambda: nodes.between(0.0), "points between the nodes of a bridge"),
        (
            lambda: run(build_table("dbim", nodes), lambda x, t: x, torch.zeros(1, 2), anchors={"y": torch.zeros(2)}),
            "unknown",
        ),
        (lambda: run(build_table("bbdm", nodes.part(3)), lambda x, t: x, torch.zeros(1, 2)), r"missing \['source'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bbdm_nodes(2), "at least 3"),
        (lambda: bbdm_nodes(9, max_variance=-1), "max_variance=-1"),
        (lambda: resshift_nodes(0), "allowed: at least 1"),
        (lambda: resshift_nodes(4, kappa=0), "kappa=0"),
        (lambda: resshift_nodes(4, end=3), "end=3"),
        (lambda: i2sb_nodes(4, beta_min=-1), "beta_min=-1"),
        (lambda: bridge_nodes(BrownianBridge(), "time", 2.5), "steps=2.5"),
        (lambda: build_table("dpm++", brownian(4)), "not on bridges; use one of bbdm"),
        (lambda: make_nodes(BrownianBridge(), "gaussian", 4), "grid of a bridge 'gaussian'"),
        (lambda: build_table("dbim", brownian(4), afs=True), "first call is at the initial state"),
    ],
)
def test_bad_levels_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
