"""Nodes, grids, tables as files, the registry, and what bad input is told."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pathline.interpolants import CosinePath, DiscretePath, EDMPath, LinearPath, VEPath, VPPath
from pathline.samplers import (
    Case,
    Nodes,
    Program,
    Reference,
    Table,
    apply_corrector,
    build_table,
    check,
    denoise_end,
    grid_info,
    list_grids,
    list_methods,
    make_nodes,
    method_info,
    plan,
    register,
    run,
    sample,
)
from pathline.samplers import registry as registry_module
from support.problems import gaussian_methods


def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return 0.3 * x


# --- nodes and grids ----------------------------------------------------------------------------------------


def test_families_supply_the_points_between() -> None:
    lam = np.linspace(-1.0, 1.5, 4)
    vp = Nodes(1 / np.sqrt(1 + np.exp(-2 * lam)), 1 / np.sqrt(1 + np.exp(2 * lam)))
    linear = Nodes(1 / (1 + np.exp(-lam)), 1 / (1 + np.exp(lam)))
    ve = Nodes(np.ones(4), np.exp(-lam))
    assert [n.family for n in (vp, linear, ve)] == ["vp", "linear", "ve"]
    for nodes in (vp, linear, ve):
        level = nodes.between(0.2)
        assert level.lam == pytest.approx(0.2)
    assert linear.between(0.2).time == pytest.approx(linear.between(0.2).signal)
    assert ve.between(0.2).time == pytest.approx(np.exp(-0.2))
    assert linear.level(1).signal_rate == pytest.approx(1.0)
    assert ve.level(1).noise_rate == pytest.approx(1.0)
    assert vp.level(1).signal_rate is None


def test_path_supplies_rates_in_its_own_time() -> None:
    path = VPPath()
    times = np.linspace(0.1, 0.9, 5)
    point = path.at(torch.tensor(times))
    nodes = Nodes(point.signal.numpy(), point.noise.numpy(), 1000 * (1 - times), path)
    assert nodes.level(2).signal_rate == pytest.approx(float(point.signal_rate[2]))
    assert nodes.level(2).clock == pytest.approx(times[2])
    between = nodes.between(float(path.lam(0.45)))
    assert between.time == pytest.approx(550.0)
    assert between.noise_rate == pytest.approx(float(path.noise_rate(0.45)))


@pytest.mark.parametrize("method", ["euler", "heun", "dpm++", "ipndm"])
@pytest.mark.parametrize("labels", [[0.1, 0.4, 0.7, 1.0], [900.0, 600.0, 300.0, 0.0], [900.0, 650.0, 100.0, 0.0]])
@pytest.mark.parametrize("given", [True, False])
def test_velocity_is_in_path_time_whatever_the_labels(method: str, labels: list[float], given: bool) -> None:
    """data − noise on linear nodes, with or without the path, for labels in any unit and direction."""
    nodes = Nodes([0.1, 0.4, 0.7, 1.0], [0.9, 0.6, 0.3, 0.0], labels, LinearPath() if given else None)
    levels = {labels[i]: nodes.level(i) for i in range(4)}

    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        level = levels[float(t[0])]
        data = torch.tanh(x)
        return data - (x - level.signal * data) / level.noise

    x = torch.tensor([[0.5], [-1.0]], dtype=torch.float64)
    wanted = run(build_table(method, nodes), lambda x, t: torch.tanh(x), x)
    assert torch.allclose(run(build_table(method, nodes), velocity, x, prediction="velocity"), wanted)


def test_time_steps_need_a_path_that_reaches_the_clean_end() -> None:
    with pytest.raises(ValueError, match="variant='time' cannot take the step to noise 0 on path 've'"):
        build_table("heun", make_nodes(VEPath(), "karras", 4), variant="time")


def test_unknown_family_refuses_points_between() -> None:
    with pytest.raises(ValueError, match="neither VP"):
        Nodes([0.1, 0.5], [3.0, 0.2]).between(0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"signal": [0.1, 0.5, 0.4], "noise": [0.9, 0.5, 0.4]},
            r"strictly increasing, but it goes from 0.5/0.5 at node 1",
        ),
        ({"signal": [0.5], "noise": [0.5]}, "at least 2 nodes"),
        ({"signal": [0.1, 0.5], "noise": [0.9, 0.5, 0.1]}, "noise has 3 entries, but signal has 2"),
        ({"signal": [0.1, -0.5], "noise": [0.9, 0.5]}, r"signal\[1\] is negative"),
        ({"signal": [0.1, np.inf], "noise": [0.9, 0.5]}, r"signal\[1\] is not finite"),
        ({"signal": [0.0, 0.5], "noise": [0.0, 0.5]}, "both 0 at node 0"),
        ({"signal": [[0.1, 0.5]], "noise": [0.9, 0.5]}, "one-dimensional"),
        ({"signal": [0.1, 0.5, 0.9], "noise": [0.9, 0.5, 0.1], "time": [0.0, 0.5, 0.2]}, "time must be monotone"),
        ({"signal": [0.1, 0.5], "noise": [0.9, 0.5], "path": VPPath()}, "does not lie on path 'vp'"),
        ({"signal": [0.1, 0.5], "noise": [0.9, 0.5], "signal_rate": [1.0, 1.0]}, "give both or none"),
        (
            {"signal": [0.1, 0.5], "noise": [0.9, 0.5], "signal_rate": [-1.0] * 2, "noise_rate": [1.0] * 2},
            "fall towards",
        ),
    ],
)
def test_bad_nodes(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Nodes(**arguments)


@pytest.mark.parametrize("path", [LinearPath(), CosinePath(), VPPath(), VEPath(), EDMPath()], ids=lambda p: p.name)
@pytest.mark.parametrize("grid", [g for g in list_grids() if not grid_info(g).requires])
def test_grids_reach_both_ends(path: Any, grid: str) -> None:
    for steps in (1, 2, 9, 50):
        nodes = make_nodes(path, grid, steps)
        assert nodes.steps == steps
        assert nodes.ends_clean
        assert nodes.starts_pure == (float(path.signal(0.0)) == 0.0)
        if grid not in ("leading",) and float(path.signal(0.0)) > 0 and steps > 1:
            assert nodes.lam[0] <= path.lambda_min + 0.2


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("steps", [3, 7, 10, 50])
def test_discrete_grids_equal_diffusers(spacing: str, steps: int) -> None:
    from diffusers import DDIMScheduler

    path = DiscretePath.scaled_linear()
    stock = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing=spacing)
    stock.set_timesteps(steps)
    ours = np.round(path.steps * (1 - make_nodes(path, spacing, steps).time[:-1]) - 1)
    # "linspace": DDIM keeps the last index; ours is the convention of the multistep classes, which drops it
    multistep = np.round(np.linspace(0, 999, steps + 1))[::-1][:-1]
    theirs = multistep if spacing == "linspace" else stock.timesteps.numpy()
    assert np.array_equal(ours, theirs)


def test_shifted_grid_is_the_flow_shift() -> None:
    nodes = make_nodes(LinearPath(), "shifted", 4, shift=3.0)
    tau = np.array([1, 0.75, 0.5, 0.25, 0])
    assert nodes.noise == pytest.approx(3 * tau / (1 + 2 * tau))


def test_beta_grid_agrees_with_diffusers_on_flow() -> None:
    from scipy.stats import beta

    nodes = make_nodes(LinearPath(), "beta", 5)
    assert nodes.noise[:-1] == pytest.approx(beta.ppf(1 - np.arange(5) / 5, 0.6, 0.6))


def test_final_path_stops_at_the_smallest_noise() -> None:
    nodes = make_nodes(EDMPath(), "karras", 6, final="path")
    assert nodes.noise[-1] == pytest.approx(0.002)
    assert nodes.steps == 6
    assert nodes.noise[1] == pytest.approx((80 ** (1 / 7) + (0.002 ** (1 / 7) - 80 ** (1 / 7)) / 6) ** 7)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_nodes(VPPath(), "karas", 5), "unknown grid 'karas'.*karras"),
        (lambda: make_nodes(VPPath(), "karras", 0), "steps=0 is not possible"),
        (lambda: make_nodes(VPPath(), "karras", 5, roh=3), "roh.*rho"),
        (lambda: make_nodes(VPPath(), "karras", 5, rho=-1), "rho=-1 is not possible"),
        (lambda: make_nodes(VPPath(), "time", 5, final="none"), "final='none' is not possible"),
        (lambda: make_nodes(VPPath(), [0.0, 0.5, 0.4]), "must increase within"),
        (lambda: make_nodes(VPPath(), [0.5]), "at least 2 entries"),
        (lambda: plan(VPPath(), "dmp++", nfe=5), r"unknown method 'dmp\+\+'.*dpm\+\+"),
        (lambda: plan(VPPath(), "unipc", nfe=5, ordr=2), "ordr.*order"),
        (lambda: plan(VPPath(), "unipc", nfe=5, order=7), "order=7 is not possible for unipc; allowed: 1..4"),
        (lambda: plan(VPPath(), "dpm++", nfe=5, variant="mid"), "allowed: midpoint, heun, exact"),
        (lambda: plan(VPPath(), "ddim", nfe=5, eta=1.5), "eta=1.5 is not possible"),
        (lambda: plan(VPPath(), "ddim", nfe=5, steps=5), "not both"),
        (lambda: plan(VPPath(), "ddim", nfe=0), "at least 1 evaluation"),
        (lambda: plan(None, "ddim", nfe=5), "path is missing"),
        (lambda: plan(VPPath(), "ddim", nfe=5, grid=[0.0, 1.0]), "leave out nfe and steps"),
        (lambda: plan(VPPath(), "ddim", nfe=5, afs="uint"), "unit"),
    ],
)
def test_bad_requests_name_what_is_allowed(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_budget_below_one_step_is_refused() -> None:
    with pytest.raises(ValueError, match="below the 2 evaluations that one step of 'heun' costs"):
        plan(VPPath(), "heun", nfe=1, grid_options={"final": "path"})


def test_nothing_is_called_before_a_refusal() -> None:
    def never(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        raise AssertionError("called")

    for bad in ({"prediction": "epsilon"}, {"prediction": "noise"}, {"method": "nope"}, {"chunk_size": 0}):
        with pytest.raises(ValueError, match=r"."):
            sample(never, torch.zeros(2, 3), path=LinearPath(), **bad)


# --- files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
@pytest.mark.parametrize("method", gaussian_methods())
def test_saved_table_runs_the_same(method: str, suffix: str, tmp_path: Path) -> None:
    table = build_table(method, make_nodes(LinearPath(), "logsnr", 5))
    file = tmp_path / f"t{suffix}"
    table.save(file)
    loaded = Table.load(file)
    assert loaded == table
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(run(loaded, model, x), run(table, model, x))
    assert [p.name for p in tmp_path.iterdir()] == [file.name]


def test_array_coefficients_need_safetensors(tmp_path: Path) -> None:
    nodes = make_nodes(VPPath(), "logsnr", 2)
    program = Program(nodes)
    x = program.state
    for i in range(nodes.steps):
        carry = nodes.noise[i + 1] / nodes.noise[i]
        weight = np.full((3,), nodes.signal[i + 1] - carry * nodes.signal[i])
        x = program.let(carry * x + weight * program.query(x, i))
    table = program.finish(x)
    assert table.has_arrays
    with pytest.raises(ValueError, match=r"save it as \.safetensors"):
        table.save(tmp_path / "t.json")
    table.save(tmp_path / "t.safetensors")
    start = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = run(build_table("ddim", nodes), model, start)
    assert torch.allclose(run(Table.load(tmp_path / "t.safetensors"), model, start), expected)


def test_damaged_tables_are_named(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    build_table("unipc", make_nodes(VPPath(), "logsnr", 4)).save(file)
    content = json.loads(file.read_text())
    content["rows"][1]["updates"][0][1][0][1] += 0.01
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"t.json is not a sound pathline table.*not exact in frame 'point_mass'"):
        Table.load(file)
    for damage in ({"rows": []}, {"result": 77}, {"method": None}):
        file.write_text(json.dumps(content | damage))
        with pytest.raises(ValueError, match=r"t.json is not a (sound|readable) pathline table"):
            Table.load(file)
    file.write_text(json.dumps(content | {"format": 99}))
    with pytest.raises(ValueError, match=r"t\.json is not a readable pathline table: format 99"):
        Table.load(file)
    file.write_text("{")
    with pytest.raises(ValueError, match="not a readable pathline table"):
        Table.load(file)
    with pytest.raises(ValueError, match=r"end in \.json or \.safetensors"):
        build_table("ddim", make_nodes(VPPath(), "logsnr", 4)).save(tmp_path / "t.txt")


def test_non_finite_tables_are_not_saved(tmp_path: Path) -> None:
    table = build_table("ddim", make_nodes(VPPath(), "logsnr", 3))
    where, _ = next(table.coefficients())
    with pytest.raises(ValueError, match="non-finite"):
        table.with_coefficient(where, float("nan")).save(tmp_path / "t.json")
    assert not list(tmp_path.iterdir())


def test_description_reads_like_the_update_rule() -> None:
    text = build_table("unipc", make_nodes(LinearPath(), "logsnr", 4), order=2).describe()
    assert text.startswith("unipc(order=2, variant=bh2")
    assert "4 evaluations" in text
    assert text.count("row ") == 4
    assert "·D₁" in text


# --- registry -----------------------------------------------------------------------------------------------

REFERENCE = Reference(key="x2026", authors="A. Author", title="T", year=2026, venue="V")


@pytest.fixture
def scratch_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "_METHODS", dict(registry_module._METHODS))


@pytest.mark.usefixtures("scratch_registry")
def test_a_new_method_is_a_function() -> None:
    @register("half-ddim", cases=[Case({}, 1, 1)], reference=REFERENCE)
    def half_ddim(nodes: Nodes, *, scale: float = 1.0) -> Table:
        """DDIM once more."""
        return build_table("ddim", nodes)

    assert "half-ddim" in list_methods()
    info = method_info("half-ddim")
    assert info.options == {"scale": 1.0}
    assert info.summary == "DDIM once more."
    x = sample(model, torch.ones(1, 2), path=VPPath(), method="half-ddim", nfe=4)
    assert torch.equal(x, sample(model, torch.ones(1, 2), path=VPPath(), method="ddim", nfe=4))


@pytest.mark.usefixtures("scratch_registry")
def test_third_party_methods_come_through_the_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        def load(self) -> None:
            register("plugged", cases=[Case({}, 1, 1)], reference=REFERENCE)(method_info("ddim").build)

    monkeypatch.setattr(registry_module, "entry_points", lambda group: [Point()] if group == "pathline.methods" else [])
    registry_module._load_entry_points.cache_clear()
    assert "plugged" in list_methods()


@pytest.mark.usefixtures("scratch_registry")
def test_wrong_registrations_are_refused() -> None:
    def positional(nodes: Nodes, order: int = 1) -> Table:
        return build_table("ddim", nodes)

    with pytest.raises(ValueError, match=r"keyword-only with defaults; mend \['order'\]"):
        register("p", cases=[Case({}, 1, 1)], reference=REFERENCE)(positional)
    with pytest.raises(ValueError, match="already registered"):
        register("ddim", cases=[Case({}, 1, 1)], reference=REFERENCE)(positional)
    with pytest.raises(ValueError, match="declares no case"):
        register("q", cases=[], reference=REFERENCE)(positional)


@pytest.mark.parametrize("name", list_methods())
def test_registered_facts(name: str) -> None:
    info = method_info(name)
    assert info.summary.endswith((".", ")"))
    assert f"@misc{{{info.reference.key}," in info.bibtex
    assert info.cases[0].options.items() <= info.options.items()


# --- transforms ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", gaussian_methods())
def test_denoised_end_is_the_data_prediction(method: str) -> None:
    path = EDMPath()
    nodes = make_nodes(path, "karras", 5, final="path")
    table = build_table(method, nodes)
    denoised = denoise_end(table)
    check(denoised)
    assert denoised.evaluations == table.evaluations + 1
    start = path.prior((2, 3), torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(run(denoised, model, start), model(run(table, model, start), torch.zeros(2)))
    with pytest.raises(ValueError, match="already ends at noise 0"):
        denoise_end(denoised)


# --- correctors ---------------------------------------------------------------------------------------------


def test_exact_corrector_on_adams_is_unipc_exact() -> None:
    from pathline.samplers.methods.unipc import exact_corrector

    nodes = make_nodes(VPPath(), "logsnr", 6)
    corrected = exact_corrector(build_table("exp-adams", nodes, order=2), nodes, order=2)
    wanted = build_table("unipc", nodes, order=2, variant="exact")
    assert corrected.rows == wanted.rows
    assert corrected.evaluations == 6


def test_corrector_refuses_inner_stages() -> None:
    nodes = make_nodes(VPPath(), "logsnr", 4)
    with pytest.raises(ValueError, match="no inner stages"):
        apply_corrector(build_table("heun", nodes), nodes, np.ones(4), [None] * 4)


def test_momentum_may_be_given_by_itself() -> None:
    nodes = make_nodes(VPPath(), "logsnr", 5)
    assert build_table("ghvb", nodes, order=3, beta=0.5).rows == build_table("ghvb", nodes, order=2.5).rows
    with pytest.raises(ValueError, match="needs a whole order"):
        build_table("ghvb", nodes, order=2.5, beta=0.5)


def test_orders_one_are_all_ddim() -> None:
    for nodes in (make_nodes(VPPath(), "logsnr", 5), make_nodes(LinearPath(), "karras", 5)):
        wanted = build_table("ddim", nodes)
        for name, options in (("dpm++", {"order": 1}), ("exp-adams", {"order": 1}), ("euler", {"variant": "sigma"})):
            ours = build_table(name, nodes, **options)
            for (_, a), (_, b) in zip(ours.coefficients(), wanted.coefficients(), strict=True):
                assert a == pytest.approx(b, rel=1e-12)
