"""The evidence behind the untuned default: the bench on sources, and the same levels on two paths."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pathline.evals.defaults import candidates, main, open_bed
from pathline.evals.mixture_bed import ddpm_path, mixture_source, save_mixture
from pathline.evals.peers import Bench, Setting, settings_of
from pathline.evals.stock_peers import Stock, best_stock, stock_error
from pathline.interpolants import GaussianMixture, LinearPath
from pathline.samplers import Nodes, make_nodes, plan, run


@pytest.fixture(scope="module")
def mixture_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of two classes in the format of the CIFAR-10 bed."""
    rng = np.random.default_rng(3)
    basis = np.stack([np.linalg.qr(rng.standard_normal((12, 2)))[0] for _ in range(4)])
    arrays = {
        "weights": np.full(4, 0.25),
        "means": rng.standard_normal((4, 12)),
        "std": np.array([0.2, 0.3, 0.4, 0.3]),
        "basis": basis,
        "spectrum": rng.uniform(0.2, 1.0, (4, 2)),
        "classes": np.array([0, 0, 1, 1]),
        "shape": np.array([3, 2, 2]),
    }
    file = tmp_path_factory.mktemp("bed") / "mixture.npz"
    save_mixture(arrays, file)
    return file


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ddim", {}),
        ("ipndm", {"order": 2}),
        ("ipndm", {"order": 3, "afs": "zero"}),
        ("ghvb", {"order": 2.5}),
        ("dpm++", {"order": 3}),
        ("dpm", {"order": 2}),
        ("unipc", {"order": 3}),
        ("unipc", {"order": 2, "form": "noise"}),
        ("exp-adams", {"order": 3}),
        ("ipndm_v", {"order": 3}),
        ("dpm2", {}),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["karras", "time"])
def test_the_same_levels_give_the_same_end_on_vp_and_flow(method: str, options: dict[str, Any], kind: str) -> None:
    """x/signal is the same function of noise/signal on every path, and so is what a solver makes of it."""
    rng = np.random.default_rng(1)
    law = GaussianMixture([0.5, 0.5], rng.standard_normal((2, 6)), std=[0.3, 0.5])
    vp, flow = ddpm_path(), LinearPath()
    nodes = make_nodes(vp, kind, 6)
    total = nodes.signal + nodes.noise
    same = Nodes(nodes.signal / total, nodes.noise / total, path=flow)
    np.testing.assert_allclose(same.lam[:-1], nodes.lam[:-1], atol=1e-9)
    x = vp.prior((4, 6), torch.Generator().manual_seed(0)).double()
    ours = run(plan(vp, method, grid=nodes, **options), law.as_model(vp, "noise"), x, prediction="noise")
    scaled = x * float(same.noise[0] / nodes.noise[0])
    theirs = run(
        plan(flow, method, grid=same, **options), law.as_model(flow, "velocity"), scaled, prediction="velocity"
    )
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-6)


def test_both_paths_of_the_mixture_are_one_source(mixture_file: Path) -> None:
    vp, flow = (mixture_source(mixture_file, path) for path in ("discrete", "linear"))
    assert (vp.shape, vp.classes, vp.identity) == ((3, 2, 2), 2, flow.identity)
    ends = [Bench(source, samples=4).end for source in (vp, flow)]
    assert float((ends[0] - ends[1]).abs().mean()) < 0.05  # the flow starts at noise/signal = ∞ instead of 157
    with pytest.raises(ValueError, match="path of the mixture bed"):
        mixture_source(mixture_file, "cosine")


def test_errors_of_settings_are_written(mixture_file: Path, tmp_path: Path) -> None:
    words = ["--methods", "ddim", "unipc:order=2", "heun", "--grids", "logsnr", "karras:rho=3", "--nfe", "4,12"]
    bed = f"mixture:file={mixture_file},path=linear"
    main([bed, *words, "--samples", "6", "--screen", "3", "--keep", "2", "--out", str(tmp_path / "a.json")])
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["source"] == bed
    few, many = found["errors"]["4"], found["errors"]["12"]
    assert set(few) == {str(s) for s in candidates(4, words[1:4], ["logsnr", "karras:rho=3"])}
    assert sorted(count for _, count in few.values()) == [3] * (len(few) - 2) + [6] * 2
    assert min(error for error, _ in many.values()) < 0.5 * min(error for error, _ in few.values())


def test_settings_with_an_analytic_step_have_one_step_more() -> None:
    bench = Bench(open_bed("bed:gaussian"), samples=2)
    with_step, without = reversed(list(settings_of(["ipndm:order=2"], ["karras"])))
    assert with_step == Setting("ipndm:order=2,afs=unit", "karras")
    tables = [bench.table(setting, 5) for setting in (with_step, without)]
    assert [(t.evaluations, len(t.nodes["signal"])) for t in tables] == [(5, 7), (5, 6)]
    with pytest.raises(ValueError, match="below what one step"):
        bench.table(Setting("runge-kutta", "logsnr"), 0)


@pytest.mark.filterwarnings("ignore:__array_.*:DeprecationWarning")  # diffusers with numpy 2
@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
def test_a_stock_scheduler_is_measured_like_our_table_of_it(mixture_file: Path) -> None:
    bench = Bench(mixture_source(mixture_file), samples=6)
    stock = Stock("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"})
    assert stock_error(bench, stock, 5) == pytest.approx(bench.error(Setting("ddim", "trailing"), 5), rel=1e-3)
    assert bench.problem.calls > 0
    heun = Stock("HeunDiscreteScheduler", {"timestep_spacing": "trailing"})
    before = bench.problem.calls
    stock_error(bench, heun, 6, samples=2)
    assert bench.problem.calls - before == 2 * 5  # 3 steps; a fourth would be the seventh call
    found = best_stock(bench, 5, screen=2, keep=2)
    assert found[0].error <= found[1].error
    with pytest.raises(ValueError, match="DDPM's schedule"):
        stock_error(Bench(mixture_source(mixture_file, "linear"), samples=2), stock, 6)
