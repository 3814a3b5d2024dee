"""Tables from a covariance alone: exact on its data, better than any grid of the base, better on a mixture too."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pathline.interpolants import DiscretePath, Gaussian, GaussianPath, LinearPath
from pathline.samplers import build_table, make_nodes, run
from pathline.samplers.analysis import Spectrum, transfer
from pathline.samplers.calibrate.gaussian_optimal import (
    gaussian_rows,
    gaussian_table,
    spectra_error,
    spectrum_family,
)
from pathline.samplers.calibrate.trajectories import mean_error, reference_states
from pathline.samplers.calibrate.triangular import triangular
from support.calibration import BED, bed_problem, starts

VALUES = 40.0 * np.arange(1, 60) ** -1.6


@pytest.mark.parametrize(
    "path", [LinearPath(), pytest.param(DiscretePath.linear(), marks=pytest.mark.slow)], ids=["linear", "vp"]
)
def test_rows_from_a_spectrum_lower_the_error_of_an_actual_run(path: GaussianPath) -> None:
    data = Gaussian(np.full(59, 0.3), variance=VALUES)
    spectrum = Spectrum.of(VALUES, np.full(59, 0.3))
    levels = gaussian_table(path, 4, spectrum, shrinkage=None)
    found = gaussian_table(path, 4, spectrum)
    assert (found.calls, found.table.evaluations) == (0, 4)
    assert found.transfer_error < 0.2 * levels.transfer_error < 0.2 * levels.base_error
    x = path.prior((500, 59), torch.Generator().manual_seed(0), dtype=torch.float64)
    start = (float(path.at(0.0).signal), float(path.at(0.0).noise))
    exact = data.flow_map(x, start, (1.0, 0.0))
    errors = [mean_error(run(t.table, data.as_model(path, "data"), x) - exact) for t in (levels, found)]
    assert errors[1] < 0.25 * errors[0]


def test_the_covariance_of_a_mixture_serves_its_network() -> None:
    path = LinearPath()
    problem, x = bed_problem(path, 64), starts(path, 64)
    end = reference_states(problem, x, make_nodes(path, "logsnr", 1), per_step=80)[-1]
    found = gaussian_table(path, 5, Spectrum.from_moments(BED.mean.reshape(-1), BED.covariance))
    options = {"order": 2, "afs": "unit"}
    plain = [build_table("ipndm", make_nodes(path, grid, 6), **options) for grid in ("karras", "logsnr", "time")]
    errors = [mean_error(problem.run(t, x) - end) for t in (found.table, *plain)]
    assert errors[0] < 0.7 * min(errors[1:])


@pytest.mark.slow
def test_a_family_of_spectra_is_safer_than_its_middle() -> None:
    path = LinearPath()
    family = spectrum_family(VALUES)
    assert len(family) == 9
    assert len({round(s.spread, 6) for s in family}) == 3
    middle, all_of_them = gaussian_table(path, 4, VALUES), gaussian_table(path, 4, family)
    assert all_of_them.transfer_error < 0.8 * spectra_error(middle.table, family)
    assert all_of_them.transfer_error < 0.6 * all_of_them.base_error


def test_worst_and_mean_are_different_levels() -> None:
    path, family = LinearPath(), spectrum_family(VALUES, tilts=(0.0,), scales=(0.1, 1.0, 10.0))
    found = {over: gaussian_table(path, 5, family, shrinkage=None, over=over).table for over in ("worst", "mean")}
    errors = {over: max(transfer(t, s).rmse / s.spread for s in family) for over, t in found.items()}
    assert errors["worst"] < errors["mean"]


def test_a_strong_shrinkage_is_the_base() -> None:
    base = triangular(build_table("dpm++", make_nodes(LinearPath(), "logsnr", 4)))
    rows = gaussian_rows(base, [Spectrum.of(VALUES)], 1e12)
    for fitted, exact in zip(rows.weights, base.weights, strict=True):
        np.testing.assert_allclose(fitted, exact, atol=1e-9)


def test_bad_input_is_refused() -> None:
    path = LinearPath()
    for options, message in (
        ({"nfe": 0}, "nfe=0"),
        ({"shrinkage": 0.0}, "shrinkage=0"),
        ({"over": "best"}, "over"),
        ({"spectra": []}, "spectr"),
        ({"method": "heun"}, "heun"),
        ({"method": "ddpm"}, "draws noise"),
    ):
        with pytest.raises(ValueError, match=message):
            gaussian_table(path, **({"nfe": 4, "spectra": VALUES} | options))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scale=-1"):
        Spectrum.of(VALUES).perturbed(-1.0)
    grouped = triangular(build_table("ipndm", make_nodes(path, "karras", 3))).grouped(np.array([0, 1]))
    with pytest.raises(ValueError, match="groups"):
        gaussian_rows(grouped, [Spectrum.of(VALUES)])
