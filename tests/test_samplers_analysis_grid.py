"""Grid "gaussian": better than every named grid on its data, the same through every door, and refused in words."""

from typing import Any

import numpy as np
import pytest
import torch

from pathline.interpolants import CosinePath, DiscretePath, EDMPath, Gaussian, GaussianPath, LinearPath, VPPath
from pathline.samplers import build_table, grid_info, list_grids, make_nodes, plan, register_grid, sample
from pathline.samplers.analysis import Spectrum, transfer

# image-like: few strong directions, many weak ones
VALUES = 40.0 * np.arange(1, 400) ** -1.6
PUBLIC = [name for name in list_grids() if not grid_info(name).requires]


def best_public(path: GaussianPath, method: str, nfe: int, **options: Any) -> float:
    return min(transfer(plan(path, method, nfe=nfe, grid=name, **options), VALUES).rmse for name in PUBLIC)


@pytest.mark.parametrize(
    ("path", "method", "options"),
    [
        (VPPath(), "dpm++", {}),
        (LinearPath(), "ipndm", {"order": 4, "afs": True}),
        (EDMPath(), "unipc", {"order": 2}),
        (LinearPath(), "ddim", {"eta": 1.0}),
        (DiscretePath.scaled_linear(), "dpm++", {}),
    ],
    ids=["vp", "linear-afs", "edm", "stochastic", "discrete"],
)
def test_optimised_levels_beat_every_named_grid(path: GaussianPath, method: str, options: dict[str, Any]) -> None:
    for nfe, part in ((5, 0.97), (8, 0.97 if "eta" in options else 0.8)):
        table = plan(path, method, nfe=nfe, grid="gaussian", grid_options={"spectrum": VALUES}, **options)
        assert table.evaluations == nfe
        assert transfer(table, VALUES).rmse < part * best_public(path, method, nfe, **options)


def test_levels_stay_inside_the_path_and_move_with_the_data() -> None:
    for path in (LinearPath(), VPPath(), CosinePath()):
        found = [make_nodes(path, "gaussian", 5, spectrum=VALUES * scale).lam for scale in (1.0, 100.0)]
        for lam in found:
            assert lam[-2] < path.lambda_max + 1e-9
            assert (np.diff(lam) > 0).all()
        # data ten times as large have their details at ten times the noise
        assert np.median(found[1][1:-1]) < np.median(found[0][1:-1]) - 0.5


def test_the_grid_is_told_the_method_that_is_sampled() -> None:
    path, given = VPPath(), {"spectrum": VALUES}
    for method, options in (("dpm++", {"order": 2}), ("ipndm", {"order": 3}), ("ipndm", {"order": 3, "afs": True})):
        table = plan(path, method, steps=5, grid="gaussian", grid_options=given, **options)
        nodes = make_nodes(path, "gaussian", 5, spectrum=VALUES, method=method, method_options=options)
        assert table.nodes["time"] == nodes.time.tolist()
        assert table.rows == build_table(method, nodes, **options).rows
    other = plan(path, "ipndm", steps=5, grid="gaussian", grid_options={**given, "method": "dpm++"})
    own = plan(path, "ipndm", steps=5, grid="gaussian", grid_options=given)
    assert other.nodes["time"] != own.nodes["time"]


