"""Stability functions: equal to theory, to the growth of actual runs, and what momentum trades for them."""

from typing import Any

import numpy as np
import pytest
import torch

from pathline.interpolants import LinearPath
from pathline.samplers import Nodes, build_table, method_info, run
from pathline.samplers.analysis import Stability, stability
from support.problems import gaussian_methods

ADAMS = {1: [1.0], 2: [1.5, -0.5], 3: [23 / 12, -16 / 12, 5 / 12], 4: [55 / 24, -59 / 24, 37 / 24, -9 / 24]}


@pytest.mark.parametrize(("order", "limit"), [(1, -2.0), (2, -1.0), (3, -6 / 11), (4, -3 / 10)])
@pytest.mark.parametrize("method", ["ipndm", "lms", "plms"])
def test_real_limits_of_adams_bashforth(method: str, order: int, limit: float) -> None:
    assert stability(method, order=order).real_limit() == pytest.approx(limit, abs=1e-6)


@pytest.mark.parametrize("beta", [0.5, 0.8, 0.9])
def test_heavy_ball_on_euler_reaches_further(beta: float) -> None:
    wanted = -2 * (2 - beta) / beta
    for found in (stability("heavy-ball", order=1, beta=beta), stability("ghvb", order=beta)):
        assert found.real_limit() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_momentum_enlarges_the_real_interval(order: int) -> None:
    plain = stability("ipndm", order=order).real_limit()
    limits = [stability("heavy-ball", order=order, beta=b).real_limit() for b in (0.9, 0.8)]
    assert limits[1] < limits[0] < plain
    whole, part = (stability("ghvb", order=m).real_limit() for m in (order, order - 0.2))
    assert part < whole == pytest.approx(plain, abs=1e-6)
    # Nesterov's gain lies along the imaginary axis
    nesterov = stability("heavy-ball", order=order, beta=0.9, variant="nesterov")
    assert abs(nesterov.real_limit() - plain) < abs(limits[0] - plain)


def heavy_ball_locus(order: int, beta: float, theta: np.ndarray) -> np.ndarray:
    E = np.exp(-1j * theta)
    b = sum(w * E ** (k + 1) for k, w in enumerate(ADAMS[order]))
    return np.asarray((1 - E) * (1 - (1 - beta) * E) / (beta * b))


def ghvb_locus(order: int, beta: float, theta: np.ndarray) -> np.ndarray:
    E = np.exp(-1j * theta)
    c = {
        2: ((2 + beta) * E - (2 - beta) * E**2) / 2,
        3: ((18 + 5 * beta) * E - (24 - 8 * beta) * E**2 + (6 - beta) * E**3) / 12,
        4: ((46 + 9 * beta) * E - (78 - 19 * beta) * E**2 + (42 - 5 * beta) * E**3 - (10 - beta) * E**4) / 24,
    }[order]
    return np.asarray((1 - E) * (1 - (1 - beta) * E) / c)


@pytest.mark.parametrize("beta", [0.8, 0.9, 1.0])
@pytest.mark.parametrize(("kind", "order"), [("hb", 1), ("hb", 2), ("hb", 3), ("hb", 4), ("g", 2), ("g", 3), ("g", 4)])
def test_boundary_loci_of_the_paper_have_amplification_one(kind: str, order: int, beta: float) -> None:
    theta = np.linspace(0.02, np.pi, 40)
    if kind == "hb":
        found, locus = stability("heavy-ball", order=order, beta=beta), heavy_ball_locus(order, beta, theta)
    else:
        found, locus = stability("ghvb", order=order, beta=beta), ghvb_locus(order, beta, theta)
    growth = found.amplification(locus)
    assert (growth > 1 - 1e-7).all()  # a root of modulus 1, and where the locus crosses itself a larger one
    assert np.abs(growth[:6] - 1).max() < 1e-6
    assert found.amplification(locus[-1]) == pytest.approx(1.0, abs=1e-6)
    assert found.real_limit() == pytest.approx(locus[-1].real, abs=1e-6)


def test_runge_kutta_and_exponential_steps_have_their_polynomials() -> None:
    z = np.array([-0.7 + 0.4j, 0.3 - 1.1j, -2.5, 0.2])
    for name, options, terms in (
        ("euler", {}, 1),
        ("heun", {"variant": "sigma"}, 2),
        ("heun", {"variant": "time"}, 2),
    ):
        wanted = np.abs(sum(z**k / np.prod(np.arange(1, k + 1)) for k in range(terms + 1)))
        np.testing.assert_allclose(stability(name, **options).amplification(z), wanted, rtol=1e-9)
    for h in (0.1, 0.7):
        wanted = np.abs(np.exp(-h) + (1 - np.exp(-h)) * z / h)
        np.testing.assert_allclose(stability("ddim", step=h).amplification(z), wanted, rtol=1e-9)
        a = np.exp(-h / 2) + (1 - np.exp(-h / 2)) * z / h  # DPM++ 2S: a midpoint stage half a step ahead
        wanted = np.abs(np.exp(-h) + (1 - np.exp(-h)) * z / h * a)
        np.testing.assert_allclose(stability("dpm++-2s-ancestral", eta=0.0, step=h).amplification(z), wanted, rtol=1e-9)


