"""Gaussian transfer: equal to runs with the exact network, to Monte Carlo, and to what theory says of simple tables."""

from typing import Any

import numpy as np
import pytest
import torch

from pathline.interpolants import EDMPath, Gaussian, GaussianPath, LinearPath, VPPath
from pathline.samplers import Nodes, Table, build_table, make_nodes, plan, run
from pathline.samplers.analysis import Spectrum, Transfer, as_spectrum, transfer

VALUES = np.array([3.0, 0.4, 0.05, 1e-3, 0.0])
MEAN = np.array([0.7, -1.2, 0.0, 0.3, 0.5])
DATA = Gaussian(MEAN, variance=VALUES)
CASES: list[tuple[str, dict[str, Any], GaussianPath]] = [
    ("ddim", {}, VPPath()),
    ("dpm++", {"order": 3}, LinearPath()),
    ("unipc", {}, VPPath()),
    ("unipc", {"form": "noise"}, EDMPath()),
    ("heun", {"variant": "time"}, LinearPath()),
    ("ghvb", {}, LinearPath()),
    ("dpm-single", {}, VPPath()),
    ("ipndm", {"afs": "gaussian"}, LinearPath()),
    ("dpm++", {"afs": True}, VPPath()),
    ("ddim", {"eta": 1.0}, VPPath()),
    ("sa", {}, LinearPath()),
    ("dpm++-sde", {}, EDMPath()),
    ("er-sde", {}, VPPath()),
    ("edm", {"churn": 4.0}, EDMPath()),
    ("restart", {"intervals": ((3, 2, 0.2, 1.0),)}, VPPath()),
]
IDS = [f"{name}-{options}-{path.name}" for name, options, path in CASES]


def responses(table: Table, path: GaussianPath) -> tuple[torch.Tensor, torch.Tensor]:
    """(result from the mean start without noise, its responses to unit starts and draws): a run is affine in both."""
    draws = sum(z >= 0 for row in table.rows for z in row.noises)
    eye = torch.eye(1 + draws, dtype=torch.float64)
    start = table.start.signal * DATA.mean
    std = (table.start.signal**2 * torch.tensor(VALUES) + table.start.noise**2).sqrt()
    anchors = {name: DATA.mean.reshape(1, -1) for name in table.anchors}

    def sampled(x: torch.Tensor, scale: float) -> torch.Tensor:
        count = iter(range(1, draws + 1))

        def noise(row: int, slot: int, like: torch.Tensor) -> torch.Tensor:
            return scale * eye[:, [next(count)]].expand_as(like)

        out = run(table, DATA.as_model(path), x, prediction="data", noise=noise, anchors=anchors)
        assert isinstance(out, torch.Tensor)
        return out

    still = sampled(start.expand(1 + draws, -1), 0.0)
    return still[0], sampled(start + eye[:, :1] * std, 1.0) - still


@pytest.mark.parametrize(("name", "options", "path"), CASES, ids=IDS)
@pytest.mark.parametrize("steps", [1, 7])
def test_transfer_equals_the_linear_response_of_a_run(
    name: str, options: dict[str, Any], path: GaussianPath, steps: int
) -> None:
    table = build_table(name, make_nodes(path, "logsnr", steps), **options)
    found = transfer(table, VALUES, MEAN)
    still, moved = responses(table, path)
    scale = max(1.0, float(moved.abs().max()))
    np.testing.assert_allclose(found.gain, moved[0], atol=1e-9 * scale)
    np.testing.assert_allclose(found.fresh, moved[1:].norm(dim=0), atol=1e-9 * scale)
    np.testing.assert_allclose(found.mean_gain * MEAN, still, atol=1e-9 * scale)


