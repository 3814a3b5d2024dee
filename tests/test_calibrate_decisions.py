"""Steps of different methods in one table, the decision space, and its search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pathline.interpolants import DiscretePath, Gaussian, LinearPath
from pathline.samplers import Nodes, build_table, make_nodes
from pathline.samplers.analysis import transfer
from pathline.samplers.calibrate.decision_search import FoundSteps, Measured, search_steps
from pathline.samplers.calibrate.decisions import Decisions, DecisionSpace, Rule
from pathline.samplers.calibrate.objectives import EndPointError, FeatureDistance, GaussianError, frechet
from pathline.samplers.calibrate.row_fits import trajectory_calls
from pathline.samplers.calibrate.search_state import identity_of
from pathline.samplers.calibrate.splice import splice, taylor
from pathline.samplers.calibrate.trajectories import BudgetError, Problem
from pathline.samplers.frames import residuals
from pathline.samplers.wrappers import WrappedModel
from support.calibration import bed_problem, six_problem, starts

VALUES = 40.0 * np.arange(1, 60) ** -1.6
PATHS = [LinearPath(), DiscretePath.linear()]
RULES = [Rule("ddim"), Rule("ipndm", {"order": 3}), Rule("taylor", {"order": 2})]
SPECTRUM = torch.as_tensor(np.random.default_rng(3).uniform(0.3, 2.0, 8)).numpy()


def moved(nodes: Nodes, method: str, **options: Any) -> float:
    return transfer(build_table(method, nodes, **options), VALUES).rmse


@pytest.mark.parametrize("path", PATHS, ids=["linear", "vp"])
@pytest.mark.parametrize(
    ("method", "options"),
    [("unipc", {"order": 3}), ("unipc", {"form": "noise"}), ("ipndm", {}), ("ghvb", {}), ("dpm++", {"order": 3}),
     ("dc-solver", {"ratios": [1.0, 1.0, 1.2, 0.8, 1.1, 1.0]}), ("unipc-heavy-ball", {})],
)  # fmt: skip
def test_steps_of_one_method_are_that_method(path: Any, method: str, options: dict[str, Any]) -> None:
    nodes = make_nodes(path, "karras", 6)
    table = build_table(method, nodes, **options)
    joined = splice(nodes, [table] * 6)
    np.testing.assert_allclose(transfer(joined, VALUES).gain, transfer(table, VALUES).gain, rtol=0, atol=1e-12)


def test_steps_of_different_methods_are_exact_and_each_its_own() -> None:
    nodes = make_nodes(PATHS[1], "karras", 5)
    parts = [
        build_table("unipc", nodes, order=3),
        build_table("dpm", nodes, order=2),
        build_table("ghvb", nodes),
        taylor(nodes, order=2, points=3, form="noise", corrector=2),
        build_table("ddim", nodes),
    ]
    joined = splice(nodes, parts)
    assert joined.evaluations == 5
    assert residuals(joined).max() < 1e-10
    with pytest.raises(ValueError, match="4 of them"):
        splice(nodes, parts[:4])
    with pytest.raises(ValueError, match="'ddpm' cannot give single steps"):
        splice(nodes, [build_table("ddpm", nodes)] * 5)
    with pytest.raises(ValueError, match="once on each of the 5 nodes"):
        splice(nodes, [build_table("heun", nodes)] * 5)


def test_taylor_steps_hold_the_known_methods() -> None:
    nodes = make_nodes(PATHS[0], "logsnr", 6)
    pairs: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("exp-adams", {"order": 3}, {"order": 3}),
        ("dpm++", {"order": 2}, {"order": 2, "relaxation": "midpoint"}),
        ("dpm", {"order": 2}, {"order": 2, "relaxation": "midpoint", "form": "noise"}),
        ("unipc", {"order": 2, "variant": "exact"}, {"order": 2, "corrector": 2}),
    ]
    for method, options, wanted in pairs:
        error = moved(nodes, method, lower_order_final=False, **options)
        assert abs(transfer(taylor(nodes, **wanted), VALUES).rmse - error) < 1e-12
    different = [transfer(taylor(nodes, **o), VALUES).rmse for o in ({"points": 3}, {"relaxation": 0.1}, {})]
    assert len({round(e, 9) for e in different}) == 3
    for argument, value in (("order", 5), ("points", 1), ("form", "v"), ("relaxation", "x"), ("corrector", -1)):
        with pytest.raises(ValueError, match=f"{argument}={value!r}"):
            taylor(nodes, **{argument: value})


def test_the_free_predictor_is_the_measured_error_on_gaussian_data() -> None:
    path = LinearPath()
    data = Gaussian(np.zeros(8), variance=SPECTRUM)
    # one start per direction, of the size of its standard deviation, makes the sample mean the expectation
    x = path.prior((4000, 8), torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x / x.square().mean(0).sqrt()
    problem = Problem(data.as_model(path, "data"), path)
    ends = data.flow_map(x, (0.0, 1.0), (1.0, 0.0))
    space = DecisionSpace(path, 4, rules=RULES)
    rng, free = np.random.default_rng(0), GaussianError(SPECTRUM)
    tables = [space.table(space.random(rng)) for _ in range(12)]
    measured = [float((problem.run(t, x) - ends).square().mean().sqrt()) for t in tables]
    predicted = [free(t) for t in tables]
    assert problem.calls == 12 * 4 * 4000
    np.testing.assert_allclose(predicted, measured, rtol=1e-9)
    assert np.argsort(predicted).tolist() == np.argsort(measured).tolist()


def found(tmp: Path | None = None, problem: Problem | None = None, **options: Any) -> FoundSteps:
    path = LinearPath()
    given = problem or bed_problem(path, 64)
    space = DecisionSpace(path, 4, rules=RULES)
    asked = {"holdout": 32, "stages": 2, "evaluations": 12, "seed": 3, "state": tmp} | options
    return search_steps(given, starts(path, 64, seed=0), 4, space=space, **asked)


def test_the_search_beats_untuned_runs_and_counts_its_calls() -> None:
    problem, seen = bed_problem(LinearPath(), 64), list[Measured]()
    run = found(problem=problem, report=seen.append)
    assert run.holdout_error < 0.9 * run.base_error
    assert run.calls == problem.calls == seen[-1].calls
    assert run.table.evaluations == 4
    assert run.table.provenance["holdout_error"] == run.holdout_error
    assert len({m.stage for m in seen}) == 4  # untuned, two stages, hold-out


class _StopError(Exception):
    """Raised by the report to end a search early."""


def test_an_interrupted_search_goes_on_with_the_same_result(tmp_path: Path) -> None:
    whole = found(tmp_path / "whole.json")
    state = tmp_path / "cut.json"

    def interrupt(measured: Measured) -> None:
        if measured.stage == 1:
            raise _StopError

    with pytest.raises(_StopError):
        found(state, report=interrupt)
    kept = len(json.loads(state.read_text())["measured"])
    again = found(state)
    assert (again.decisions, again.holdout_error, again.calls) == (whole.decisions, whole.holdout_error, whole.calls)
    assert again.table.rows == whole.table.rows
    assert kept == 13
    assert json.loads(state.read_text()) == json.loads((tmp_path / "whole.json").read_text())
    with pytest.raises(ValueError, match="another search: holdout, evaluations, seed"):
        found(state, seed=4)
    state.write_text("{")
    with pytest.raises(ValueError, match="not a readable search state"):
        found(state)


def test_what_is_known_costs_nothing(tmp_path: Path) -> None:
    first = found(tmp_path / "s.json")
    made = 0

    class Counting(Problem):
        def __call__(self, x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
            nonlocal made
            made += len(x)
            return super().__call__(x, t, **kwargs)

    plain = bed_problem(LinearPath(), 64)
    again = found(tmp_path / "s.json", problem=Counting(plain.model, plain.path, plain.prediction))
    assert again.calls == first.calls
    assert made == 64 * trajectory_calls(plain) + 2 < first.calls  # the references, and what tells the network


def test_a_state_is_of_one_network_and_one_objective(tmp_path: Path) -> None:
    state, x = tmp_path / "s.json", starts(LinearPath(), 64, seed=0)
    space = DecisionSpace(LinearPath(), 4, rules=RULES)
    target = starts(LinearPath(), 20, seed=5)

    def go(problem: Problem, name: str = "effnet", target: Tensor = target) -> FoundSteps:
        def distance(part: Problem, x: Tensor) -> FeatureDistance:
            return FeatureDistance(part, x, lambda out: out, target, name=name)

        return search_steps(problem, x, 4, space=space, stages=0, evaluations=4, state=state, objective=distance)

    plain = bed_problem(LinearPath(), 64)
    first = go(plain)
    assert go(bed_problem(LinearPath(), 64)).holdout_error == first.holdout_error
    other = Problem(lambda x, t, **given: 0.99 * plain.model(x, t, **given), plain.path, plain.prediction)
    for differs, problem, changed in (
        ("weights", other, {}),
        ("objective", plain, {"name": "vgg"}),
        ("objective", plain, {"target": target + 1e-3}),
    ):
        with pytest.raises(ValueError, match=f"another search: {differs} differ"):
            go(problem, **changed)
    networks = [torch.nn.Linear(target.shape[1], target.shape[1], dtype=torch.float64) for _ in range(2)]
    told = [identity_of(Problem(WrappedModel(lambda x, t: x, plain.path, "data"), plain.path), x)["weights"]]
    for network in (*networks, networks[0]):
        wrapped = WrappedModel(network, plain.path, "data")
        problem = Problem(wrapped, plain.path)
        told.append(identity_of(problem, x)["weights"])
        assert problem.calls == 0
    assert told[1] == told[3]
    assert len({str(each) for each in told}) == 3


def test_other_objectives() -> None:
    run = found(objective="trajectory")
    assert run.holdout_error <= run.base_error
    target = starts(LinearPath(), 200, seed=5)

    def distance(problem: Problem, x: Tensor) -> FeatureDistance:
        return FeatureDistance(problem, x, lambda out: out, target)

    run = found(objective=distance, predictor=GaussianError(SPECTRUM), stages=1)
    assert run.holdout_error <= run.base_error
    assert run.table.provenance["objective"] == "distance of features"


def test_the_frechet_distance_is_the_closed_form() -> None:
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.randn(40, 5, generator=rng, dtype=torch.float64) * s + s for s in (1.0, 2.0))
    first, second = torch.cov(a.T), torch.cov(b.T)
    values = torch.linalg.eigvals(first @ second).real.clamp(min=0).sqrt().sum()
    wanted = (a.mean(0) - b.mean(0)).square().sum() + first.trace() + second.trace() - 2 * values
    assert abs(frechet(a, b) - float(wanted)) < 1e-10
    assert abs(frechet(a, a)) < 1e-10


def test_bad_input_is_refused_before_any_call() -> None:
    path = LinearPath()
    problem, x = six_problem(path, 8), starts(path, 8, 8)
    for options, message in (
        ({"holdout": 8}, "holdout=8"),
        ({"stages": -1}, "stages=-1"),
        ({"objective": "fid"}, "objective"),
        ({"space": DecisionSpace(path, 5, rules=RULES)}, "space is one of 5 calls"),
    ):
        with pytest.raises(ValueError, match=message):
            search_steps(problem, x, 4, **options)
    with pytest.raises(BudgetError, match="8 references"):
        search_steps(six_problem(path, 8, budget=50), x, 4)
    with pytest.raises(ValueError, match="nfe=0"):
        DecisionSpace(path, 0)
    with pytest.raises(ValueError, match="afs='gaussian'"):
        DecisionSpace(path, 4, afs=("gaussian",))
    with pytest.raises(ValueError, match="ordr"):
        Rule("ipndm", {"ordr": 2})
    with pytest.raises(ValueError, match="3 rules and 2 levels"):
        DecisionSpace(path, 4, rules=RULES).table(Decisions((0.0, 1.0), (0, 0, 0)))
    with pytest.raises(ValueError, match="target"):
        FeatureDistance(problem, x, lambda out: out, torch.zeros(1, 3))
    assert problem.calls == 0
    assert EndPointError(problem, x, x).samples == 8


def test_the_budget_ends_a_search_that_still_judges() -> None:
    poor = bed_problem(LinearPath(), 64, budget=64 * 175 + 1800)
    run = found(problem=poor)
    assert poor.calls <= poor.budget if poor.budget else False
    assert run.holdout_error <= run.base_error
    assert any("budget ended" in note for note in run.notes)
