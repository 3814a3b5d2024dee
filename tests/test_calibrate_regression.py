"""Cascade polynomial regression: the released coefficients, the released prediction, and fits."""

import numpy as np
import pytest

from pathline.interpolants import DiscretePath
from pathline.samplers import build_table, make_nodes
from pathline.samplers.calibrate.regression import Searched, fit_ratios
from pathline.samplers.compensation import SD21_RATIOS, CascadeRegression
from support.golden_options import FOLDER


@pytest.mark.parametrize(
    ("guidance", "ratios"),
    [
        (7.5, (1.0271, 0.7392, 1.2263)),
        (7.5, (1.0195, 0.9422, 0.7517, 1.2131)),
        (7.5, (0.4446, 0.8980, 1.0628, 1.0426, 0.9408, 0.8610, 0.9068, 1.1816)),
        (1.5, (0.9098, 1.1564, 1.3079)),
    ],
)
def test_released_coefficients_predict_the_published_ratios(guidance: float, ratios: tuple[float, ...]) -> None:
    found = SD21_RATIOS.predict(len(ratios) + 2, guidance)
    np.testing.assert_allclose(found, [1.0, 1.0, *ratios], atol=5.1e-5)
    nodes = make_nodes(DiscretePath.scaled_linear(), "linspace", len(found))
    named, given = (build_table("dc-solver", nodes, ratios=r, guidance_scale=guidance) for r in ("sd2.1", tuple(found)))
    assert named.rows == given.rows


def test_predictions_are_those_of_the_released_code() -> None:
    stored = np.load(FOLDER / "dcsolver_cpr_predict.npz")
    coefficients = tuple(tuple(tuple(row) for row in block) for block in stored["coeffs"].tolist())
    regression = CascadeRegression(coefficients, nfe=(1, 50), guidance=(0.0, 20.0))
    for (guidance, nfe), expected in zip(stored["queries"], stored["sample"], strict=True):
        found = regression.predict(int(nfe), float(guidance))
        np.testing.assert_allclose(found, expected[: int(nfe)], atol=1e-12)
        assert (expected[int(nfe) :] == -1).all()


def test_outside_the_fitted_range_the_nearest_fit_is_used() -> None:
    np.testing.assert_array_equal(SD21_RATIOS.predict(5, 40.0), SD21_RATIOS.predict(5, 12.0))
    late = SD21_RATIOS.predict(60, 7.5)
    assert np.abs(late - 1).max() < 1.0  # extrapolated in NFE it would reach hundreds
    np.testing.assert_allclose(late[8::3], SD21_RATIOS.predict(20, 7.5)[2:], rtol=1e-12)


def searched(regression: CascadeRegression, budgets: tuple[int, ...], scales: tuple[float, ...]) -> list[Searched]:
    return [Searched(n, g, regression.predict(n, g).tolist()) for n in budgets for g in scales]


def test_a_fit_recovers_the_regression_that_made_its_ratios() -> None:
    pairs = searched(SD21_RATIOS, (5, 6, 8, 10, 15, 20), (1.5, 4.5, 7.5, 12.0))
    fit = fit_ratios(pairs, ridge=0.0)
    assert fit.residual < 1e-8
    for nfe, guidance in ((7, 3.0), (12, 9.0), (18, 6.0)):
        np.testing.assert_allclose(fit.regression.predict(nfe, guidance), SD21_RATIOS.predict(nfe, guidance), atol=1e-6)


def test_what_a_left_out_budget_errs_by_is_reported() -> None:
    pairs = searched(SD21_RATIOS, (5, 6, 8, 10, 15, 20), (1.5, 4.5, 7.5, 12.0))
    noisy = np.random.default_rng(0)
    rough = [Searched(p.nfe, p.guidance, (np.array(p.ratios) + noisy.normal(0, 0.05, p.nfe)).tolist()) for p in pairs]
    fit = fit_ratios(rough)
    assert 0.02 < fit.residual < 0.08
    assert fit.left_out > fit.residual


def test_few_budgets_and_scales_lower_the_degrees() -> None:
    only = fit_ratios(searched(SD21_RATIOS, (8,), (7.5,)))
    assert np.shape(only.regression.coefficients) == (4, 1, 1)
    assert np.isnan(only.left_out)
    np.testing.assert_allclose(only.regression.predict(8, 7.5), SD21_RATIOS.predict(8, 7.5), atol=1e-4)
    two = fit_ratios(searched(SD21_RATIOS, (6, 10), (1.5, 7.5)))
    assert np.shape(two.regression.coefficients) == (4, 2, 2)


def test_bad_input_is_refused_with_its_name() -> None:
    with pytest.raises(ValueError, match="nfe=4 with ratios="):
        fit_ratios([Searched(4, 1.0, (1.0, 1.0, 1.1))])
    with pytest.raises(ValueError, match="holds no ratio"):
        fit_ratios([Searched(2, 1.0, (1.0, 1.0))])
    with pytest.raises(ValueError, match="degrees="):
        fit_ratios([Searched(3, 1.0, (1.0, 1.0, 1.1))], degrees=(3, -1, 2))
    with pytest.raises(ValueError, match="ridge=-1"):
        fit_ratios([Searched(3, 1.0, (1.0, 1.0, 1.1))], ridge=-1)
    with pytest.raises(ValueError, match="nfe=0"):
        SD21_RATIOS.predict(0, 7.5)
    with pytest.raises(ValueError, match="ratios='sd3' is not known to dc-solver"):
        build_table("dc-solver", make_nodes(DiscretePath.scaled_linear(), "linspace", 4), ratios="sd3")