@pytest.mark.parametrize(("name", "options", "path"), [CASES[i] for i in (1, 6, 9, 10, 13)], ids=lambda v: str(v))
def test_prediction_equals_actual_sampling_within_its_error(
    name: str, options: dict[str, Any], path: GaussianPath
) -> None:
    count = 40_000
    table = plan(path, name, nfe=9, grid="karras", **options)
    level, generator = table.start, torch.Generator().manual_seed(3)
    drawn = DATA.sample(count, generator) * level.signal
    x = drawn + level.noise * torch.randn(count, 5, generator=generator, dtype=torch.float64)
    samples = run(table, DATA.as_model(path), x, prediction="data", seed=11)
    assert isinstance(samples, torch.Tensor)
    found = transfer(table, VALUES, MEAN)
    mean_error = np.asarray(samples.mean(0)) - found.mean_gain * MEAN
    assert (np.abs(mean_error) < 4.5 * found.std / np.sqrt(count) + 1e-12).all()
    assert float(samples.var(0)[-1]) < 1e-20  # no variance in the data, none in the samples
    ratio = np.asarray(samples.var(0))[:-1] / found.variance[:-1]
    assert (np.abs(ratio - 1) < 4.5 * np.sqrt(2 / count)).all()
    # W2 of the sample's Gaussian, whose error is of the size of the two above
    w2 = np.sqrt(((np.asarray(samples.std(0)) - found.target) ** 2 + (np.asarray(samples.mean(0)) - MEAN) ** 2).sum())
    assert abs(w2 - found.w2) < 6 * np.sqrt(found.variance.sum() / count)


def test_error_is_that_of_the_same_noise_carried_by_the_exact_flow() -> None:
    path, generator = VPPath(), torch.Generator().manual_seed(0)
    table = plan(path, "unipc", nfe=6, grid="time")
    x = path.prior((60_000, 5), generator, dtype=torch.float64)
    out = run(table, DATA.as_model(path), x, prediction="data")
    assert isinstance(out, torch.Tensor)
    exact = DATA.flow_map(x, table.start[1:3], table.end[1:3])
    found = transfer(table, VALUES, MEAN, start="prior")
    assert float((out - exact).square().mean().sqrt()) == pytest.approx(found.rmse, rel=0.02)
    # drawing N(0, noise²) where the path holds some signal leaves an error that no steps remove
    many = transfer(plan(path, "dpm++", nfe=300), VALUES, MEAN, start="prior")
    level = many.spectrum.values * table.start.signal**2 + table.start.noise**2
    gain = np.sqrt(VALUES) * table.start.noise / np.sqrt(level)
    shift = MEAN * (1 - np.sqrt(VALUES) * table.start.signal / np.sqrt(level))
    wanted = ((gain - np.sqrt(VALUES)) ** 2 + (shift - MEAN) ** 2).sum()
    assert many.w2**2 == pytest.approx(wanted, rel=0.05)


def test_a_grid_that_begins_late_is_charged_for_it() -> None:
    path = VPPath()
    table = plan(path, "dpm++", steps=1, grid="leading")
    origin = float(path.signal(0.0)), float(path.noise(0.0))
    assert table.start.noise < 0.1
    assert transfer(table, VALUES).rmse < 0.05
    assert transfer(table, VALUES, start="prior", origin=origin).rmse > 0.4
    same = plan(path, "dpm++", nfe=5)
    assert transfer(same, VALUES, origin=same.start[1:3]).rmse == transfer(same, VALUES).rmse


def test_fine_grids_reach_the_data() -> None:
    for name, options, path in CASES:
        if options.get("afs") or name == "restart":
            continue
        coarse, fine = (transfer(plan(path, name, nfe=n, **options), VALUES, MEAN) for n in (16, 256))
        assert fine.rmse < min(0.1, 0.5 * coarse.rmse), name
        assert fine.stochastic == (fine.fresh.max() > 0)


def test_variance_zero_and_one_step_in_closed_form() -> None:
    nodes = Nodes([0.0, 1.0], [1.0, 0.0])
    found = transfer(build_table("ddim", nodes), VALUES, MEAN)  # one call at pure noise returns the mean
    np.testing.assert_allclose(found.std, 0.0, atol=1e-15)
    np.testing.assert_allclose(found.mean_gain, 1.0)
    assert found.w2 == pytest.approx(np.sqrt(VALUES.sum()))
    assert found.frechet == pytest.approx(VALUES.sum())
    assert np.isnan(found.bias[-1])
    fine = transfer(plan(VPPath(), "dpm++", nfe=20), VALUES, MEAN)
    assert fine.std[-1] < 1e-12  # a direction without variance ends at the mean, whatever the steps


def test_rmse_is_w2_without_noise_and_residuals_sum_to_it() -> None:
    for name, options in (("unipc", {}), ("ddim", {"eta": 1.0})):
        found = transfer(plan(VPPath(), name, nfe=7, **options), VALUES, MEAN)
        assert found.rmse == pytest.approx(found.w2 / np.sqrt(5), rel=1e-12)  # gains are positive here
        assert (found.residuals() ** 2).sum() == pytest.approx(found.rmse**2, rel=1e-12)


