"""φ-functions and quadrature weights against high precision and against polynomials."""

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pathline.samplers.numerics import ADAMS_BASHFORTH, exponential_weights, phi, polynomial_weights


def exact_phi(k: int, z: float) -> float:
    with mpmath.workdps(200):
        value = mpmath.exp(mpmath.mpf(z))
        if z == 0:
            return float(1 / mpmath.factorial(k))
        for j in range(k):
            value = (value - 1 / mpmath.factorial(j)) / mpmath.mpf(z)
        return float(value)


@pytest.mark.parametrize("k", range(8))
@pytest.mark.parametrize("z", [0.0, 1e-12, -1e-5, 1e-2, -0.5, 1.49, 1.51, -3.0, 8.0, -30.0])
def test_phi_to_full_precision(k: int, z: float) -> None:
    assert float(phi(k, z)) == pytest.approx(exact_phi(k, z), rel=2e-13)


@given(
    h=st.floats(0.05, 5.0),
    gaps=st.lists(st.floats(0.3, 3.0), min_size=1, max_size=3),
    degree=st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_exponential_weights_integrate_polynomials(h: float, gaps: list[float], degree: int) -> None:
    """∫_0^1 e^{−(1−u)h} u^k du is exact for every k below the number of nodes."""
    points = np.concatenate([[0.0], -np.cumsum(gaps)])
    degree = min(degree, len(points) - 1)
    weights = exponential_weights(points, -h)
    nodes, quad = np.polynomial.legendre.leggauss(40)
    u = 0.5 * (nodes + 1)
    exact = 0.5 * np.sum(quad * np.exp(-(1 - u) * h) * u**degree)
    assert float(weights @ points**degree) == pytest.approx(exact, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_equal_steps_give_the_classical_weights(order: int) -> None:
    assert polynomial_weights(-np.arange(order, dtype=float)) == pytest.approx(ADAMS_BASHFORTH[order - 1])
