"""IIA: weights by least squares, the tables they make, and what they gain on noises never fitted."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pathline.interpolants import GaussianPath, LinearPath, VPPath
from pathline.samplers import Table, build_table, make_nodes, residuals, run
from pathline.samplers.calibrate.integration import fit_integration, ridge_weights, step_features, with_features
from pathline.samplers.calibrate.trajectories import BudgetError, mean_error, reference_states
from support.calibration import BED, bed_problem, starts


@pytest.mark.parametrize(
    ("path", "base", "features", "gain"),
    [
        (VPPath(), "ddim", "differences", 0.6),
        (LinearPath(), "ddim", "differences", 0.6),
        (LinearPath(), "dpm++", "differences", 0.9),
        (VPPath(), "ipndm", "differences", 0.95),
        (VPPath(), "dpm++", "noise", 0.95),
        (LinearPath(), "ddim", "differences+noise", 0.6),
        (VPPath(), "heun", "slopes", 0.6),
        (LinearPath(), "heun", "mean-slope", 0.8),
    ],
    ids=lambda v: getattr(v, "name", v),
)
def test_weights_lower_the_error_on_noises_never_fitted(
    path: GaussianPath, base: str, features: str, gain: float
) -> None:
    x = starts(path, 96)
    fit = fit_integration(
        bed_problem(path, 96), make_nodes(path, "karras", 6), x, base=base, features=features, hold_out=64
    )
    assert fit.hold_out is not None
    assert fit.hold_out[1] < gain * fit.hold_out[0]
    assert all(after <= before * (1 + 1e-9) for before, after in fit.residuals)
    exact = fit.table.frame == "point_mass"
    assert exact == (features == "differences")
    assert (residuals(fit.table).max() < 1e-9) == exact
    again = bed_problem(path, 96).part(slice(32, 96), 96).run(fit.table, x[32:])
    end = reference_states(bed_problem(path, 96), x, make_nodes(path, "karras", 6))[-1, 32:]
    assert mean_error(again - end) == pytest.approx(fit.hold_out[1], rel=1e-6)


@pytest.mark.parametrize("target", ["trajectory", "restart"])
def test_the_fit_walks_the_very_states_of_its_table(target: str) -> None:
    path = VPPath()
    nodes, x = make_nodes(path, "time", 5), starts(path, 12)
    for base in ("ddim", "heun"):
        fit = fit_integration(bed_problem(path, 12), nodes, x, base=base, target=target)
        end = run(fit.table, BED.as_model(path, "data"), x)
        assert isinstance(end, Tensor)
        error = mean_error(end - reference_states(bed_problem(path, 12), x, nodes)[-1])
        assert error == pytest.approx(fit.train[1], rel=1e-9)


def test_ddim_with_weights_on_differences_is_the_general_two_step_method() -> None:
    """The second-order method is among them, so that any base with these features leads to the same states."""
    path = VPPath()
    nodes, x = make_nodes(path, "time", 6), starts(path, 24)
    ends = [
        run(fit_integration(bed_problem(path, 24), nodes, x, base=b, ridge=0.0).table, BED.as_model(path, "data"), x)
        for b in ("ddim", "dpm++")
    ]
    torch.testing.assert_close(*ends, rtol=0, atol=1e-7)


def test_features_are_what_their_names_say() -> None:
    path = LinearPath()
    nodes = make_nodes(path, "time", 4)
    one = build_table("ddim", nodes)
    counts = {
        (kind, history): [len(step) for step in step_features(one, kind, history)]
        for kind, history in (("differences", 1), ("differences", 2), ("noise", 1), ("differences+noise", 1))
    }
    assert counts == {
        ("differences", 1): [0, 2, 2, 2],
        ("differences", 2): [0, 2, 4, 4],
        ("noise", 1): [1, 1, 1, 1],
        ("differences+noise", 1): [1, 3, 3, 3],
    }
    heun = build_table("heun", nodes, variant="sigma")
    assert [len(step) for step in step_features(heun, "slopes", 1)] == [1, 3, 4, 3]
    assert [len(step) for step in step_features(heun, "mean-slope", 0)] == [1, 1, 1, 1]
    # a base in noise form has the same differences
    model, x = BED.as_model(path, "data"), starts(path, 3)
    weights = [[], [0.1, -0.2], [0.3, 0.1], [0.2, 0.1]]
    ends = []
    for table in (one, build_table("ipndm", nodes, order=1)):
        ends.append(run(with_features(table, step_features(table, "differences", 1), weights), model, x))
    torch.testing.assert_close(*ends, rtol=0, atol=1e-10)
    assert not torch.allclose(ends[0], run(one, model, x), atol=1e-2)  # type: ignore[arg-type]


def test_zero_weights_are_the_base() -> None:
    table = build_table("ddim", make_nodes(VPPath(), "time", 3))
    features = step_features(table, "noise", 0)
    assert with_features(table, features, [[0.0]] * 3) == table


def test_ridge_weights_solve_least_squares_and_bear_collinear_features() -> None:
    rng = torch.Generator().manual_seed(0)
    q = [torch.randn(40, 3, generator=rng, dtype=torch.float64) for _ in range(3)]
    target = 0.5 * q[0] - 2.0 * q[1] + 3.0 * q[2]
    np.testing.assert_allclose(ridge_weights(q, target, 0.0), [0.5, -2.0, 3.0], rtol=1e-9)
    twice = ridge_weights([q[0], q[0] * 1e3], q[0], 1e-6)
    assert np.isfinite(twice).all()
    assert twice[0] + 1e3 * twice[1] == pytest.approx(1.0, abs=1e-5)
    assert ridge_weights([torch.zeros(2, 3)], torch.ones(2, 3), 1e-6) == pytest.approx(0.0)


def test_the_cost_is_counted() -> None:
    path = VPPath()
    nodes, x = make_nodes(path, "time", 5), starts(path, 12)
    fit = fit_integration(bed_problem(path, 12), nodes, x, hold_out=4)
    assert fit.calls["fit"] == 5 * 8
    assert fit.calls["check"] == 5 * 8 + 2 * 5 * 4
    references = reference_states(bed_problem(path, 12), x, nodes)
    given = fit_integration(bed_problem(path, 12), nodes, x, references=references, hold_out=4)
    assert (given.calls["reference"], given.weights) == (0, fit.weights)
    restarted = fit_integration(bed_problem(path, 12), nodes, x, references=references, target="restart", per_step=4)
    assert restarted.calls["fit"] > 4 * 5 * 12


def test_a_guided_fit_is_the_same_in_chunks_and_survives_a_file(tmp_path: Path) -> None:
    path = VPPath()
    nodes, x = make_nodes(path, "karras", 6), starts(path, 40)
    fits = [fit_integration(bed_problem(path, 40, 3.0), nodes, x, hold_out=8, chunk=c) for c in (None, 7)]
    for ours, theirs in zip(fits[0].weights, fits[1].weights, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-9)
    fits[0].table.save(tmp_path / "iia.json")
    assert Table.load(tmp_path / "iia.json") == fits[0].table


def test_the_last_step_may_be_left_as_it_is() -> None:
    path = VPPath()
    nodes, x = make_nodes(path, "time", 4), starts(path, 12)
    fit = fit_integration(bed_problem(path, 12), nodes, x, last_step=False)
    assert fit.weights[0] == ()
    assert fit.weights[-1] == (0.0, 0.0)
    assert all(fit.weights[1:-1])


def test_what_cannot_be_fitted_is_refused_before_any_call() -> None:
    path = VPPath()
    nodes, x = make_nodes(path, "time", 5), starts(path, 12)
    for options, message in (
        ({"features": "slope"}, "did you mean 'slopes'"),
        ({"target": "x"}, "target 'x'"),
        (
            {"features": "slopes"},
            "features='slopes' is not possible with base='ddim'; allowed: differences, noise, differences.noise",
        ),
        ({"base": "heun", "features": "noise"}, "allowed: slopes, mean-slope"),
        ({"history": 0}, "history=0 is not possible; it must be at least 1"),
        ({"ridge": -1.0}, "ridge=-1.0"),
        ({"base": "unipc"}, "corrects its states"),
        ({"base": "dpm++-sde"}, "deterministic method"),
        ({"hold_out": -1}, "hold_out=-1"),
    ):
        one = bed_problem(path, 12)
        with pytest.raises(ValueError, match=message):
            fit_integration(one, nodes, x, **options)  # type: ignore[arg-type]
        assert one.calls == 0
    one = bed_problem(LinearPath(), 12)
    with pytest.raises(ValueError, match="a base that stores velocity"):
        fit_integration(one, make_nodes(LinearPath(), "time", 4), x, base="euler")
    assert one.calls == 0
    short = bed_problem(path, 12, budget=50)
    with pytest.raises(BudgetError, match="the fit of IIA weights needs 60"):
        fit_integration(short, nodes, x, references=reference_states(bed_problem(path, 12), x, nodes))
    assert short.calls == 0