def test_frechet_distance_is_that_of_the_evaluation_code() -> None:
    from pathline.evals.distances import frechet_from_moments

    basis, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((5, 5)))
    found = transfer(plan(LinearPath(), "dpm++-sde", nfe=8), (basis * VALUES) @ basis.T, basis @ MEAN)
    order = np.argsort(VALUES)
    assert np.allclose(found.spectrum.values, VALUES[order], atol=1e-14)
    assert np.allclose(found.spectrum.mean_square, MEAN[order] ** 2)
    data = np.zeros(5), np.diag(found.spectrum.values)
    shift = (found.mean_gain - 1) * np.sqrt(found.spectrum.mean_square)
    assert frechet_from_moments(shift, np.diag(found.variance), *data) == pytest.approx(found.frechet, rel=1e-6)


def test_grouped_spectra_keep_total_and_result() -> None:
    rng = np.random.default_rng(1)
    spectrum = Spectrum.of(rng.lognormal(-3, 3, 3000), rng.standard_normal(3000))
    small = spectrum.grouped()
    assert len(small.values) < 1200
    assert small.dimension == 3000
    assert (small.counts * small.values).sum() == pytest.approx(spectrum.values.sum())
    assert (small.counts * small.mean_square).sum() == pytest.approx(spectrum.mean_square.sum())
    table = plan(VPPath(), "dpm++", nfe=8)
    whole, part = transfer(table, spectrum), transfer(table, small)
    assert part.rmse == pytest.approx(whole.rmse, rel=1e-3)


def test_spectra_are_taken_from_whatever_holds_them(tmp_path: Any) -> None:
    covariance, mean = np.diag(VALUES), MEAN
    np.savez(tmp_path / "s.npz", mu=mean, sigma=covariance)
    table = plan(LinearPath(), "dpm++", nfe=5)
    wanted = transfer(table, VALUES, MEAN).rmse
    for given in (tmp_path / "s.npz", str(tmp_path / "s.npz"), DATA, Spectrum.from_moments(mean, covariance)):
        assert transfer(table, given).rmse == pytest.approx(wanted)
    assert transfer(table, covariance, mean).rmse == pytest.approx(wanted)
    assert transfer(table, VALUES.tolist(), MEAN.tolist()).rmse == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("given", "mean", "message"),
    [
        ([], None, "not empty"),
        ([1.0, -0.5], None, "variances ≥ 0"),
        ([1.0, np.nan], None, "not finite"),
        ([1.0, 2.0], [0.0], "2 entries"),
        ([[1.0, 0.5], [0.0, 1.0]], None, "symmetric"),
        (np.ones((2, 3)), None, "must have shape"),
        ("nothing.npz", None, "nothing.npz cannot be read"),
        (Spectrum.of([1.0]), [0.0], "mean is given twice"),
        (object(), None, "give variances"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_bad_spectra_are_refused(given: Any, mean: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_spectrum(given, mean)


def test_tables_that_gaussian_data_do_not_fit_are_refused() -> None:
    nodes = Nodes([0.1, 0.5, 1.0], [0.9, 0.4, 0.0], anchor=[0.8, 0.4, 0.0])
    with pytest.raises(ValueError, match="runs a bridge"):
        transfer(build_table("dbim", nodes), VALUES)
    table = build_table("ddim", make_nodes(VPPath(), "time", 3))
    where, value = next(iter(table.coefficients()))
    with pytest.raises(ValueError, match="per coordinate"):
        transfer(table.with_coefficient(where, np.full(5, value)), VALUES)
    with pytest.raises(ValueError, match="start='x' is not possible"):
        transfer(table, VALUES, start="x")


def test_a_wrong_coefficient_shows() -> None:
    table = plan(VPPath(), "unipc", nfe=6)
    right: Transfer = transfer(table, VALUES, MEAN)
    for where, value in table.coefficients():
        assert isinstance(value, float)
        moved = transfer(table.with_coefficient(where, 1.01 * value), VALUES, MEAN)
        assert not np.isclose(moved.rmse, right.rmse, rtol=1e-9), where
