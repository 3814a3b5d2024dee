"""The keyed Brownian path: its law, its consistency, and its use by tables."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from pathline.interpolants import Gaussian, VPPath
from pathline.samplers import BrownianPath, brownian_noise, build_table, make_nodes, plan, run

TARGET = Gaussian([0.3, -1.0, 2.0], variance=[0.2, 1.5, 0.05])


def test_increments_have_the_law_of_brownian_motion() -> None:
    """Variance, covariance and space-time area of increments at places that are not dyadic."""
    w = BrownianPath((20000,), 7, [5], start=-1.0, end=2.0)
    ends = [-1.0, -0.61, 0.13, 0.9, 0.931, 2.0]
    parts = [w.increment(a, b) for a, b in itertools.pairwise(ends)]
    lengths = np.diff(ends)
    values = torch.stack([p[0][0] for p in parts] + [p[1][0] for p in parts])
    wanted = np.zeros((10, 10))
    for i, h in enumerate(lengths):
        wanted[i, i], wanted[5 + i, 5 + i], wanted[i, 5 + i] = h, h**3 / 3, h**2 / 2
        wanted[5 + i, i] = wanted[i, 5 + i]
    scale = np.sqrt(np.outer(np.diag(wanted), np.diag(wanted)))
    assert np.abs((torch.cov(values).numpy() - wanted) / scale).max() < 5 / 20000**0.5
    assert np.abs(values.mean(1).numpy() / np.sqrt(np.diag(wanted))).max() < 4 / 20000**0.5
    assert float((values[0] ** 4).mean() / lengths[0] ** 2) == pytest.approx(3.0, rel=0.1)


def test_increments_add_up_whatever_the_order_of_questions() -> None:
    w = BrownianPath((3, 2), 1, [0, 9])
    places = [0.0, 0.2, 0.25, 0.3111, 0.7, 1.0]
    ordered = {t: w.at(t) for t in places}
    for t in reversed(places):
        fresh = BrownianPath((3, 2), 1, [0, 9]).at(t)
        assert all(torch.equal(a, b) for a, b in zip(w.at(t), fresh, strict=True))
        assert torch.equal(fresh[0], ordered[t][0])
    for a, b, c in itertools.combinations(places, 3):
        (ab, area_ab), (bc, area_bc), (ac, area_ac) = w.increment(a, b), w.increment(b, c), w.increment(a, c)
        assert torch.allclose(ab + bc, ac, atol=1e-14)
        assert torch.allclose(area_ab + area_bc + (c - b) * ab, area_ac, atol=1e-14)
    assert float(w(0.0).abs().max()) == 0.0


def test_the_path_of_a_sample_is_its_own() -> None:
    together = BrownianPath((4,), 3, [2, 7])
    alone = BrownianPath((4,), 3, torch.tensor([7]))
    for t in (0.1, 0.5, 0.77):
        assert torch.equal(together(t)[1:], alone(t))
        coarse = BrownianPath((4,), 3, [2, 7], depth=8)(t)
        assert float((coarse - together(t)).abs().max()) < 0.2  # depth adds detail below (end − start)/2^depth only
    assert torch.equal(BrownianPath((4,), 3, [2], depth=8)(0.75), BrownianPath((4,), 3, [2], depth=20)(0.75))
    assert not torch.allclose(BrownianPath((4,), 4, [7])(0.5), alone(0.5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": 1.0}, "is no interval"),
        ({"end": float("inf")}, "is no interval"),
        ({"depth": 0}, "depth=0 is not possible"),
    ],
)
def test_impossible_paths_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BrownianPath((2,), 0, [0], **arguments)
    with pytest.raises(ValueError, match=r"time=1.5 lies outside the path's interval \[0, 1\]"):
        BrownianPath((2,), 0, [0])(1.5)


def test_tables_of_any_grid_share_one_path() -> None:
    """Strong convergence: with one Brownian path the samples of finer grids approach each other."""
    path, samples = VPPath(), [0, 1]
    x = path.prior((2, 3), torch.Generator().manual_seed(0), dtype=torch.float64)
    finals = []
    for steps in (10, 40, 160):
        table = build_table("ddim", make_nodes(path, np.linspace(0.0, 0.99, steps + 1)), eta=1.0)
        noise = brownian_noise(table, (3,), seed=1, samples=samples)
        finals.append(run(table, TARGET.as_model(path), x, noise=noise))
    gaps = [float((a - finals[2]).square().mean().sqrt()) for a in finals[:2]]
    assert gaps[1] < 0.5 * gaps[0]
    keyed = run(table, TARGET.as_model(path), x)
    assert float((keyed - finals[2]).square().mean().sqrt()) > 2 * gaps[1]
    for method, options in (("edm", {"churn": 20.0}), ("ddim", {})):
        with pytest.raises(ValueError, match=r"a Brownian path serves one draw|draws no noise"):
            brownian_noise(plan(path, method, steps=5, **options), (3,), samples=samples)