def test_sampling_on_it_lowers_the_error_of_an_actual_run(tmp_path: Any) -> None:
    data, path = Gaussian(np.zeros(60), variance=VALUES[:60]), LinearPath()
    np.savez(tmp_path / "stats.npz", mu=np.zeros(60), sigma=np.diag(VALUES[:60]))
    x = path.prior((500, 60), torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = data.flow_map(x, (0.0, 1.0), (1.0, 0.0))

    def error(grid: str, **options: Any) -> float:
        out = sample(data.as_model(path), x, path=path, method="dpm++", nfe=7, grid=grid, grid_options=options)
        assert isinstance(out, torch.Tensor)
        return float((out - exact).square().mean().sqrt())

    assert error("gaussian", spectrum=str(tmp_path / "stats.npz")) < 0.3 * min(error("logsnr"), error("karras"))


def test_through_a_diffusers_scheduler() -> None:
    from pathline.samplers.schedulers import PathlineScheduler

    settings = {"method": "dpm++", "grid": "gaussian", "grid_options": {"spectrum": VALUES[:50].tolist()}}
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0}
    scheduler = PathlineScheduler.from_config(flow, pathline=settings)
    scheduler.set_timesteps(6)
    nodes = make_nodes(LinearPath(), "gaussian", 6, spectrum=VALUES[:50], method="dpm++", method_options={})
    np.testing.assert_allclose(scheduler.timesteps.numpy() / 1000, 1 - nodes.time[:-1], atol=1e-4)


def test_several_spectra_are_a_compromise() -> None:
    path, (small, large) = VPPath(), (VALUES / 30, VALUES * 30)

    def errors(spectrum: Any) -> list[float]:
        nodes = make_nodes(path, "gaussian", 7, spectrum=spectrum)
        return [transfer(build_table("dpm++", nodes), v).rmse for v in (small, large)]

    own = errors(small)[0], errors(large)[1]
    both = errors([small, Spectrum.of(large)])
    crossed = errors(large)[0], errors(small)[1]
    assert own[0] <= both[0] * 1.001 < crossed[0]
    assert own[1] <= both[1] * 1.001 < crossed[1]


def test_the_same_call_gives_the_same_grid_and_a_changed_copy_changes_nothing() -> None:
    from pathline.samplers.analysis import optimal_grid

    first = make_nodes(LinearPath(), "gaussian", 5, spectrum=VALUES).time
    kept = optimal_grid.gaussian(LinearPath(), 5, VALUES)
    kept[1] = 0.9
    assert make_nodes(LinearPath(), "gaussian", 5, spectrum=VALUES).time.tolist() == first.tolist()
    optimal_grid._found.clear()
    np.testing.assert_allclose(make_nodes(LinearPath(), "gaussian", 5, spectrum=VALUES).time, first, rtol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_few_levels(steps: int) -> None:
    for path in (LinearPath(), VPPath()):
        nodes = make_nodes(path, "gaussian", steps, spectrum=VALUES)
        assert nodes.steps == steps
        assert nodes.time[0] == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs the data's spectrum"),
        ({"spectrum": [-1.0]}, "variances ≥ 0"),
        ({"spectrum": "none.npz"}, "none.npz cannot be read"),
        ({"spectrum": [VALUES, VALUES], "mean": VALUES}, "mean goes with one spectrum"),
        ({"spectrum": VALUES, "method": "dppm"}, "unknown method 'dppm'"),
        ({"spectrum": VALUES, "rho": 3}, "unknown option of grid 'gaussian' 'rho'"),
    ],
    ids=str,
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_nodes(LinearPath(), "gaussian", 4, **options)


def test_grids_can_be_registered() -> None:
    def middle(path: GaussianPath, levels: int, power: float = 2.0) -> np.ndarray:
        """Powers of equal steps."""
        return np.linspace(0.0, 1.0, levels + 1)[:-1] ** power

    from pathline.samplers import grids

    try:
        register_grid("power")(middle)
        assert "power" in list_grids()
        assert grid_info("power").options == ["power"]
        assert make_nodes(LinearPath(), "power", 4, power=1.0).time.tolist() == [0, 0.25, 0.5, 0.75, 1]
        assert plan(LinearPath(), "ddim", steps=4, grid="power").evaluations == 4
        with pytest.raises(ValueError, match="already registered"):
            register_grid("power")(lambda path, levels: np.zeros(levels))
    finally:
        grids._GRIDS.pop("power", None)
    with pytest.raises(ValueError, match="unknown grid 'power'"):
        grid_info("power")
