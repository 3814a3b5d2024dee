"""DPM-Solver-v3: its degenerate cases, its own model class, and where its statistics may be used."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from pathline.interpolants import DiscretePath, Gaussian, GaussianPath, LinearPath, VPPath
from pathline.samplers import Nodes, Table, build_table, make_nodes, plan, run, sample
from pathline.samplers.analysis.exactness import exactness
from pathline.samplers.ems import DEGENERATE, ModelStatistics, as_statistics, path_facts
from pathline.samplers.numerics import Array
from support.goldens import FOLDER, denoiser, index

GRID = np.linspace(-5.5, 5.5, 111)
MEAN, VARIANCE = np.array([-0.6, 0.2, 1.1]), np.array([0.05, 0.6, 2.0])


def gaussian_statistics(lam: Array) -> ModelStatistics:
    """Statistics of a network that knows its data are N(MEAN, VARIANCE), in closed form."""
    l = 1.0 / (1.0 + np.exp(2.0 * lam[:, None]) * VARIANCE)  # noqa: E741
    return ModelStatistics(lam, l, np.zeros_like(l), 2.0 * l * (1.0 - l) * MEAN)


def wavy(shape: tuple[int, ...] = (3,), **metadata: Any) -> ModelStatistics:
    """Statistics that differ in every coordinate and level, smooth and of the size that networks have."""
    phase = np.arange(np.prod(shape, dtype=int)).reshape(shape) + GRID.reshape(-1, *(1,) * len(shape))
    l = 1.0 / (1.0 + np.exp(2 * GRID)).reshape(-1, *(1,) * len(shape)) * (1 + 0.1 * np.sin(phase))  # noqa: E741
    return ModelStatistics(GRID, l, -1.0 + np.cos(phase), 0.1 * np.sin(2 * phase), metadata)


def model(x: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(1.3 * x + t.reshape(-1, *(1,) * (x.ndim - 1))) * 0.7 + 0.2 * x


def start(path: GaussianPath, shape: tuple[int, ...] = (4, 3)) -> Tensor:
    return path.prior(shape, torch.Generator().manual_seed(0), dtype=torch.float64)


def ran(table: Table, path: GaussianPath, shape: tuple[int, ...] = (4, 3)) -> Tensor:
    x = run(table, model, start(path, shape), prediction="data")
    assert isinstance(x, Tensor)
    return x


# --- degenerate statistics ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [VPPath(), LinearPath()], ids=lambda p: p.name)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize(("statistics", "method"), [("data", "dpm++"), ("noise", "dpm")])
def test_degenerate_statistics_are_the_known_solvers(
    path: GaussianPath, order: int, statistics: str, method: str
) -> None:
    nodes = make_nodes(path, "logsnr", 7)
    ours = build_table("dpm-solver-v3", nodes, order=order, corrector="none", statistics=statistics)
    if order < 4:
        known = build_table(method, nodes, order=order, variant="exact")
    else:  # UniPC's exact predictor is exponential Adams–Bashforth in either form
        known = build_table("unipc", nodes, order=4, form=statistics, variant="exact", disable_corrector=range(7))
    torch.testing.assert_close(ran(ours, path), ran(known, path), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("order", "pseudo", "degree"), [(2, False, 2), (3, False, 3), (2, True, 2), (3, True, 2)])
def test_degenerate_corrector_integrates_polynomials_exactly(order: int, pseudo: bool, degree: int) -> None:
    nodes = make_nodes(VPPath(), "karras", 9, final="path")
    table = build_table(
        "dpm-solver-v3", nodes, order=order, corrector_pseudo=pseudo, pseudo=pseudo, lower_order_final=False
    )
    found = exactness(table)
    assert found is not None
    assert found.basis == "data in λ"
    assert set(found.corrected[order:]) == {degree}
    assert set(found.degrees[order:]) == {2 if pseudo else order}


@pytest.mark.parametrize(("name", "l", "s"), [("data", 1.0, 0.0), ("noise", 0.0, -1.0)])
def test_measured_constants_converge_to_the_closed_form(name: str, l: float, s: float) -> None:  # noqa: E741
    """Trapezoids on a grid of λ reach the exact weights with their order, 2."""
    path = VPPath()
    nodes = make_nodes(path, path.time_at(torch.linspace(-1.5, 2.0, 7, dtype=torch.float64)).numpy())
    exact = ran(build_table("dpm-solver-v3", nodes, order=3, statistics=name), path)
    errors = []
    for levels in (61, 121, 241):
        lam = np.linspace(path.lambda_min, path.lambda_max, levels)
        one = np.ones((levels, 3))
        table = build_table("dpm-solver-v3", nodes, order=3, statistics=ModelStatistics(lam, l * one, s * one, 0 * one))
        errors.append(float((ran(table, path) - exact).abs().max()))
    assert errors[0] < 0.02
    assert 3.5 < errors[0] / errors[1] < 4.5
    assert 3.5 < errors[1] / errors[2] < 4.5


def test_pseudo_order_takes_lower_derivatives_from_fewer_outputs() -> None:
    nodes = make_nodes(VPPath(), "karras", 6, final="path")
    true, pseudo = (
        ran(build_table("dpm-solver-v3", nodes, order=3, pseudo=p, corrector="none"), VPPath()) for p in (False, True)
    )
    assert float((true - pseudo).abs().max()) > 1e-4
    second = [
        build_table("dpm-solver-v3", nodes, order=2, pseudo=p, corrector="none").rows for p in (False, True)
    ]  # with two outputs there is nothing to choose
    for a, b in zip(*second, strict=True):
        for u, v in zip(a.updates, b.updates, strict=True):
            assert [c for _, c in u.terms] == pytest.approx([c for _, c in v.terms], rel=1e-12)


# --- the model class ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [VPPath(), LinearPath()], ids=lambda p: p.name)
def test_one_step_is_exact_where_the_network_follows_its_statistics(path: GaussianPath) -> None:
    """For Gaussian data f = −l·mean and df/dλ = b, so that order 1 makes any step exactly, up to the trapezoids."""
    lam = np.array([-3.0, 2.5])
    times = path.time_at(torch.tensor(lam)).numpy()
    nodes = make_nodes(path, times)
    x = start(path)
    network = Gaussian(MEAN, variance=VARIANCE).as_model(path)
    spread = np.sqrt(nodes.signal[:, None] ** 2 * VARIANCE + nodes.noise[:, None] ** 2)
    exact = nodes.signal[1] * MEAN + spread[1] / spread[0] * (x.numpy() - nodes.signal[0] * MEAN)
    errors = []
    for levels in (131, 261):  # both ends of the step are levels
        statistics = gaussian_statistics(np.linspace(-3.5, 3.0, levels))
        table = build_table("dpm-solver-v3", nodes, order=1, statistics=statistics)
        ours = run(table, network, x)
        assert isinstance(ours, Tensor)
        errors.append(float(np.abs(ours.numpy() - exact).max()))
    assert errors[0] < 1e-3
    assert 3.5 < errors[0] / errors[1] < 4.6
    plain = run(build_table("dpm++", nodes, order=1), network, x)
    assert isinstance(plain, Tensor)
    assert float(np.abs(plain.numpy() - exact).max()) > 0.05


def test_constant_output_needs_the_affine_part() -> None:
    nodes = make_nodes(VPPath(), "logsnr", 4)
    table = build_table("dpm-solver-v3", nodes, statistics=gaussian_statistics(GRID_VP))
    assert table.anchors == ("ones",)
    assert table.has_arrays
    assert build_table("dpm-solver-v3", nodes).anchors == ()


GRID_VP = np.linspace(VPPath().lambda_min, VPPath().lambda_max, 80)


def test_step_integrals_are_the_published_ones() -> None:
    """I, B, C and g, relative to a step's beginning, from the integrals over the whole grid."""
    statistics = wavy()
    whole = statistics.cumulative
    i, s, t = 20, 31, 47
    step = statistics.step(GRID[s], GRID[t], [GRID[s], GRID[i]], 3)
    grown = np.exp(whole.L + whole.S)
    torch.testing.assert_close(step.decay, np.exp(whole.L[s] - whole.L[t]), rtol=1e-12, atol=0)
    torch.testing.assert_close(step.moments[0], (whole.I[t] - whole.I[s]) / grown[s], rtol=1e-12, atol=0)
    bracket = whole.C[t] - whole.C[s] - whole.B[s] * (whole.I[t] - whole.I[s])
    torch.testing.assert_close(step.shift, bracket * np.exp(-whole.L[s]), rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(step.scales[1], np.exp(whole.S[s] - whole.S[i]), rtol=1e-12, atol=0)
    torch.testing.assert_close(step.offsets[1], np.exp(whole.S[s]) * (whole.B[i] - whole.B[s]), rtol=1e-10, atol=0)
    assert float(np.abs(step.offsets[0]).max()) == 0.0
    inner = slice(s, t + 1)
    second = np.trapezoid(grown[inner] / grown[s] * (GRID[inner, None] - GRID[s]) ** 2 / 2, GRID[inner], axis=0)
    torch.testing.assert_close(step.moments[2], second, rtol=1e-12, atol=0)


# --- correctors, snapping -------------------------------------------------------------------------------------


def test_half_correctors_share_the_states() -> None:
    nodes = make_nodes(VPPath(), "logsnr", 8)

    def rows(corrector: str, **options: float) -> tuple[Any, ...]:
        return build_table("dpm-solver-v3", nodes, corrector=corrector, **options).rows

    full, none = rows("all"), rows("none")
    assert rows("noisy", boundary=9.0) == full == rows("clean", boundary=-9.0)
    assert rows("noisy", boundary=-9.0) == none == rows("clean", boundary=9.0)
    corrected = {c: [len(row.updates) > 1 for row in rows(c)] for c in ("all", "noisy", "clean")}
    assert corrected["all"] == [False, *[True] * 6, False]  # the last output is the result whatever the state
    assert corrected["noisy"] == [False, *(nodes.lam[1:-2] < -0.478), False]
    assert corrected["clean"] == [a and not b for a, b in zip(corrected["all"], corrected["noisy"], strict=True)]


@pytest.mark.parametrize("name", ["dpmv3_2_half-sd-time_uniform-n5-cfg7.5", "dpmv3_3_pc-sd-time_uniform-n20-cfg7.5"])
def test_snapping_moves_nodes_where_the_released_code_has_them(name: str) -> None:
    g, case = np.load(FOLDER / f"{name}.npz"), index()[name]
    path, statistics = DiscretePath.scaled_linear(), FOLDER / case["extra"]["statistics"]
    t = np.linspace(1.0, 1e-3, case["steps"] + 1)
    nodes = make_nodes(path, 1.0 - t)
    table = build_table("dpm-solver-v3", nodes, statistics=statistics, snap=True)
    np.testing.assert_allclose(table.nodes["signal"], g["grid_alpha"], rtol=1e-6)
    np.testing.assert_allclose(table.nodes["noise"], g["grid_sigma"], rtol=1e-6)
    plain = build_table("dpm-solver-v3", nodes, statistics=statistics)
    assert plain.nodes == nodes.config()


def test_snapping_that_merges_nodes_is_refused() -> None:
    coarse = ModelStatistics(np.array([-6.0, 0.0, 6.0]), *np.ones((3, 3, 3)))
    with pytest.raises(ValueError, match="snap=True would move two of 9 nodes"):
        build_table("dpm-solver-v3", make_nodes(VPPath(), "logsnr", 8), statistics=coarse, snap=True)


# --- use ------------------------------------------------------------------------------------------------------


def test_statistics_beat_the_degenerate_case() -> None:
    """On the analytic model they were measured on, at few evaluations."""
    path, statistics = VPPath(), ModelStatistics.load(FOLDER / "ems-vp-uncond.npz")
    network, x = denoiser().as_model(path, "noise"), start(path, (64, 2, 4, 4))
    exact = sample(network, x, path=path, method="unipc", nfe=300, prediction="noise")
    for nfe in (5, 8):
        common: dict[str, Any] = {"path": path, "nfe": nfe, "prediction": "noise"}
        ours = sample(network, x, method="dpm-solver-v3", statistics=statistics, **common)
        plain = sample(network, x, method="dpm-solver-v3", **common)
        known = sample(network, x, method="dpm++", **common)
        error, without, old = (float((v - exact).square().mean().sqrt()) for v in (ours, plain, known))
        assert error < 0.9 * without
        assert error < 0.9 * old


def test_a_table_is_saved_and_loaded(tmp_path: Path) -> None:
    statistics = wavy(samples=64, prediction="noise")
    statistics.save(tmp_path / "ems.npz")
    table = build_table("dpm-solver-v3", make_nodes(VPPath(), "logsnr", 5), statistics=str(tmp_path / "ems.npz"))
    recorded = table.options["statistics"]
    assert recorded["file"] == "ems.npz"
    assert (recorded["samples"], recorded["prediction"], recorded["shape"]) == (64, "noise", [3])
    with pytest.raises(ValueError, match="array coefficients"):
        table.save(tmp_path / "table.json")
    table.save(tmp_path / "table.safetensors")
    again = Table.load(tmp_path / "table.safetensors")
    assert again.options == table.options
    assert torch.equal(ran(again, VPPath()), ran(table, VPPath()))
    assert "dpm-solver-v3" in table.describe()
    assert table.analyse(orders=False).largest > 0


@pytest.mark.parametrize("family", ["betas", "flow"])
@pytest.mark.parametrize("corrector", ["all", "none"])
def test_schedulers_run_the_same_table(family: str, corrector: str, tmp_path: Path) -> None:
    from pathline.samplers import from_diffusers
    from support.schedulers import latents, make, network, steps_over

    wavy((3, 4, 4)).save(tmp_path / "ems.safetensors")
    options = {"statistics": str(tmp_path / "ems.safetensors"), "order": 3, "corrector": corrector}
    scheduler = make(family, method="dpm-solver-v3", options=options)
    levels = {"sigmas": np.arange(64, 0, -8) / 64} if family == "flow" else {}
    scheduler.set_timesteps(8, **levels)
    ours = steps_over(scheduler, latents(), scheduler.timesteps)
    wanted = sample(
        from_diffusers(network, scheduler), latents(), method="dpm-solver-v3", grid=scheduler.nodes, **options
    )
    torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=1e-6)

    scheduler.set_timesteps(8, **levels)  # every sample at its own time, all at the same one
    x = latents()
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t.expand(2) + torch.tensor([0.0, 0.0]), x, return_dict=False)[0]
    torch.testing.assert_close(x, ours, rtol=1e-6, atol=1e-6)


