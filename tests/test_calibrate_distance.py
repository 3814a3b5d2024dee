"""A distance of features as what a calibration makes small."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from pathline.evals.calibration_distance import SpaceFeatures
from pathline.evals.distances import frechet_distance
from pathline.evals.features import FeatureSpace
from pathline.evals.moments import Moments
from pathline.interpolants import LinearPath
from pathline.samplers import ClassifierFree, Table, plan
from pathline.samplers.analysis import as_spectrum
from pathline.samplers.calibrate import auto, fitters, untuned
from pathline.samplers.calibrate.auto import choose
from pathline.samplers.calibrate.extractor import KEY, Extractor, check_judge, digest_of, fitted_features
from pathline.samplers.calibrate.fitters import FITTERS, FitTask
from pathline.samplers.calibrate.level_search import TEACHER
from pathline.samplers.calibrate.objectives import FeatureDistance, GaussianError, frechet
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


def test_the_same_weights_under_another_name_judge_nothing_either() -> None:
    network, other = (torch.nn.Linear(4, 3).double() for _ in range(2))

    def pooled(images: torch.Tensor) -> torch.Tensor:
        return network(images.flatten(1))

    space = FeatureSpace("mine", "FD (mine)", {}, lambda x: pooled(x).detach().numpy(), pooled, network)
    for features in (network, SpaceFeatures(space)):
        marker = Extractor(features, "mine").marker
        assert marker == {"name": "mine", "weights": digest_of(network.state_dict())}
        table = replace(plan(PATH, "ddim", nfe=2), options={KEY: marker})
        with pytest.raises(ValueError, match="are no evidence"):
            check_judge(table, "effnet-lite0", network)
        check_judge(table, "effnet-lite0", other)
        check_judge(table, "effnet-lite0")


def test_both_tables_on_gits_levels_come_from_one_teacher(tmp_path: Path) -> None:
    def fitted(method: str, folder: Path | None) -> Choice:
        problem = Problem(BED.model, PATH, "velocity")
        return choose(problem, starts(PATH, 12, 4), 4, method=method, hold_out=4, parts=Parts(folder))

    first, second = (t for t in fitted("gits", None).trials if t.tuned)
    assert sorted(t.calls for t in (first, second)) == [4 * 4, 4 * 4 + 8 * TEACHER]
    assert first.table is not None
    assert second.table is not None
    assert first.table.nodes == second.table.nodes
    whole = fitted("gits", tmp_path / "parts")
    judged = hashlib.sha256(b"ipndm-3 on GITS levels").hexdigest()[:16]
    (tmp_path / "parts" / f"{judged}.safetensors").unlink()  # as if it had been interrupted there
    again = fitted("gits", tmp_path / "parts")
    assert [(t.name, t.calls) for t in again.trials] == [(t.name, t.calls) for t in whole.trials]
    assert again.table == whole.table


def test_a_search_is_told_the_spectrum_where_the_run_is_unguided(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[GaussianError | None] = []

    def search(*args: Any, predictor: GaussianError | None, **kwargs: Any) -> Any:
        told.append(predictor)
        raise ValueError("not searched")

    monkeypatch.setattr(fitters, "search_steps", search)
    spectrum = as_spectrum(np.linspace(0.5, 2.0, 4))
    guided = replace(BED, guidance=ClassifierFree(2.0, {}))
    for problem, data in ((BED, spectrum), (BED, None), (guided, spectrum)):
        task = SimpleNamespace(
            problem=problem, nfe=4, analytic=True, spectrum=data, inside="", x_init=None, chunk=None, distance=None,
            file=lambda name: None,
        )  # fmt: skip
        for _, fit in FITTERS["s3"](cast(FitTask, task)):
            with pytest.raises(ValueError, match="not searched"):
                fit()
    assert [given is not None for given in told] == [True, False, False]
    assert told[0] is not None
    assert [s.values.tolist() for s in told[0].spectra] == [s.values.tolist() for s in GaussianError(spectrum).spectra]


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
