"""Tables whose array coefficients are filters in a basis, and tables that bring constants along."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pathline.interpolants import GaussianMixture, LinearPath
from pathline.samplers import Nodes, Table, build_table, make_nodes, run, sample
from pathline.samplers.bases import CosineBasis
from pathline.samplers.calibrate.bases import in_basis
from pathline.samplers.calibrate.trajectories import Problem
from pathline.samplers.calibrate.triangular import triangular
from pathline.samplers.calibrate.walk import Walk
from pathline.samplers.combine import Combiner
from pathline.samplers.functions import function_sampler
from pathline.samplers.schedulers import PathlineScheduler
from pathline.samplers.transforms import AnalyticStart

PATH, SHAPE = LinearPath(), (3, 4, 5)
_RNG = np.random.default_rng(0)
MEANS = _RNG.standard_normal((3, *SHAPE))
MODEL = GaussianMixture([0.3, 0.3, 0.4], MEANS, std=[0.2, 0.4, 0.3]).as_model(PATH, "velocity")
GROUPS = _RNG.integers(0, 3, SHAPE)
PROBLEM = Problem(MODEL, PATH, "velocity")


def start(count: int = 2) -> Tensor:
    return PATH.prior((count, *SHAPE), torch.Generator().manual_seed(1)).double()


def filtered(nodes: Nodes | None = None, **options: object) -> Table:
    """A base with weights that differ by group in the cosine basis."""
    base = build_table("ipndm", make_nodes(PATH, "logsnr", 4) if nodes is None else nodes, order=2, **options)
    rows = triangular(base).grouped(GROUPS, "cosine")
    rng = np.random.default_rng(2)
    weights = tuple(w * (1.0 + 0.05 * rng.standard_normal(w.shape)) for w in rows.weights[1:])
    return replace(rows, weights=(rows.weights[0], *weights)).to_table()


def by_hand(table: Table) -> Tensor:
    """The same run in the basis, in which the coefficients act on coordinates."""
    basis = CosineBasis()
    plain = replace(table, basis=None)
    return basis.back(in_basis(PROBLEM, basis).run(plain, basis.to(start())))


def test_filters_act_in_their_basis_beside_plain_terms_and_in_given_memory() -> None:
    basis, x, y = CosineBasis(), start(), start(2) * 0.5 + 1.0
    c = _RNG.standard_normal(SHAPE)
    combine = Combiner(x.device, "cosine")
    wanted = basis.back(torch.as_tensor(c) * basis.to(x)) - 2.0 * y
    room = torch.empty_like(x)
    assert combine(((0, c), (1, -2.0)), {0: x, 1: y}, room) is room
    torch.testing.assert_close(room, wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(combine(((1, -2.0), (0, c)), {0: x, 1: y}), wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(combine(((0, c),), {0: x}, room), wanted + 2.0 * y, rtol=0, atol=1e-12)


def test_run_sample_and_walk_are_the_run_in_the_basis(tmp_path: Path) -> None:
    table = filtered()
    wanted = by_hand(table)
    assert not torch.allclose(wanted, run(replace(table, basis=None), MODEL, start(), prediction="velocity"))
    table.save(tmp_path / "t.safetensors")
    assert (tmp_path / "t.safetensors").stat().st_size < 12_000  # groups once and their numbers, no arrays of numbers
    for method in (table, tmp_path / "t.safetensors"):
        out = sample(MODEL, start(), path=PATH, prediction="velocity", method=method)
        torch.testing.assert_close(out, wanted, rtol=0, atol=1e-10)
    walk = Walk(PROBLEM, table, start())
    for k in range(len(table.rows)):
        walk.go(table, k)
    torch.testing.assert_close(walk.values[table.result], wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_basis_and_constants_survive_files_and_count_in_equality(tmp_path: Path, suffix: str) -> None:
    plain = build_table("ipndm", make_nodes(PATH, "logsnr", 4), order=2, afs="gaussian")
    table = replace(plain, basis="cosine", constants={"data_mean": 0.25})
    if suffix == ".safetensors":
        table = replace(filtered(afs="gaussian"), constants={"data_mean": MEANS.mean(0)})
    table.save(tmp_path / f"t{suffix}")
    again = Table.load(tmp_path / f"t{suffix}")
    assert again == table
    assert again != replace(table, basis=None)
    assert again != replace(table, constants={"data_mean": 0.26})
    assert "cosine basis" in again.describe()
    assert "constant data_mean" in again.describe()
    assert table.fits_json == (suffix == ".json")


def test_coefficients_that_are_not_few_numbers_stay_as_they_are(tmp_path: Path) -> None:
    table = build_table("ddim", make_nodes(PATH, "logsnr", 2))
    where = next(iter(table.coefficients()))[0]
    arrays = replace(table.with_coefficient(where, _RNG.standard_normal(SHAPE)), frame="none: test")
    arrays.save(tmp_path / "t.safetensors")
    assert Table.load(tmp_path / "t.safetensors") == arrays


def test_constants_take_the_place_of_anchors_everywhere() -> None:
    nodes = make_nodes(PATH, "time", 4)
    mean = MEANS.mean(0)
    needy = build_table("ipndm", nodes, order=2, afs="gaussian")
    table = replace(needy, constants={"data_mean": mean})
    wanted = run(needy, MODEL, start(), prediction="velocity", anchors={"data_mean": torch.as_tensor(mean)})
    assert torch.equal(run(table, MODEL, start(), prediction="velocity"), wanted)
    known = run(build_table("ipndm", nodes, order=2, afs=AnalyticStart(mean)), MODEL, start(), prediction="velocity")
    torch.testing.assert_close(wanted, known, rtol=0, atol=1e-12)
    other = run(table, MODEL, start(), prediction="velocity", anchors={"data_mean": torch.zeros(())})
    assert not torch.allclose(other, wanted)
    with pytest.raises(ValueError, match=r"missing \['data_mean'\]"):
        run(needy, MODEL, start(), prediction="velocity")
    with pytest.raises(ValueError, match="which does not fit x_init"):
        run(replace(table, constants={"data_mean": np.zeros(7)}), MODEL, start(), prediction="velocity")


def test_bases_for_other_states_and_unknown_ones_are_refused() -> None:
    flat = GaussianMixture([1.0], [[0.5, -0.5]], 0.3).as_model(PATH, "velocity")
    x = PATH.prior((2, 2), torch.Generator().manual_seed(0))
    calls = []

    def model(x: Tensor, t: Tensor) -> Tensor:
        calls.append(len(x))
        return flat(x, t)

    with pytest.raises(ValueError, match=r"coefficients in the cosine basis.*images"):
        sample(model, x, path=PATH, prediction="velocity", method=filtered())
    with pytest.raises(ValueError, match=r"samples of shape \(3, 4, 5\), not \(3, 8, 8\)"):
        sample(model, torch.zeros(1, 3, 8, 8), path=PATH, prediction="velocity", method=filtered())
    assert not calls
    content = replace(build_table("ddim", make_nodes(PATH, "logsnr", 2)), basis="cosine").content()
    with pytest.raises(ValueError, match=r"unknown basis 'cosin'.*cosine"):
        Table.from_content(content | {"basis": "cosin"})


def _network(x: Tensor, timestep: Tensor) -> Tensor:
    return -MODEL(x, (1.0 - timestep / 1000.0).expand(len(x)).to(x.dtype))


@pytest.mark.parametrize("constant", [False, True])
def test_a_scheduler_runs_filters_and_constants_like_sample(tmp_path: Path, constant: bool) -> None:
    nodes = make_nodes(PATH, [0.0, 0.2, 0.5, 0.8, 1.0])
    table = filtered(nodes, **({"afs": "gaussian"} if constant else {}))
    needy, table = table, replace(table, constants={"data_mean": MEANS.mean(0)} if constant else {})
    file = tmp_path / "t.safetensors"
    table.save(file)
    scheduler = PathlineScheduler(pathline={"table": str(file)})
    scheduler.set_timesteps(table.evaluations)
    x = start()
    for t in scheduler.timesteps:
        x = scheduler.scale_model_input(x, t)  # takes the analytic first step
        x = scheduler.step(_network(x, t), t, x, return_dict=False)[0]
    wanted = sample(MODEL, start(), path=PATH, prediction="velocity", method=file)
    torch.testing.assert_close(x, wanted, rtol=0, atol=1e-5)  # timesteps are float32
    if constant:
        needy.save(tmp_path / "needy.safetensors")
        refused = PathlineScheduler(pathline={"table": str(tmp_path / "needy.safetensors")})
        with pytest.raises(ValueError, match="data_mean, which a diffusers pipeline does not supply"):
            refused.set_timesteps(table.evaluations)


def test_a_k_diffusion_function_runs_filters_and_constants() -> None:
    table = filtered(make_nodes(PATH, [0.0, 0.2, 0.5, 0.8, 1.0]), afs="gaussian")
    constants = replace(table, constants={"data_mean": MEANS.mean(0)})
    data = GaussianMixture([0.3, 0.3, 0.4], MEANS, std=[0.2, 0.4, 0.3]).as_model(PATH, "data")

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        return data(x, 1.0 - sigma)

    sigmas = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0], dtype=torch.float64)
    out = function_sampler(constants)(denoiser, start(), sigmas, disable=True, flow=True)
    wanted = run(constants, MODEL, start(), prediction="velocity")
    torch.testing.assert_close(out, wanted, rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match=r"data_mean.*which no host gives"):
        function_sampler(table)