def test_a_pipelines_edit_reaches_the_corrected_state(tmp_path: Path) -> None:
    """Shifting the state by hand in the middle moves it as much as with a method without a corrector."""
    from support.schedulers import latents, make

    wavy((3, 4, 4)).save(tmp_path / "ems.npz")
    moved = []
    for edit in (0.0, 0.5):
        scheduler = make("flow", method="dpm-solver-v3", options={"statistics": str(tmp_path / "ems.npz")})
        scheduler.set_timesteps(sigmas=np.array([1.0, 0.75, 0.5, 0.25]))
        x = latents()
        for k, t in enumerate(scheduler.timesteps):
            x = scheduler.step(torch.zeros_like(x), t, x, return_dict=False)[0]
            if k == 1:
                x = x + edit
        moved.append(x)
    assert float((moved[1] - moved[0]).abs().min()) > 0.05


# --- refusals ---------------------------------------------------------------------------------------------------


def test_statistics_are_found_by_name_file_or_themselves(tmp_path: Path) -> None:
    assert as_statistics("data") is DEGENERATE["data"]
    for suffix in ("npz", "safetensors"):
        file = tmp_path / f"ems.{suffix}"
        wavy(model="abc").save(file)
        loaded = as_statistics(file)
        assert isinstance(loaded, ModelStatistics)
        assert loaded.metadata == {"model": "abc"}
        for name in ("lam", "l", "s", "b"):
            assert np.array_equal(getattr(loaded, name), getattr(wavy(), name))
    with pytest.raises(ValueError, match=r"end in .npz or .safetensors, got 'ems.json'"):
        wavy().save(tmp_path / "ems.json")
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    np.savez(tmp_path / "half.npz", l=np.ones(3), s=np.ones(3))
    for given, message in (
        ("nose", "statistics='nose' is neither a name nor a file; allowed: 'data', 'noise'"),
        (3, "statistics=3 is not possible"),
        (tmp_path / "bad.npz", "not a readable file of model statistics"),
        (tmp_path / "half.npz", "holds no model statistics: b, grid_lambda are missing"),
    ):
        with pytest.raises(ValueError, match=message):
            build_table("dpm-solver-v3", make_nodes(VPPath(), "logsnr", 4), statistics=given)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (([0.0, 0.0], np.ones((3, 2))), "increasing half log-SNRs"),
        (([0.0, 1.0], np.full((3, 2), np.nan)), "l of model statistics holds NaN"),
        (([0.0, 1.0], np.ones((3, 3))), "must have one shape"),
    ],
    ids=str,
)
def test_unsound_statistics_are_refused(arrays: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelStatistics(np.array(arrays[0]), *arrays[1])


def test_statistics_of_another_path_are_refused_unless_forced() -> None:
    statistics = wavy(path=path_facts(LinearPath()))
    nodes = make_nodes(VPPath(), "logsnr", 4)
    with pytest.raises(ValueError, match=r"belong to path {'name': 'linear'}, not to {'name': 'vp'.*force=True"):
        build_table("dpm-solver-v3", nodes, statistics=statistics)
    build_table("dpm-solver-v3", nodes, statistics=statistics, force=True)
    build_table("dpm-solver-v3", make_nodes(LinearPath(), "logsnr", 4), statistics=statistics)
    long = path_facts(DiscretePath.scaled_linear())
    assert len(repr(long)) < 300
    assert long == path_facts(DiscretePath.scaled_linear())
    statistics = wavy(path=path_facts(DiscretePath.linear()))
    rounded = DDPMScheduler().alphas_cumprod.double().tolist()  # the same schedule, in float32
    assert path_facts(DiscretePath(tuple(rounded))) != path_facts(DiscretePath.linear())
    statistics.check_path(DiscretePath(tuple(rounded)))
    for other in (DiscretePath.linear(beta_end=0.0201), DiscretePath.linear(steps=999)):
        with pytest.raises(ValueError, match="belong to path"):
            statistics.check_path(other)


def test_levels_outside_the_statistics_are_refused() -> None:
    short = ModelStatistics(np.linspace(-2.0, 2.0, 9), *np.ones((3, 9, 3)))
    with pytest.raises(ValueError, match=r"λ = .* lies outside the model statistics, which reach from -2 to 2"):
        build_table("dpm-solver-v3", make_nodes(VPPath(), "logsnr", 6), statistics=short)
    inner = Nodes(np.tanh([0.2, 0.4, 0.9]), np.sqrt(1 - np.tanh([0.2, 0.4, 0.9]) ** 2))
    assert build_table("dpm-solver-v3", inner, statistics=short).evaluations == 2


def test_samples_of_another_shape_are_refused_before_any_call() -> None:
    table = plan(VPPath(), "dpm-solver-v3", nfe=4, statistics=wavy((2, 4, 4)))

    def untouched(x: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("called")

    with pytest.raises(ValueError, match=r"samples of shape \(2, 4, 4\), not \(3, 4, 4\)"):
        run(table, untouched, torch.zeros(2, 3, 4, 4))
    shared = ModelStatistics(GRID, *np.ones((3, len(GRID))))  # one value for all coordinates fits every shape
    assert not build_table("dpm-solver-v3", make_nodes(VPPath(), "logsnr", 4), statistics=shared).has_arrays


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 5}, "order=5 is not possible for dpm-solver-v3; allowed: 1..4"),
        ({"corrector": "half"}, "corrector='half' is not known to dpm-solver-v3; allowed: all, noisy, clean, none"),
    ],
    ids=str,
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_table("dpm-solver-v3", make_nodes(VPPath(), "logsnr", 5), **options)
