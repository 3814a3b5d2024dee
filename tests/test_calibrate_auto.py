"""The choice of a table for one network and budget."""

from __future__ import annotations

import math

import pytest

from pathline.interpolants import LinearPath, VPPath
from pathline.samplers import sample
from pathline.samplers.calibrate.auto import Trial, choose
from pathline.samplers.calibrate.trajectories import BudgetError, reference_states
from pathline.samplers.grids import make_nodes
from support.calibration import six_problem, starts


@pytest.mark.parametrize("path", [LinearPath(), VPPath()], ids=["linear", "vp"])
def test_the_choice_beats_every_untuned_candidate_also_on_new_noises(path: LinearPath | VPPath) -> None:
    bed, seen = six_problem(path, 16), list[Trial]()
    choice = choose(bed, starts(path, 48, seed=0), 6, report=seen.append, facts={"network": "abc"})
    assert all(t.table.evaluations <= 6 for t in choice.trials if t.table is not None)
    assert choice.calls == bed.calls
    assert {t.name for t in seen} == {t.name for t in choice.trials}
    assert choice.error == min(t.error for t in choice.trials)
    assert choice.error < 0.8 * choice.untuned_error
    fit = choice.table.provenance
    assert (fit["network"], fit["prediction"], fit["holdout_error"]) == ("abc", "velocity", choice.error)
    fresh = starts(path, 128, seed=9)
    truth = reference_states(bed, fresh, make_nodes(path, "logsnr", 1), per_step=48)[-1]
    best = next(t for t in choice.trials if not t.tuned)
    ends = [sample(bed, fresh, path=path, prediction="velocity", method=table) for table in (choice.table, best.table)]
    errors = [float((end - truth).square().mean().sqrt()) for end in ends]
    assert errors[0] < 0.9 * errors[1]


def test_a_small_budget_gives_an_untuned_table_and_says_what_was_left_out() -> None:
    path = LinearPath()
    bed = six_problem(path, 16, budget=900)
    choice = choose(bed, starts(path, 24, seed=0), 5, hold_out=8)
    assert bed.calls <= 900
    assert choice.error <= choice.untuned_error
    left_out = [t for t in choice.trials if t.table is None]
    assert left_out
    assert all("budget=900" in t.note and math.isinf(t.error) for t in left_out)


def test_what_cannot_be_judged_is_refused_before_the_first_call() -> None:
    path = LinearPath()
    poor = six_problem(path, 16, budget=100)
    with pytest.raises(BudgetError, match="a hold-out of 8 samples needs"):
        choose(poor, starts(path, 24, seed=0), 5)
    assert poor.calls == 0
    with pytest.raises(ValueError, match="hold_out=23 of 24"):
        choose(six_problem(path, 16), starts(path, 24, seed=0), 5, hold_out=23)


def test_the_choice_is_the_same_every_time() -> None:
    path = VPPath()
    first, second = (choose(six_problem(path, 16), starts(path, 24, seed=0), 4) for _ in range(2))
    assert first.table == second.table
    assert [t.error for t in first.trials] == [t.error for t in second.trials]
