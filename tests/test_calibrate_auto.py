"""The choice of a table for one network and budget."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pathline.interpolants import GaussianMixture, LinearPath, VPPath
from pathline.samplers import sample
from pathline.samplers.calibrate.auto import Trial, choose
from pathline.samplers.calibrate.trajectories import BudgetError, Problem, reference_states
from pathline.samplers.grids import make_nodes


def problem(path: LinearPath | VPPath, budget: int | None = None) -> Problem:
    rng = np.random.default_rng(3)
    means, variances = rng.standard_normal((6, 16)), rng.uniform(0.01, 0.3, (6, 16))
    mixture = GaussianMixture(np.full(6, 1 / 6), means, variances=variances)
    return Problem(mixture.as_model(path, "velocity"), path, "velocity", budget=budget)


def starts(path: LinearPath | VPPath, count: int, seed: int) -> torch.Tensor:
    return path.prior((count, 16), torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("path", [LinearPath(), VPPath()], ids=["linear", "vp"])
def test_the_choice_beats_every_untuned_candidate_also_on_new_noises(path: LinearPath | VPPath) -> None:
    bed, seen = problem(path), list[Trial]()
    choice = choose(bed, starts(path, 48, 0), 6, report=seen.append, facts={"network": "abc"})
    assert all(t.table.evaluations <= 6 for t in choice.trials if t.table is not None)
    assert choice.calls == bed.calls
    assert {t.name for t in seen} == {t.name for t in choice.trials}
    assert choice.error == min(t.error for t in choice.trials)
    assert choice.error < 0.8 * choice.untuned_error
    fit = choice.table.provenance
    assert (fit["network"], fit["prediction"], fit["holdout_error"]) == ("abc", "velocity", choice.error)
    fresh = starts(path, 128, 9)
    truth = reference_states(bed, fresh, make_nodes(path, "logsnr", 1), per_step=48)[-1]
    best = next(t for t in choice.trials if not t.tuned)
    ends = [sample(bed, fresh, path=path, prediction="velocity", method=table) for table in (choice.table, best.table)]
    errors = [float((end - truth).square().mean().sqrt()) for end in ends]
    assert errors[0] < 0.9 * errors[1]


def test_a_small_budget_gives_an_untuned_table_and_says_what_was_left_out() -> None:
    path = LinearPath()
    bed = problem(path, budget=900)
    choice = choose(bed, starts(path, 24, 0), 5, hold_out=8)
    assert bed.calls <= 900
    assert choice.error <= choice.untuned_error
    left_out = [t for t in choice.trials if t.table is None]
    assert left_out
    assert all("budget=900" in t.note and math.isinf(t.error) for t in left_out)


def test_what_cannot_be_judged_is_refused_before_the_first_call() -> None:
    path = LinearPath()
    poor = problem(path, budget=100)
    with pytest.raises(BudgetError, match="a hold-out of 8 samples needs"):
        choose(poor, starts(path, 24, 0), 5)
    assert poor.calls == 0
    with pytest.raises(ValueError, match="hold_out=23 of 24"):
        choose(problem(path), starts(path, 24, 0), 5, hold_out=23)


def test_the_choice_is_the_same_every_time() -> None:
    path = VPPath()
    first, second = (choose(problem(path), starts(path, 24, 0), 4) for _ in range(2))
    assert first.table == second.table
    assert [t.error for t in first.trials] == [t.error for t in second.trials]
