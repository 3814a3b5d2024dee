"""A distance of features as what a calibration makes small."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pathline.evals.distances import frechet_distance
from pathline.evals.moments import Moments
from pathline.interpolants import LinearPath
from pathline.samplers import Table, plan
from pathline.samplers.calibrate import auto, untuned
from pathline.samplers.calibrate.auto import choose
from pathline.samplers.calibrate.extractor import check_judge, fitted_features
from pathline.samplers.calibrate.objectives import FeatureDistance, frechet
from pathline.samplers.calibrate.resume import Parts
from pathline.samplers.calibrate.trajectories import BudgetError, Problem
from pathline.samplers.calibrate.trials import Choice
from support.calibration import six_problem, starts

PATH = LinearPath()
BED = six_problem(PATH, 4)
Network = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@pytest.fixture(autouse=True)
def few_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untuned, "METHODS", (("ipndm", {"order": 2}), ("ddim", {})))
    monkeypatch.setattr(untuned, "GRIDS", ("karras",))
    monkeypatch.setattr(auto, "AUTO", ("iia",))


def near_ddim(problem: Problem, count: int = 60) -> FeatureDistance:
    """To samples of DDIM, which no error to converged ends is small for."""
    poor = plan(PATH, "ddim", nfe=4, grid="karras")
    x = starts(PATH, count, 4, seed=7)
    return FeatureDistance(problem, x, torch.tanh, torch.tanh(problem.run(poor, x)), name="tanh")


def chosen(model: Network, method: str = "iia", folder: Path | None = None) -> tuple[Choice, Problem]:
    problem, parts = Problem(model, PATH, "velocity"), Parts(folder)
    return choose(
        problem, starts(PATH, 12, 4), 4, method=method, distance=near_ddim(BED), hold_out=4, parts=parts
    ), problem


def test_a_distance_chooses_where_it_disagrees_with_the_error() -> None:
    by_error = choose(BED, starts(PATH, 12, 4), 4, hold_out=4)
    problem = Problem(BED.model, PATH, "velocity")
    by_distance = choose(problem, starts(PATH, 12, 4), 4, distance=near_ddim(BED), hold_out=4)
    assert by_distance.trials[0].name == "ddim on karras" != by_error.trials[0].name
    assert by_distance.least_error.name == by_error.trials[0].name
    distances = [t.distance for t in by_distance.trials if t.distance is not None]
    assert distances == sorted(distances)
    assert len(distances) == sum(t.table is not None for t in by_distance.trials)
    assert by_distance.trials[0].score <= by_distance.untuned.score
    assert by_distance.table.provenance["objective"] == "distance of tanh"
    kept = by_distance.table.provenance["holdout_distance"]
    assert kept == pytest.approx(near_ddim(BED)(by_distance.table), abs=1e-9)
    assert by_distance.calls == problem.calls


def test_what_a_feature_space_chose_is_not_reported_in_it(tmp_path: Path) -> None:
    choice, _ = chosen(BED.model)
    choice.table.save(tmp_path / "t.safetensors")
    for table in (Table.load(tmp_path / "t.safetensors"), choice.table.released()):
        assert fitted_features(table) == "tanh"
        with pytest.raises(ValueError, match="are no evidence"):
            check_judge(table, "tanh")
        check_judge(table, "pca")


def test_an_interrupted_choice_by_distance_ends_the_same(tmp_path: Path) -> None:
    spent = 0

    def counted(most: float) -> Network:
        def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            nonlocal spent
            spent += len(x)
            if spent > most:
                raise KeyboardInterrupt
            return BED.model(x, t)

        return model

    whole, problem = chosen(counted(math.inf))
    entire, spent = spent, 0
    with pytest.raises(KeyboardInterrupt):
        chosen(counted(entire - 300), folder=tmp_path / "parts")
    spent = 0
    again, resumed = chosen(counted(math.inf), folder=tmp_path / "parts")
    assert again.table == whole.table
    assert [(t.name, t.distance) for t in again.trials] == [(t.name, t.distance) for t in whole.trials]
    assert resumed.calls == problem.calls
    assert spent < 0.5 * entire


def test_a_budget_that_pays_for_no_distance_is_refused_before_the_first_call() -> None:
    poor = Problem(BED.model, PATH, "velocity", budget=400)
    with pytest.raises(BudgetError, match="and one distance of 60 more needs"):
        choose(poor, starts(PATH, 12, 4), 4, distance=near_ddim(BED), hold_out=4)
    assert poor.calls == 0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["trained", "ld3", "s3"])
def test_fits_that_can_work_on_features_themselves(method: str) -> None:
    choice, _ = chosen(BED.model, method)
    assert choice.trials[0].name.endswith(" in tanh")
    assert choice.trials[0].distance is not None
    assert fitted_features(choice.table) == "tanh"


def test_large_sets_and_small_ones_have_the_distance_of_their_moments() -> None:
    generator = torch.Generator().manual_seed(0)
    for rows, columns in ((40, 6), (300, 6)):
        a = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
        b = torch.randn(50, columns, generator=generator, dtype=torch.float64) @ torch.diag(torch.arange(6.0).double())
        assert frechet(a, b) == pytest.approx(frechet_distance(Moments.of(a), Moments.of(b)), rel=1e-9)
    few = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    assert frechet(few, few) == pytest.approx(0.0, abs=1e-12)
