"""Levels found by dynamic programmes on trajectories."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest

from pathline.interpolants import LinearPath, VPPath
from pathline.samplers import Nodes, make_nodes, sample
from pathline.samplers.calibrate.level_search import gits, optimal_stepsizes, shortest_path
from pathline.samplers.calibrate.trajectories import BudgetError, reference_states
from support.calibration import six_problem, starts


@pytest.mark.parametrize("gamma", [1.0, 1.15])
def test_the_programme_finds_the_cheapest_way(gamma: float) -> None:
    cost = np.random.default_rng(0).uniform(0, 1, (9, 9))
    for steps in (1, 2, 4, 8):
        ways = [(0, *inner, 8) for inner in combinations(range(1, 8), steps - 1)]

        def total(way: tuple[int, ...]) -> float:
            return sum(gamma**k * cost[i, j] for k, (i, j) in enumerate(pairwise(way)))

        assert shortest_path(cost, steps, gamma) == min(ways, key=total)


@pytest.mark.parametrize("path", [LinearPath(), VPPath()], ids=["linear", "vp"])
def test_found_levels_beat_named_grids(path: LinearPath | VPPath) -> None:
    """On noises that the search has not seen."""
    bed = six_problem(path, 8)
    train, fresh = starts(path, 32, 8, seed=0), starts(path, 256, 8, seed=1)
    truth = reference_states(bed, fresh, make_nodes(path, "karras", 1))[-1]

    def error(grid: str | Nodes, steps: int | None = None) -> float:
        end = sample(bed, fresh, path=path, prediction="velocity", method="ddim", grid=grid, steps=steps)
        return float((end - truth).square().mean().sqrt())

    for steps in (5, 8):
        public = {grid: error(grid, steps) for grid in ("karras", "logsnr", "time")}
        found = gits(bed, train, steps)
        assert (found.nodes.steps, found.calls) == (steps, 32 * 60)
        assert error(found.nodes) < min(public["karras"], public["logsnr"])  # its teacher's grid, and the usual one
        assert error(optimal_stepsizes(bed, train[:8], steps, teacher=24).nodes) < min(public.values())


def test_searches_count_batches_alike_and_refuse_what_they_cannot_pay() -> None:
    path = LinearPath()
    x = starts(path, 12, 8, seed=0)
    whole, split = gits(six_problem(path, 8), x, 6), gits(six_problem(path, 8), x, 6, chunk=5)
    assert whole.chosen == split.chosen
    np.testing.assert_allclose(whole.nodes.lam, split.nodes.lam)
    assert (
        optimal_stepsizes(six_problem(path, 8), x, 4, teacher=16).chosen
        == optimal_stepsizes(six_problem(path, 8), x, 4, teacher=16, chunk=5).chosen
    )
    for search in (gits, optimal_stepsizes):
        poor = six_problem(path, 8, budget=100)
        with pytest.raises(BudgetError, match="budget=100"):
            search(poor, x, 5)
        assert poor.calls == 0
        with pytest.raises(ValueError, match="steps=60 is not possible"):
            search(six_problem(path, 8), x, 60)
    with pytest.raises(ValueError, match="gamma=0"):
        gits(six_problem(path, 8), x, 5, gamma=0)