def stable_methods() -> list[tuple[str, dict[str, Any]]]:
    found = []
    for name in gaussian_methods():
        for case in method_info(name).cases[:1]:
            try:
                stability(name, **case.options)
            except ValueError:
                continue
            found.append((name, case.options))
    return found


def test_nearly_every_method_has_a_stability_function() -> None:
    names = {name for name, _ in stable_methods()}
    assert len(names) >= len(gaussian_methods()) - 4, sorted(set(gaussian_methods()) - names)


def end_of_run(found: Stability, steps: int, z: float) -> float:
    """The state after so many steps with a linear network, from 1."""
    if found.variable == "lam":
        lam = found.step * np.arange(steps + 1.0) - 9.0
        nodes, kind, slope = Nodes(np.ones_like(lam), np.exp(-lam)), "data", z / found.step
    elif found.variable == "noise_ratio":
        noise = 1e4 - np.arange(steps + 1.0)
        nodes, kind, slope = Nodes(np.ones_like(noise), noise), "noise", -z
    else:
        signal = 0.3 + 0.01 * np.arange(steps + 1.0)
        nodes, kind, slope = Nodes(signal, 1 - signal, path=LinearPath()), "velocity", z / 0.01
    table = build_table(found.method, nodes, **found.options)
    quiet = torch.zeros(1, 1, dtype=torch.float64)
    out = run(table, lambda x, t: slope * x, quiet + 1.0, prediction=kind, noise=lambda *_: quiet)
    assert isinstance(out, torch.Tensor)
    return float(out)


# SA's default draws noise in a window of its nodes only, so that its map changes on the way
@pytest.mark.parametrize(("name", "options"), [c for c in stable_methods() if c[0] != "sa" or "tau" in c[1]], ids=str)
def test_actual_runs_follow_the_characteristic_polynomial(name: str, options: dict[str, Any]) -> None:
    """All roots at once: runs of n, n − 1, … steps satisfy the recurrence that the roots belong to."""
    found = stability(name, **options)
    for z in (-0.15, 0.1):
        polynomial = np.poly(found.roots(z)).real
        states = [end_of_run(found, 30 - k * found.spans, z) for k in range(len(polynomial))]
        size = np.abs(polynomial) @ np.abs(states)
        assert abs(polynomial @ states) < 3e-3 * size
        if name not in ("er-sde", "dpm2", "deis"):  # whose coefficients settle on a straight line only far from 0
            assert abs(polynomial @ states) < 1e-8 * size


SYSTEM = torch.tensor([[0.0, 1.0], [-9.0, -10.0]], dtype=torch.float64)


def integrated(method: str, steps: int, length: float, **options: Any) -> torch.Tensor:
    """The stiff system of the momentum paper: d x/d s = A·x from (−1, 0), with s along falling noise/signal."""
    noise = 1.0 + length * (1 - np.arange(steps + 1.0) / steps)
    table = build_table(method, Nodes(np.ones_like(noise), noise), **options)
    x = torch.tensor([[-1.0, 0.0]], dtype=torch.float64)
    out = run(table, lambda x, t: -x @ SYSTEM.T, x, prediction="noise")
    assert isinstance(out, torch.Tensor)
    return out[0]


def test_momentum_converges_where_adams_bashforth_diverges() -> None:
    z = -27 / 26  # of the fast component, with 26 steps on [0, 3]
    exact = 9 / 8 * np.exp(-12.0)  # nothing else is left at 12
    diverged = float(integrated("ipndm", 104, 12.0, order=2).norm())
    assert stability("ipndm", order=2).amplification(z) > 1.02
    assert diverged > 1.0
    near = float(integrated("ipndm", 26, 3.0, order=2).norm())
    assert diverged > 5 * near
    for method, options in (
        ("heavy-ball", {"order": 2, "beta": 0.8}),
        ("heavy-ball", {"order": 2, "beta": 0.9}),
        ("ghvb", {"order": 1.8}),
        ("ghvb", {"order": 1.9}),
    ):
        assert stability(method, **options).amplification(z) < 1
        assert float(integrated(method, 104, 12.0, **options).norm()) < 40 * exact


def test_regions_are_symmetric_and_hold_the_left_of_the_origin() -> None:
    found = stability("unipc", order=2)
    x, _, values = found.region((-1.0, 0.5), (-0.5, 0.5), points=41)
    assert values.shape == (41, 41)
    np.testing.assert_allclose(values, values[::-1], rtol=1e-9)
    assert values[20, np.argmin(np.abs(x + 0.2))] < 1
    assert found.calls == 1
    assert (stability("heun").calls, stability("dpm-single").spans) == (2, 3)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("edm", {"churn": 4.0}, "jumps back to more noise"),
        ("dbim", {}, "needs a bridge"),
        ("ddim", {"step": 0.0}, "step=0.0 is not possible"),
        ("ddim", {"variable": "sigma"}, "unknown variable 'sigma'"),
        ("dppm", {}, "unknown method 'dppm'"),
    ],
)
def test_methods_without_a_map_per_step_are_refused(method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stability(method, **options)
