"""Rows, levels and labels trained by gradients: exact derivatives, what is kept on the hold-out, and extractors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pathline.evals.sweep as sweep
from pathline.evals.settings import SweepSettings
from pathline.evals.testbeds import make_bed
from pathline.interpolants import DiscretePath, GaussianPath, LinearPath, VPPath
from pathline.samplers import Table, run
from pathline.samplers.calibrate.descent import Learner, Schedule
from pathline.samplers.calibrate.extractor import KEY, Extractor, check_judge, fitted_features
from pathline.samplers.calibrate.gradient import Trained, train_rows, whitened
from pathline.samplers.calibrate.row_fits import Reference, make_reference, mean_error
from pathline.samplers.calibrate.student import Student, expand, walk
from pathline.samplers.calibrate.trajectories import BudgetError, Problem

BED = make_bed("mixture")
NETWORKS: dict[str, tuple[GaussianPath, str]] = {"vp": (VPPath(), "noise"), "flow": (LinearPath(), "velocity")}


def problem(name: str, count: int, budget: int | None = None) -> Problem:
    path, prediction = NETWORKS[name]
    labels = torch.arange(count) % BED.classes
    model = BED.target.as_model(path, prediction)
    return Problem(model, path, prediction, model_kwargs={"labels": labels}, budget=budget)


def starts(path: GaussianPath, count: int, seed: int) -> Tensor:
    return path.prior((count, 2, 4, 4), torch.Generator().manual_seed(seed)).double()


def made(name: str, count: int, seed: int) -> tuple[Problem, Tensor, Reference]:
    given = problem(name, count)
    x = starts(given.path, count, seed)
    return given, x, make_reference(given, x, {})


@pytest.fixture(scope="module")
def vp() -> tuple[Problem, Tensor, Reference]:
    return made("vp", 32, 1)


@pytest.fixture(scope="module")
def trained(vp: tuple[Problem, Tensor, Reference]) -> Trained:
    given, x, reference = vp
    return train_rows(given, x, 5, rounds=6, reference=reference)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ipndm", {"order": 3, "afs": "unit"}),
        ("unipc", {"order": 3}),
        ("heun", {}),
        ("dpm-single", {"order": 2}),
        ("dc-solver", {"ratios": 1.1}),
        ("euler", {"afs": "gaussian"}),
    ],
)
@pytest.mark.parametrize("name", ["vp", "flow"])
def test_numbers_are_the_table(name: str, method: str, options: dict[str, Any]) -> None:
    given = problem(name, 3)
    student = Student.make(given, 4, method, options, "karras")
    x, anchors = starts(given.path, 3, 0), {}
    if student.table.anchors:
        anchors = {"data_mean": torch.full_like(x, 0.1)}
    numbers = student.traced(torch.from_numpy(student.start), torch.zeros(student.calls))
    result, states, _ = walk(numbers, given, [x, *anchors.values()])
    torch.testing.assert_close(result, given.run(student.table, x, anchors=anchors), rtol=0, atol=1e-9)
    assert len(states) == student.table.evaluations == student.calls
    again = student.with_rows(student.table, expand(student.table), {})
    torch.testing.assert_close(given.run(again, x, anchors=anchors), result, rtol=0, atol=1e-9)


FEATURES = Extractor(lambda x: [torch.tanh(x), x.flatten(1)[:, ::2] ** 2], "toy")


@pytest.mark.parametrize(
    ("name", "method", "loss", "extractor"),
    [
        ("vp", "ipndm", "end", None),
        ("vp", "dpm-single", "log", None),
        ("flow", "unipc", "trajectory", None),
        ("flow", "ipndm", "end", FEATURES),
    ],
)
def test_gradients_equal_finite_differences(name: str, method: str, loss: str, extractor: Extractor | None) -> None:
    given, x, reference = made(name, 4, 4)
    student = Student.make(given, 4, method, {"order": 2}, "logsnr")
    with torch.no_grad():
        numbers = student.traced(torch.from_numpy(student.start), torch.zeros(student.calls))
        columns = walk(numbers, given, [x])[2]
    names = ("rows", "levels", "labels")
    learner = Learner(student, reference, reference, names, loss, extractor, whitened(student, columns))
    rows, generator = torch.arange(4), torch.Generator().manual_seed(0)
    for key, values in learner.parameters.items():
        noise = torch.randn(values.shape, generator=generator, dtype=torch.float64)
        learner.parameters[key] = values + {"rows": 0.01, "levels": 0.1, "labels": 0.3}[key] * noise
    _, found, _ = learner.gradients(rows, names, None)

    def value() -> float:
        return float(learner.losses(learner.numbers(), reference, rows).mean())

    step = 1e-4
    with torch.no_grad():
        for key, gradient in zip(names, found, strict=True):
            for k in range(len(gradient) - 1, 0, -4):
                kept, seen = learner.parameters[key].clone(), []
                for far in (-2, -1, 1, 2):
                    learner.parameters[key] = kept + far * step * torch.eye(len(kept), dtype=torch.float64)[k]
                    seen.append(value())
                learner.parameters[key] = kept
                difference = (seen[0] - 8 * seen[1] + 8 * seen[2] - seen[3]) / (12 * step)
                assert math.isclose(float(gradient[k]), difference, rel_tol=1e-6, abs_tol=1e-7), (key, k)


def test_training_lowers_the_error_also_on_new_noises(vp: tuple[Problem, Tensor, Reference], trained: Trained) -> None:
    assert trained.holdout_error < 0.35 * trained.base_error
    fresh, y, reference = made("vp", 24, 77)
    base = Student.make(fresh, 5, "ipndm", {"order": 2}, "karras").table
    gaps = [(fresh.run(table, y) - reference.end).flatten(1).norm(dim=1) for table in (trained.table, base)]
    errors = [float(gap.median()) for gap in gaps]  # one noise in a hundred ends in another component
    assert errors[0] < 0.5 * errors[1]
    assert trained.table.evaluations == 5
    assert trained.table.frame.startswith("none")


def test_the_hold_out_error_is_that_of_the_table_and_of_its_file(
    vp: tuple[Problem, Tensor, Reference], trained: Trained, tmp_path: Path
) -> None:
    given, x, reference = vp
    held = slice(24, 32)
    trained.table.save(tmp_path / "t.json")
    part = given.part(held, 32)
    kwargs = {"prediction": "noise", "model_kwargs": part.model_kwargs}
    out = run(Table.load(tmp_path / "t.json"), part, x[held], **kwargs)
    assert math.isclose(mean_error(out - reference.end[held]), trained.holdout_error, rel_tol=1e-9)
    assert trained.table.provenance["holdout_error"] == trained.holdout_error
    assert trained.table.provenance["base_error"] == trained.base_error


def test_the_same_training_twice(vp: tuple[Problem, Tensor, Reference]) -> None:
    given, x, reference = vp
    first, second, other = (
        train_rows(given, x, 3, rounds=1, batch=12, grids=("karras",), reference=reference, seed=seed)
        for seed in (0, 0, 1)
    )
    assert first.table == second.table
    assert first.table.rows != other.table.rows


def test_chunks_change_nothing(vp: tuple[Problem, Tensor, Reference]) -> None:
    given, x, reference = vp
    student = Student.make(given, 3, "ipndm", {}, "karras")
    found = []
    for chunk in (None, 3):
        learner = Learner(student, replace(reference, chunk=chunk), reference, ("levels", "labels"))
        found.append(learner.gradients(torch.arange(8), ("levels", "labels"), torch.zeros_like(x)))
    for a, b in zip((found[0][0], *found[0][1], found[0][2]), (found[1][0], *found[1][1], found[1][2]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_without_rounds_or_gain_the_base_is_returned(vp: tuple[Problem, Tensor, Reference]) -> None:
    given, x, reference = vp
    base = Student.make(given, 5, "ipndm", {"order": 2}, "karras").table
    for settings in ({"rounds": 0}, {"parts": ()}):
        kept = train_rows(given, x, 5, grids=("karras",), reference=reference, **settings)  # type: ignore[arg-type]
        assert kept.table.released() == base
        assert kept.table.provenance["name"] == "gs"
        assert kept.holdout_error == kept.base_error
    exact = replace(reference, states=torch.cat([reference.states[:-1], given.run(base, x)[None]]))
    kept = train_rows(given, x, 5, grids=("karras",), rounds=1, reference=exact)
    assert kept.table.released() == base
    assert kept.table.provenance["path"] == repr(given.path)
    assert any("the base is kept" in note for note in kept.notes)


def test_an_interrupted_descent_goes_on_with_the_same_result(
    vp: tuple[Problem, Tensor, Reference], tmp_path: Path
) -> None:
    given, x, reference = vp
    made, file = 0, tmp_path / "state.pt"

    def trained(most: float, state: Path | None, seed: int = 0) -> Trained:
        def model(x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
            nonlocal made
            made += len(x)
            if made > most:
                raise KeyboardInterrupt
            return given.model(x, t, **kwargs)

        own = replace(given, model=model, _meter=type(given._meter)())
        return train_rows(
            own, x, 4, grids=("karras",), radius=0.5, rounds=4, seed=seed, state=state,
            reference=replace(reference, problem=own),
        )  # fmt: skip

    whole = trained(math.inf, None)
    entire, made = made, 0
    with pytest.raises(KeyboardInterrupt):
        trained(0.8 * entire, file)
    made = 0
    again = trained(math.inf, file)
    assert made < 0.6 * entire
    assert (again.table, again.course, again.calls) == (whole.table, whole.course, whole.calls)
    with pytest.raises(ValueError, match="belongs to a descent of other starts, settings"):
        trained(math.inf, file, seed=1)
    file.write_bytes(b"broken")
    with pytest.raises(ValueError, match="not a readable state"):
        trained(math.inf, file)


def test_calls_are_counted_and_the_budget_ends_the_training(vp: tuple[Problem, Tensor, Reference]) -> None:
    _, x, reference = vp
    poor = problem("vp", 32, budget=800)
    found = train_rows(poor, x, 4, rounds=50, batch=12, reference=reference)
    assert found.calls == poor.calls <= 800
    assert any("budget" in note for note in found.notes)
    assert found.holdout_error < found.base_error
    with pytest.raises(BudgetError, match="32 reference trajectories and one round"):
        train_rows(problem("vp", 32, budget=1500), x, 5)


def test_relaxed_starts_stay_in_their_ball_and_only_improve(vp: tuple[Problem, Tensor, Reference]) -> None:
    given, x, reference = vp
    learner = Learner(Student.make(given, 4, "ipndm", {}, "karras"), reference, reference, ("levels",))
    rows, shift, radius = torch.arange(0, 32, 2), torch.zeros_like(x), 0.3
    first = None
    for _ in range(6):
        before, _, moves = learner.gradients(rows, ("levels",), shift)
        first = before if first is None else first
        learner.relax(rows, shift, before, moves, radius)
    after = learner.gradients(rows, ("levels",), shift)[0]
    assert first is not None
    assert bool((after <= first).all())
    assert float(after.mean()) < 0.9 * float(first.mean())
    norms = shift.flatten(1).norm(dim=1)
    assert float(norms.max()) <= radius * (1 + 1e-9)
    assert float(norms[1::2].max()) == 0.0


def test_too_few_trajectories_are_said_and_drawn_to_the_base(vp: tuple[Problem, Tensor, Reference]) -> None:
    given, x, reference = vp
    some = replace(reference, start=x[:6], states=reference.states[:, :6])
    found = train_rows(given.part(slice(0, 6), 32), x[:6], 6, holdout=2, rounds=1, batch=4, reference=some)
    assert any("4 trajectories" in note for note in found.notes)
    assert found.holdout_error <= found.base_error


def test_bad_input_is_refused_before_any_call(vp: tuple[Problem, Tensor, Reference]) -> None:
    _, x, reference = vp
    given = problem("vp", 32)
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("nfe=0", {"nfe": 0}),
        ("batch=0", {"batch": 0}),
        ("holdout=32", {"holdout": 32}),
        ("part 'row'", {"parts": ("row",)}),
        ("loss 'mse'", {"loss": "mse"}),
        ("draws noise", {"method": "ddpm"}),
        ("NaN", {"reference": replace(reference, states=reference.states * torch.nan)}),
        ("other starts", {"reference": replace(reference, start=x + 1)}),
        ("takes no mean", {"mean": torch.zeros(())}),
        ("needs mean", {"options": {"afs": "gaussian"}}),
    ]
    for message, options in wrong:
        with pytest.raises(ValueError, match=message):
            train_rows(given, x, **{"nfe": 4, **options})
    assert given.calls == 0


def test_discrete_schedules_and_guided_anchors_train_too() -> None:
    path = DiscretePath.linear()
    given = Problem(BED.target.as_model(path, "noise"), path, "noise", model_kwargs={"labels": torch.arange(8) % 4})
    afs = {"order": 2, "afs": "gaussian"}
    found = train_rows(given, starts(path, 8, 2), 4, options=afs, mean=torch.zeros(2, 4, 4), rounds=3, batch=3)
    assert found.holdout_error < 0.8 * found.base_error


def test_features_are_fitted_and_may_not_judge(vp: tuple[Problem, Tensor, Reference], tmp_path: Path) -> None:
    given, x, reference = vp
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(32, 8)).double()
    extractor = Extractor(network, "effnet-lite0")
    found = train_rows(given, x, 4, extractor=extractor, rounds=2, batch=6, grids=("karras",), reference=reference)
    assert found.feature_errors is not None
    assert found.feature_errors[0] < 0.7 * found.feature_errors[1]
    found.table.save(tmp_path / "t.json")
    for table in (found.table, Table.load(tmp_path / "t.json"), found.table.released()):
        assert fitted_features(table) == "effnet-lite0"
        with pytest.raises(ValueError, match="fitted with the feature extractor 'effnet-lite0'"):
            check_judge(table, "effnet-lite0")
        check_judge(table, "inception")
    assert len(found.table.provenance[KEY]["weights"]) == 16
    assert fitted_features(replace(found.table, provenance={}, options={})) is None


def test_a_sweep_refuses_features_that_a_table_was_fitted_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: Trained
) -> None:
    marked = replace(trained.table, options={KEY: {"name": "pca"}})
    monkeypatch.setattr(sweep, "table_of", lambda source, cell: marked)
    settings = SweepSettings(source="bed:mixture", methods=("ddim",), nfe=(4,), samples=64, features="pca:8")
    with pytest.raises(ValueError, match="feature extractor 'pca'"):
        sweep.run_sweep(settings, tmp_path / "records.jsonl", progress=False)


def test_extractors_are_checked() -> None:
    with pytest.raises(ValueError, match="a function and a name"):
        Extractor(lambda x: x, " ")

    def single(x: Tensor) -> Sequence[Tensor]:
        return [x.mean()]

    with pytest.raises(ValueError, match="for 3 samples"):
        Extractor(single, "bad").of(torch.zeros(3, 2))


def test_a_descent_without_progress_lowers_its_rates_and_ends(vp: tuple[Problem, Tensor, Reference]) -> None:
    given, _, reference = vp
    student = Student.make(given, 3, "ipndm", {}, "karras")
    learner = Learner(student, reference, reference, ("levels",))
    start = learner.parameters["levels"].clone()
    learner.descend(Schedule([(60, ("levels",))], {"levels": 1e3}, batch=24, patience=0, decay=0.5))
    assert len(learner.course) == 4
    torch.testing.assert_close(learner.parameters["levels"], start, rtol=0, atol=0)
    assert np.argmin([entry[0] for entry in learner.course]) == 0
