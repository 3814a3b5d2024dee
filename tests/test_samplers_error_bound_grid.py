"""Grids that come without a network: published schedules, and least error bounds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad

from pathline.interpolants import DiscretePath, EDMPath, LinearPath, VPPath
from pathline.samplers import grid_info, list_grids, make_nodes
from pathline.samplers.error_bound_grid import error_bound
from pathline.samplers.grids import AYS

OTHERS = [name for name in list_grids() if not grid_info(name).requires and name not in ("ays", "dmn")]


def weight(lam: np.ndarray, used: list[int], n: int, step: int) -> float:
    """The integral of exp(λ) times the Lagrange polynomial of node n over a step."""

    def integrand(at: float) -> float:
        return float(np.exp(at) * np.prod([(at - lam[m]) / (lam[n] - lam[m]) for m in used if m != n]))

    return float(quad(integrand, lam[step], lam[step + 1])[0])


@pytest.mark.parametrize("space", ["pixel", "latent"])
@pytest.mark.parametrize("steps", [2, 3, 4, 7])
def test_the_bound_is_that_of_the_paper(steps: int, space: str) -> None:
    """With integrals by quadrature."""
    lam = np.sort(np.random.default_rng(steps).uniform(-4.0, 4.0, steps + 1))
    sigma, alpha = 1 / np.sqrt(1 + np.exp(2 * lam)), 1 / np.sqrt(1 + np.exp(-2 * lam))
    error = sigma / alpha * (sigma if space == "latent" else 1.0)
    total, signed = 0.0, np.zeros(steps)
    for i in range(steps):
        used = [i - k for k in range(min(3, i + 1, steps - i))]
        terms = {n: error[n] * weight(lam, used, n, i) for n in used}
        if i < 3 or i == steps - 1:
            total += np.sqrt(sum(v**2 for v in terms.values()))
        else:
            for n, v in terms.items():
                signed[n] += v
    assert float(error_bound(lam, space)) == pytest.approx(total + np.abs(signed).sum(), rel=1e-9)


@pytest.mark.parametrize("space", ["pixel", "latent"])
@pytest.mark.parametrize("levels", [5, 8, 11])
def test_dmn_has_the_least_bound(levels: int, space: str) -> None:
    path = VPPath()
    lam = make_nodes(path, "dmn", levels - 1, final="path", space=space).lam
    least = float(error_bound(lam, space))
    assert lam[0] == pytest.approx(path.lambda_min)
    assert lam[-1] == pytest.approx(path.lambda_max)
    for grid in OTHERS:
        other = make_nodes(path, grid, levels - 1, final="path").lam
        stretched = lam[0] + (other - other[0]) * (lam[-1] - lam[0]) / (other[-1] - other[0])
        assert least < float(error_bound(stretched, space))
    rng = np.random.default_rng(0)
    for _ in range(20):
        moved = lam + np.concatenate([[0.0], 0.02 * rng.standard_normal(levels - 2), [0.0]])
        assert least < float(error_bound(moved, space)) * (1 + 1e-3)


def test_published_schedules_are_met_exactly_and_between() -> None:
    path = DiscretePath.scaled_linear()
    nodes = make_nodes(path, "ays", 10)
    ratios = nodes.noise / nodes.signal
    highest = float(np.exp(-path.lambda_min))
    np.testing.assert_allclose(ratios[:-1], [min(r, highest) for r in AYS["sd15"]], rtol=1e-6)
    assert ratios[-1] == 0.0
    flow = make_nodes(LinearPath(), "ays", 10, model="sdxl")
    np.testing.assert_allclose(flow.noise[1:-1] / flow.signal[1:-1], AYS["sdxl"][1:], rtol=1e-9)
    more = make_nodes(EDMPath(), "ays", 19)
    assert more.noise[0] == pytest.approx(80.0)  # the path's own
    np.testing.assert_allclose(more.noise[2:-1:2], AYS["sd15"][1:], rtol=1e-9)
    np.testing.assert_allclose(more.noise[3:-1:2] ** 2, more.noise[2:-2:2] * more.noise[4:-1:2], rtol=1e-9)


def test_what_is_not_possible_is_said() -> None:
    with pytest.raises(ValueError, match="schedule of grid 'ays'"):
        make_nodes(VPPath(), "ays", 10, model="sd3")
    with pytest.raises(ValueError, match="does not reach"):
        make_nodes(EDMPath(), "ays", 12, model="svd")
    with pytest.raises(ValueError, match="space of grid 'dmn'"):
        make_nodes(VPPath(), "dmn", 10, space="video")
