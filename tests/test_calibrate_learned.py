"""Learned rows: the linear form of tables, closed-form fits, and what is kept on the hold-out."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pathline.evals.testbeds import make_bed
from pathline.interpolants import DiscretePath, GaussianPath, LinearPath, VPPath
from pathline.samplers import Nodes, Table, build_table, make_nodes, run
from pathline.samplers.bases import CosineBasis
from pathline.samplers.calibrate.bases import in_basis, variance_groups
from pathline.samplers.calibrate.learned import Learned, learn_rows, start_prediction
from pathline.samplers.calibrate.row_fits import Reference, fit_rows, make_reference, mean_error
from pathline.samplers.calibrate.trajectories import BudgetError, Problem, reference_states, root_mean_square
from pathline.samplers.calibrate.triangular import FRAME, execute, triangular
from pathline.samplers.calibrate.untuned import STARTS
from pathline.samplers.nodes import points_at, times_at
from pathline.samplers.numerics import Array

BED = make_bed("mixture")
PATHS: dict[str, GaussianPath] = {"vp": DiscretePath.linear(), "flow": LinearPath()}


Fitted = tuple[Problem, Tensor, Learned]


def problem(path: GaussianPath, prediction: str, count: int, budget: int | None = None) -> Problem:
    labels = torch.arange(count) % BED.classes
    model = BED.target.as_model(path, prediction)
    return Problem(model, path, prediction, model_kwargs={"labels": labels}, budget=budget)


def starts(path: GaussianPath, count: int, seed: int) -> Tensor:
    return path.prior((count, 2, 4, 4), torch.Generator().manual_seed(seed)).double()


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    path = PATHS["vp"]
    given = problem(path, "noise", 48)
    x = starts(path, 48, 1)
    return given, x, learn_rows(given, x, 5, mean=start_prediction(given, x), rounds=2)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ipndm", {"order": 3, "afs": "unit"}),
        ("unipc", {"order": 3}),
        ("ghvb", {"order": 2.5}),
        ("dpm++", {"order": 2, "heavy_ball": 0.9}),
        ("ddim", {"afs": "gaussian"}),
        ("euler", {}),
    ],
)
@pytest.mark.parametrize("name", ["vp", "flow"])
def test_the_triangular_form_is_the_table(name: str, method: str, options: dict[str, Any]) -> None:
    path = PATHS[name]
    table = build_table(method, make_nodes(path, "time", 5), **options)
    model, x = BED.target.as_model(path, "velocity"), starts(path, 3, 0)
    anchors = {"data_mean": torch.full((2, 4, 4), 0.1, dtype=torch.float64)} if table.anchors else {}
    wanted = run(table, model, x, prediction="velocity", anchors=anchors)
    form = triangular(table)
    assert form.calls == table.evaluations
    again = run(form.to_table(), model, x, prediction="velocity", anchors=anchors)
    torch.testing.assert_close(again, wanted, rtol=0, atol=1e-9)
    assert form.to_table().frame == FRAME


def test_stochastic_tables_and_inner_stages_are_refused() -> None:
    nodes = make_nodes(PATHS["vp"], "logsnr", 4)
    with pytest.raises(ValueError, match="draws noise"):
        triangular(build_table("ddpm", nodes))
    with pytest.raises(ValueError, match="increasing levels"):
        triangular(build_table("heun", nodes))


def test_learned_rows_beat_the_base_on_new_noises(fitted: Fitted) -> None:
    given, x, learned = fitted
    assert learned.holdout_error < 0.2 * learned.base_error
    fresh = starts(given.path, 64, 99)
    test = problem(given.path, "noise", 64)
    end = make_reference(test, fresh, {}).end
    mean = start_prediction(test, fresh)

    def typical(out: Tensor) -> float:  # the median: one noise in a hundred ends in another component
        return float((out - end).flatten(1).square().mean(1).sqrt().median())

    plain = [build_table("ipndm", make_nodes(given.path, g, 6), order=2, afs="unit") for g in STARTS]
    untuned = min(typical(test.run(table, fresh)) for table in plain)
    assert typical(test.run(learned.table, fresh, anchors={"data_mean": mean})) < 0.2 * untuned
    assert learned.calls == given.calls - len(x)
    assert learned.table.evaluations == 5


def test_hold_out_error_is_that_of_the_table(fitted: Fitted) -> None:
    given, x, learned = fitted
    held = slice(36, 48)
    end = make_reference(given.part(held, 48), x[held], {}).end
    mean = start_prediction(given, x)[held]
    out = given.part(held, 48).run(learned.table, x[held], anchors={"data_mean": mean}, chunk=5)
    assert math.isclose(mean_error(out - end), learned.holdout_error, rel_tol=1e-6)


def test_a_learned_table_survives_a_file(fitted: Fitted, tmp_path: Path) -> None:
    given, x, learned = fitted
    learned.table.save(tmp_path / "t.json")
    again = Table.load(tmp_path / "t.json")
    mean = {"data_mean": start_prediction(given, x)}
    kwargs = {"prediction": "noise", "model_kwargs": given.model_kwargs, "anchors": mean}
    assert torch.equal(run(again, given, x, **kwargs), run(learned.table, given, x, **kwargs))


def test_the_same_fit_twice(fitted: Fitted) -> None:
    given, x, learned = fitted
    again = learn_rows(given, x, 5, mean=start_prediction(given, x), rounds=2)
    assert again.table.rows == learned.table.rows


def test_vp_and_flow_networks_get_the_same_numbers() -> None:
    def nodes(path: GaussianPath, lam: Array) -> Nodes:
        times = times_at(path, lam)
        signal, noise, _, _ = points_at(path, times)
        return Nodes(np.append(signal, 1.0), np.append(noise, 0.0), np.append(times, 1.0), path)

    dense, levels, ends = np.linspace(-4.0, 5.0, 30), np.array([-4.0, -1.0, 0.4, 2.0]), []
    for path, prediction in ((VPPath(), "noise"), (LinearPath(), "velocity")):
        given, fine = problem(path, prediction, 24), nodes(path, dense)
        x = starts(LinearPath(), 24, 5) * fine.noise[0]
        states = reference_states(given, x, fine, per_step=8)
        reference = Reference(given, x, (), states, fine.lam[:-1], fine)
        base = triangular(build_table("ipndm", nodes(path, levels), order=2))
        ends.append(fit_rows(reference, base, 1e-6)[1])
        assert root_mean_square(ends[-1] - reference.end) < 0.1
    torch.testing.assert_close(*ends, rtol=0, atol=2e-5)


def test_row_weights_are_the_least_squares_solution() -> None:
    path = PATHS["vp"]
    given, x = problem(path, "data", 16), starts(path, 16, 3)
    reference = make_reference(given, x, {})
    base = triangular(build_table("ipndm", make_nodes(path, "karras", 4), order=2, afs="unit"))
    rows, end = fit_rows(reference, base, 1e-12)
    again, columns = execute(rows, reference.predict, reference.columns())
    torch.testing.assert_close(again, end, rtol=0, atol=1e-9)
    matrix = torch.stack([c.reshape(-1) for c in columns], 1)
    solved = torch.linalg.lstsq(matrix, reference.end.reshape(-1)).solution
    best = (matrix @ solved - reference.end.reshape(-1)).square().mean().sqrt()
    assert math.isclose(float(best), root_mean_square(end - reference.end), rel_tol=1e-3)


def test_gradients_through_the_executor_equal_differences() -> None:
    path = PATHS["vp"]
    given, x = problem(path, "noise", 4), starts(path, 4, 4)
    reference = make_reference(given, x, {})
    rows = triangular(build_table("ipndm", make_nodes(path, "karras", 3), order=2))
    weights = [torch.as_tensor(w).requires_grad_() for w in rows.weights]

    def loss(w: list[Tensor]) -> Tensor:
        return (execute(rows, reference.predict, reference.columns(), w)[0] - reference.end).square().mean()

    gradient = torch.autograd.grad(loss(weights)[None], weights, allow_unused=True)
    with torch.no_grad():
        for i in (1, 3):
            moved = [w.clone() for w in weights]
            moved[i][-1] += 1e-5
            above = loss(moved)
            moved[i][-1] -= 2e-5
            difference = float(above - loss(moved)) / 2e-5
            assert math.isclose(float(gradient[i][-1]), difference, rel_tol=1e-5)


def test_an_interrupted_fit_goes_on_with_the_same_result(tmp_path: Path) -> None:
    given, x, made = problem(PATHS["vp"], "noise", 24), starts(PATHS["vp"], 24, 1), 0
    reference, file = make_reference(given, x, {}), tmp_path / "rows.npz"

    def learned(most: float, state: Path | None) -> Learned:
        def model(x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
            nonlocal made
            made += len(x)
            if made > most:
                raise KeyboardInterrupt
            return given.model(x, t, **kwargs)

        own = Problem(model, given.path, "noise", model_kwargs=given.model_kwargs)
        known = replace(reference, problem=own)
        return learn_rows(own, x, 3, groups=(1, 3), rounds=4, reference=known, state=state, grids=["time"])

    whole = learned(math.inf, None)
    entire, made = made, 0
    with pytest.raises(KeyboardInterrupt):
        learned(0.6 * entire, file)
    made = 0
    again = learned(math.inf, file)
    assert made < 0.8 * entire
    assert (again.table, again.holdout_error, again.calls) == (whole.table, whole.holdout_error, whole.calls)
    made = 0
    assert learned(math.inf, file).table == whole.table  # what groups were tried is kept beside it
    assert made < 0.4 * entire
    np.savez(file, key="another")
    with pytest.raises(ValueError, match="not a readable state of a search of levels"):
        learned(math.inf, file)


def test_too_few_trajectories_are_said_and_regularised() -> None:
    path = PATHS["vp"]
    given = problem(path, "noise", 5)
    learned = learn_rows(given, starts(path, 5, 6), 6, holdout=2, rounds=0)
    assert any("3 trajectories" in note for note in learned.notes)
    assert learned.ridge >= 1e-2
    assert learned.holdout_error <= learned.base_error


def test_a_strong_ridge_is_the_base() -> None:
    path = PATHS["vp"]
    given, x = problem(path, "noise", 4), starts(path, 4, 8)
    reference = make_reference(given, x, {})
    base = triangular(build_table("dpm++", make_nodes(path, "logsnr", 4)))
    rows, _ = fit_rows(reference, base, 1e12)
    for fitted_row, exact in zip(rows.weights, base.weights, strict=True):
        np.testing.assert_allclose(fitted_row, exact, atol=1e-9)


def test_bad_input_is_refused_before_any_call() -> None:
    path = PATHS["vp"]
    x = starts(path, 8, 0)
    with pytest.raises(ValueError, match="holdout"):
        learn_rows(problem(path, "noise", 8), x, 4, holdout=8)
    with pytest.raises(ValueError, match="nfe"):
        learn_rows(problem(path, "noise", 8), x, 0)
    with pytest.raises(ValueError, match="groups"):
        learn_rows(problem(path, "noise", 8), x, 4, groups=(0,))
    poor = problem(path, "noise", 8, budget=500)
    with pytest.raises(BudgetError, match="8 reference trajectories"):
        learn_rows(poor, x, 4)
    assert poor.calls == 0


def test_the_cosine_basis_is_orthonormal_and_turns_the_network() -> None:
    basis = CosineBasis()
    x = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(basis.back(basis.to(x)), x, rtol=0, atol=1e-12)
    torch.testing.assert_close(basis.to(x).square().sum(), x.square().sum())
    path = PATHS["vp"]
    given, start = problem(path, "noise", 3), starts(path, 3, 0)
    table = build_table("dpm++", make_nodes(path, "logsnr", 4))
    turned = basis.back(in_basis(given, basis).run(table, basis.to(start)))
    torch.testing.assert_close(turned, given.run(table, start), rtol=0, atol=1e-9)


def test_groups_follow_the_variance() -> None:
    scale = torch.tensor([0.1, 0.1, 1.0, 10.0])
    samples = torch.randn(400, 4, generator=torch.Generator().manual_seed(0)) * scale
    groups = variance_groups(samples, 3)
    assert groups is not None
    assert groups.tolist() == [0, 0, 1, 2]
    assert variance_groups(samples, 1) is None


def test_groups_run_in_their_basis_and_survive_a_file(tmp_path: Path) -> None:
    path = PATHS["vp"]
    given, x = problem(path, "noise", 4), starts(path, 4, 2)
    basis = CosineBasis()
    reference = make_reference(in_basis(given, basis), basis.to(x), {})
    base = triangular(build_table("ipndm", make_nodes(path, "karras", 3), order=2))
    plain, grouped = (base.grouped(g, "cosine") for g in (None, variance_groups(reference.end, 3)))
    errors = [root_mean_square(fit_rows(reference, rows, 1e-9)[1] - reference.end) for rows in (plain, grouped)]
    assert errors[1] < errors[0]
    rows, end = fit_rows(reference, grouped, 1e-9)
    rows.to_table().save(tmp_path / "t.safetensors")
    table = Table.load(tmp_path / "t.safetensors")
    assert table == rows.to_table()
    torch.testing.assert_close(given.run(table, x), basis.back(end), rtol=0, atol=1e-8)
