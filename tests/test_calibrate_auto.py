"""The choice of a table for one network and budget."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from pathline.interpolants import Gaussian, GaussianMixture, LinearPath, VPPath
from pathline.samplers import sample
from pathline.samplers.analysis import Spectrum
from pathline.samplers.anchors import missing_anchors
from pathline.samplers.calibrate import fitters, untuned
from pathline.samplers.calibrate.auto import choose
from pathline.samplers.calibrate.fitters import FITTERS
from pathline.samplers.calibrate.learned import start_prediction
from pathline.samplers.calibrate.resume import Parts
from pathline.samplers.calibrate.row_fits import make_reference, mean_error, trajectory_calls
from pathline.samplers.calibrate.trajectories import BudgetError, Problem, reference_states
from pathline.samplers.calibrate.trials import Choice, Trial
from pathline.samplers.grids import make_nodes
from support.calibration import six_problem, starts


@pytest.mark.parametrize("path", [LinearPath(), pytest.param(VPPath(), marks=pytest.mark.slow)], ids=["linear", "vp"])
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
    assert all(math.isinf(t.error) and ("budget=900" in t.note or "data's covariance" in t.note) for t in left_out)


def test_tables_from_the_covariance_cost_no_more_than_their_hold_out() -> None:
    path, variances, mean = LinearPath(), torch.logspace(-2.0, 0.5, 6), torch.linspace(-1.0, 1.0, 6)
    network = Gaussian(mean, torch.diag(variances)).as_model(path, "data")
    x = path.prior((24, 6), torch.Generator().manual_seed(0), dtype=torch.float64)
    bed = Problem(network, path)
    choice = choose(bed, x, 4, hold_out=8, method="gaussian", spectrum=Spectrum.of(variances.numpy(), mean.numpy()))
    assert [t.calls for t in choice.trials if t.tuned] == [8 * 4, 8 * 4]
    assert choice.error < 0.5 * choice.untuned_error
    with pytest.raises(ValueError, match="needs the data's covariance"):
        choose(bed, x, 4, hold_out=8, method="gaussian")


def test_what_cannot_be_judged_is_refused_before_the_first_call() -> None:
    path = LinearPath()
    poor = six_problem(path, 16, budget=100)
    with pytest.raises(BudgetError, match="a hold-out of 8 samples needs"):
        choose(poor, starts(path, 24, seed=0), 5)
    assert poor.calls == 0
    with pytest.raises(ValueError, match="hold_out=23 of 24"):
        choose(six_problem(path, 16), starts(path, 24, seed=0), 5, hold_out=23)
    with pytest.raises(ValueError, match=r"unknown calibration method 'learnt'.*learned"):
        choose(six_problem(path, 16), starts(path, 24, seed=0), 5, method="learnt")
    with pytest.raises(ValueError, match=r"method 'gits' found no table: .*a teacher of 60 steps"):
        choose(six_problem(path, 16, budget=900), starts(path, 24, seed=0), 5, method="gits", hold_out=8)


def test_first_looks_are_not_paid_for_twice() -> None:
    path = LinearPath()
    bed = six_problem(path, 4)
    choice = choose(bed, starts(path, 8, 4), 3, hold_out=4, method="iia")
    judged = [t for t in choice.trials if not t.tuned]
    tables = untuned.untuned_tables(bed, 3)
    ends = trajectory_calls(bed)
    assert choice.calls == 4 * ends + sum(4 * table.evaluations for table in tables.values()) + sum(
        t.calls for t in choice.trials if t.tuned
    )
    assert all(t.calls == 4 * t.table.evaluations for t in judged if t.table is not None)


def test_a_named_fit_is_kept_even_where_it_loses_and_only_it_is_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    path = LinearPath()
    bed = six_problem(path, 4)
    poor = untuned.untuned_tables(bed, 3)["ddim on logsnr"]
    monkeypatch.setitem(FITTERS, "poor", lambda task: iter([("poor", lambda: poor)]))
    choice = choose(bed, starts(path, 8, 4), 3, method="poor")
    assert [t.name for t in choice.trials if t.tuned] == ["poor"]
    assert choice.trials[0].name == "poor"
    assert choice.error > choice.untuned_error
    assert choice.table.rows == poor.rows


def test_errors_are_the_mean_over_samples() -> None:
    path = LinearPath()
    bed, x = six_problem(path, 4), starts(path, 8, 4)
    choice = choose(bed, x, 3, method="iia", hold_out=4)
    ends = make_reference(bed, x[4:], {}).end
    assert choice.error == pytest.approx(mean_error(bed.run(choice.table, x[4:]) - ends), rel=1e-9)


def image_problem(batch: int, conditional: bool) -> Problem:
    rng = np.random.default_rng(5)
    mixture = GaussianMixture([0.5, 0.5], rng.standard_normal((2, 1, 4, 4)) + 1.0, std=[0.2, 0.3], classes=[0, 1])
    labels = {"labels": torch.arange(batch) % 2} if conditional else {}
    return Problem(mixture.as_model(LinearPath(), "velocity"), LinearPath(), "velocity", None, labels)


def few_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untuned, "METHODS", (("ipndm", {"order": 2}), ("ddim", {})))
    monkeypatch.setattr(untuned, "GRIDS", ("karras",))


@pytest.mark.slow
def test_the_mean_travels_in_the_table_unless_each_condition_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    few_candidates(monkeypatch)
    monkeypatch.setattr(fitters, "_GROUPS", (1,))
    x = LinearPath().prior((24, 1, 4, 4), torch.Generator().manual_seed(0)).double()
    found = {}
    for conditional, means in ((False, False), (True, False), (True, True)):
        bed = image_problem(24, conditional)
        choice = choose(bed, x, 3, method="learned", hold_out=8, condition_means=means)
        with_mean = next(t.table for t in choice.trials if "with the mean" in t.name)
        assert with_mean is not None
        found[conditional, means] = with_mean
    for case in ((False, False), (True, False)):
        assert not missing_anchors(found[case])
        bed = image_problem(24, case[0])
        out = sample(
            bed, x, path=LinearPath(), prediction="velocity", method=found[case], model_kwargs=bed.model_kwargs
        )
        assert torch.isfinite(out).all()
    assert missing_anchors(found[True, True]) == {"data_mean"}
    bed = image_problem(24, True)
    kwargs = {"path": LinearPath(), "prediction": "velocity", "model_kwargs": bed.model_kwargs}
    with pytest.raises(ValueError, match="missing"):
        sample(bed, x, method=found[True, True], **kwargs)
    means_of_x = {"data_mean": start_prediction(bed, x)}
    assert torch.isfinite(sample(bed, x, method=found[True, True], anchors=means_of_x, chunk_size=5, **kwargs)).all()


def test_tables_without_arrays_or_analytic_steps_where_asked() -> None:
    x = LinearPath().prior((12, 1, 4, 4), torch.Generator().manual_seed(0)).double()
    choice = choose(image_problem(12, False), x, 3, arrays=False, analytic=False)
    tables = [t.table for t in choice.trials if t.table is not None]
    assert all(table.fits_json and table.rows[0].query == 0 and table.rows[0].calls_network for table in tables)


class _StoppedError(Exception):
    pass


@pytest.mark.slow
def test_an_interrupted_choice_goes_on_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_candidates(monkeypatch)
    path, x = LinearPath(), starts(LinearPath(), 12, 4)
    bed = six_problem(path, 4)
    whole = choose(Problem(bed.model, path, "velocity", budget=6000), x, 3)
    spent = 0

    def go_on(most: float) -> Choice:
        def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            nonlocal spent
            spent += len(x)
            if spent > most:
                raise _StoppedError
            return bed.model(x, t)

        parts = Parts(tmp_path / "parts", {"budget": 6000})
        return choose(Problem(model, path, "velocity", budget=6000), x, 3, parts=parts)

    for most in (100, 900, 2000):
        with pytest.raises(_StoppedError):
            go_on(most)
    choice = go_on(math.inf)
    assert choice.table == whole.table
    assert [(t.name, t.error, t.calls) for t in choice.trials] == [(t.name, t.error, t.calls) for t in whole.trials]
    assert choice.calls == whole.calls < spent < whole.calls + 2500
    with pytest.raises(ValueError, match=r"with budget=6000 \(now 7000\)"):
        Parts(tmp_path / "parts", {"budget": 7000})


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in FITTERS if name not in fitters.AUTO])
def test_every_fit_can_be_asked_for_by_name(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = LinearPath()
    monkeypatch.setattr(untuned, "GRIDS", ("logsnr", "karras", "time", "shifted", "linspace"))  # fits start from these
    bed = six_problem(path, 16, budget=40_000)
    choice = choose(bed, starts(path, 24, seed=0), 4, hold_out=8, method=method)
    assert choice.trials[0].tuned
    assert choice.table.evaluations == 4
    assert choice.calls == bed.calls <= 40_000
    if method not in ("s3", "v3"):  # one has fewer rules and levels than those compared with, the other just one rule
        assert choice.error <= 1.1 * min(t.error for t in choice.trials if not t.tuned and t.name != untuned.DEFAULT)
    assert choice.table.provenance["holdout_error"] == choice.error


def test_what_a_fit_decided_is_told_and_kept() -> None:
    path = LinearPath()
    choice = choose(six_problem(path, 16), starts(path, 6, seed=0), 8, method="learned", arrays=False)
    assert all("strong regularisation" in t.note for t in choice.trials if t.tuned and t.table is not None)
    assert any("strong regularisation" in note for note in choice.table.provenance["notes"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "kept"),
    [
        ("v3", "statistics.npz"),
        ("s3", "search.json"),
        ("ays", "ays-ipndm.npz"),
        ("ld3", "ld3.pt"),
        ("rows", "rows.npz"),
    ],
)
def test_a_long_fit_goes_on_where_it_stopped(
    method: str, kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_candidates(monkeypatch)
    monkeypatch.setattr(fitters, "_STATISTICS_BATCH", 3)
    monkeypatch.setattr(fitters, "_STATISTICS_LEVELS", 31)
    path, x = LinearPath(), starts(LinearPath(), 12, 4)
    bed, spent = six_problem(path, 4), list[int]()

    def go_on(most: float, folder: Path) -> Choice:
        def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            spent.append(len(x))
            if sum(spent) > most:
                raise _StoppedError
            return bed.model(x, t)

        return choose(Problem(model, path, "velocity"), x, 4, method=method, hold_out=4, parts=Parts(folder))

    whole = go_on(math.inf, tmp_path / "whole")
    entire = sum(spent)
    spent.clear()
    with pytest.raises(_StoppedError):
        go_on(0.9 * entire, tmp_path / "cut")
    assert (tmp_path / "cut" / kept).exists()
    spent.clear()
    choice = go_on(math.inf, tmp_path / "cut")
    assert sum(spent) < 0.75 * entire
    assert choice.table == whole.table
    assert choice.calls == whole.calls
