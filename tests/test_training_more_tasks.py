"""Schrödinger bridges, c-rectified flows and continuous conditions in the trainer."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pathline.evals.drawing import draw_samples
from pathline.evals.settings import SweepSettings
from pathline.interpolants import Gaussian, gaussian_plan
from pathline.samplers import sample
from pathline.training import ArraySet, BatchPlan, load_data, load_pipeline, resolve_options, vector_channels
from pathline.training.convex_task import ConvexFlowTask, PotentialModel
from pathline.training.samples import SampleMaker
from pathline.training.schroedinger_task import SchroedingerModel, SchroedingerTask
from pathline.training.setup import make_task
from pathline.training.tasks import Samples
from support.training_runs import fresh_accelerate, losses, resumed_equals_unbroken, run, same, weights

SB: dict[str, Any] = {"objective": "schroedinger"}
CONVEX: dict[str, Any] = {"objective": "convex_flow", "cost_power": 1.5}
VECTORS: dict[str, Any] = {"vector_conditional": True, "coupling": "c2ot", "coupling_batch": 16}
F64 = torch.float64


@pytest.fixture(autouse=True)
def accelerate_state() -> Iterator[None]:
    with fresh_accelerate():
        yield


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


class ExactBridge:
    """E[x_1 − x_0 | x] and E[z | x] of the bridge between N(0, 1) and N(mean, spread²), as a network gives them."""

    def __init__(self, sigma: float, mean: float, spread: float) -> None:
        plan = gaussian_plan(Gaussian([0.0], variance=1.0), Gaussian([mean], variance=spread**2), 2 * sigma**2)
        self.sigma, self.mean, self.spread, self.cross = sigma, mean, spread, float(plan.cross)

    def __call__(self, x: Tensor, label: Tensor) -> Tensor:
        t = (1 - label.to(F64) / 1000)[:, None]
        inner = self.sigma**2 * t * (1 - t)
        power = (1 - t) ** 2 + (t * self.spread) ** 2 + 2 * t * (1 - t) * self.cross + inner
        share = ((1 - t) * (self.cross - 1) + t * (self.spread**2 - self.cross)) / power
        away = x - t * self.mean
        return torch.cat([self.mean + share * away, inner.sqrt() / power * away], 1)


@pytest.mark.parametrize("sigma", [0.3, 1.0])
def test_flow_and_process_of_an_exact_bridge_reach_the_data(sigma: float) -> None:
    network = ExactBridge(sigma, 1.5, 0.4)
    model = SchroedingerModel(network, sigma)
    start = normals(4000, 1)
    flowed = sample(model, start, method="heun", grid="time", nfe=160)
    assert isinstance(flowed, Tensor)
    torch.testing.assert_close(flowed, 1.5 + 0.4 * start, rtol=0, atol=0.06)
    moved = sample(model.stochastic, start, method="bridge-posterior", grid="time", nfe=320, seed=3)
    assert isinstance(moved, Tensor)
    mean, spread = float(moved.mean()), float(moved.std())
    assert mean == pytest.approx(1.5, abs=5 * 0.4 / math.sqrt(4000))
    assert spread == pytest.approx(0.4, abs=0.02)
    cross = float(((start - start.mean()) * (moved - mean)).mean())  # of the entropic plan, standard error 0.009
    assert cross == pytest.approx(network.cross, abs=0.04)


def test_the_minimum_of_the_bridge_loss_is_the_exact_network() -> None:
    task = make_task(resolve_options(SB))
    assert isinstance(task, SchroedingerTask)
    network = ExactBridge(1.0, 1.5, 0.4)
    plan = gaussian_plan(Gaussian([0.0], variance=1.0), Gaussian([1.5], variance=0.16), 2.0)
    start = normals(20_000, 1, seed=1)
    data = 1.5 + plan.cross.item() * start + math.sqrt(0.16 - plan.cross.item() ** 2) * normals(20_000, 1, seed=2)
    times = task.times((torch.arange(20_000, dtype=F64) + 0.5) / 20_000)[torch.randperm(20_000)]
    made = Samples(data, start, times, {}, normals(20_000, 1, seed=3))

    def mean_loss(shift: float, scale: float) -> float:
        model = task.wrap(lambda x, label: network(x, label) * scale + shift)
        return float(task.losses(model, made).mean())

    least = mean_loss(0.0, 1.0)
    assert all(mean_loss(*other) > least + 1e-3 for other in ((0.1, 1.0), (-0.1, 1.0), (0.0, 1.1), (0.0, 0.9)))
    x, t = normals(5, 1), torch.full((5,), 0.4, dtype=F64)
    model = task.wrap(network)
    assert isinstance(model, SchroedingerModel)
    power = 0.36 + 0.16 * 0.16 + 2 * 0.24 * network.cross + 0.24
    torch.testing.assert_close(model.score(x, t), -(x - 0.6) / power)
    velocity, score = model(x, t), model.score(x, t)
    drift = (model.stochastic(x, t) - x) / 0.6
    torch.testing.assert_close(drift, model.bridge.drift(velocity, score))


def test_a_bridge_is_coupled_by_its_own_plan() -> None:
    options = resolve_options({**SB, "path_config": {"sigma": 0.5}})
    assert (options.coupling, options.coupling_config) == ("newton", {"regularisation": 0.5})
    assert resolve_options({**SB, "coupling": "ot"}).coupling_config == {}


@pytest.mark.parametrize("power", [1.5, 2.0, 3.0])
def test_a_potential_that_fits_has_no_loss_and_its_flow_moves_so(power: float) -> None:
    task = make_task(resolve_options({"objective": "convex_flow", "cost_power": power}))
    assert isinstance(task, ConvexFlowTask)
    way = normals(1, 1, 2, 2, seed=5)
    slope = way.sign() * way.abs() ** (power - 1)  # ∇c(way), so that ∇c*(slope) = way
    model = task.wrap(lambda x, label: slope.expand(x.shape))
    assert isinstance(model, PotentialModel)
    start = normals(6, 1, 2, 2)
    times = torch.linspace(0.1, 0.9, 6, dtype=F64)
    assert float(task.losses(model, Samples(start + way, start, times, {})).abs().max()) < 1e-12
    assert float(task.losses(model, Samples(start + 2 * way, start, times, {})).min()) > 1e-3
    with torch.no_grad():
        made = sample(model, start, **task.sampling(None, 4))
    torch.testing.assert_close(made, start + way)


def vectors_file(folder: Path, size: int = 2) -> str:
    data = load_data("digits", split="all")
    assert isinstance(data, ArraySet)
    assert data.targets is not None
    angle = data.targets.double() * (2 * math.pi / 10)
    told = torch.stack([angle.cos(), angle.sin()], 1)[:, :size].float().numpy()
    np.savez(
        folder / "v.npz", arr_0=data.pixels.permute(0, 2, 3, 1).numpy(), conditions=told if size > 1 else told[:, 0]
    )
    return str(folder / "v.npz")


def maker(folder: Path, **options: Any) -> tuple[SampleMaker, ArraySet]:
    resolved = resolve_options({"train_batch_size": 8, "train_data_dir": vectors_file(folder), **options})
    data = load_data(None, data_dir=resolved.train_data_dir)
    assert isinstance(data, ArraySet)
    return SampleMaker(resolved, data, BatchPlan(len(data), 8, 1, 1, 0), make_task(resolved), None), data


def test_vectors_are_channels_and_are_dropped_as_a_whole(tmp_path: Path) -> None:
    make, data = maker(tmp_path, vector_conditional=True, class_dropout=0.5)
    assert data.vectors is not None
    places = torch.arange(8)
    where = make.plan.indices(3, places)
    made = make(3, places, data.__getitems__(where), torch.device("cpu")).conditions["condition"]
    assert made.shape == (8, 3, 8, 8)
    kept = made[:, 2, 0, 0] == 1
    assert 0 < int(kept.sum()) < 8
    assert torch.equal(made[kept], vector_channels(data.vectors[where][kept], 8, 8))
    assert bool((made[~kept] == 0).all())
    parts = [
        make(3, some, data.__getitems__(make.plan.indices(3, some)), torch.device("cpu")).conditions["condition"]
        for some in (torch.arange(3), torch.arange(3, 8))
    ]
    assert torch.equal(torch.cat(parts), made)


@pytest.mark.parametrize("ratio", [0.01, 0.3])
def test_c2ot_looks_at_the_vectors(tmp_path: Path, ratio: float) -> None:
    """The smaller the share of cheaper pairs, the nearer the conditions stay to those that the noise came with."""
    make, data = maker(tmp_path, **{**VECTORS, "coupling_batch": 256, "coupling_config": {"ratio": ratio}})
    assert make.coupled is not None
    assert data.vectors is not None
    partner = make.coupled.partners(torch.arange(256))
    told = data.vectors[make.plan.indices_at(torch.arange(256))]
    near = float((1 - (told * told[partner]).sum(1)).mean())
    assert (near < 0.15) if ratio == 0.01 else (near > 0.15)
    assert resolve_options(VECTORS).coupling_config == {"ratio": 0.01}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({**SB, "coupling": "independent"}, "coupling='independent' does not make a Schrödinger bridge"),
        ({**SB, "coupling": "c2ot"}, "coupling='c2ot' does not make a Schrödinger bridge"),
        ({**SB, "coupling_config": {"regularisation": 1.0}}, r"regularisation=1.0, but that of .* is 2"),
        ({**SB, "path_config": {"sigma": 0}}, "path_config of objective 'schroedinger' is a sigma above 0"),
        (
            {**SB, "path_config": {"sigma": "wide"}},
            "path_config has sigma='wide' for path 'brownian', which must be a num",
        ),
        ({**SB, "path": "linear"}, "path='linear' does not go with objective 'schroedinger'; allowed: 'brownian'"),
        ({**SB, "prediction": "score"}, "prediction='score' does not go with objective 'schroedinger'"),
        ({**CONVEX, "cost_power": 1.0}, r"cost_power must be a finite number above 1, got 1.0"),
        ({**CONVEX, "path": "vp"}, "path='vp' does not go with objective 'convex_flow'"),
        ({**CONVEX, "image_condition": "inpainting"}, "image_condition='inpainting' does not go with"),
        (
            {"path": "vp", "path_config": {"beta_min": "a"}},
            "path_config has beta_min='a' for path 'vp', which must be a",
        ),
        (
            {**VECTORS, "image_condition": "inpainting", "coupling": "independent"},
            "does not go with vector_conditional",
        ),
    ],
)
def test_what_does_not_go_together(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        resolve_options(options)


@pytest.mark.parametrize(
    ("conditions", "words"),
    [
        (np.zeros((12, 0), np.float32), r"must be floats \(12,\) or \(12, K\)"),
        (np.zeros((11, 2), np.float32), r"must be floats \(12,\) or \(12, K\)"),
        (np.zeros(12, np.int64), "must be floats"),
        (np.array([0.0] * 11 + [np.nan]), "are not finite: 1 of 12, first 11"),
        (None, "vector_conditional needs `conditions` in an .npz"),
    ],
)
def test_conditions_that_are_none_are_refused(tmp_path: Path, conditions: Any, words: str) -> None:
    given = {} if conditions is None else {"conditions": conditions}
    np.savez(tmp_path / "v.npz", arr_0=np.zeros((12, 8, 8, 1), np.uint8), **given)
    with pytest.raises(ValueError, match=words):
        run(tmp_path / "out", vector_conditional=True, train_data_dir=str(tmp_path / "v.npz"))


def test_a_bridge_is_sampled_from_the_shell_without_noise_of_its_own(tmp_path: Path) -> None:
    folder = run(tmp_path / "out", **SB, max_train_steps=1, train_batch_size=4, coupling="ot")

    def draw(**given: Any) -> float:
        settings = SweepSettings(str(folder), samples=2, nfe=(4,), seeds=(0,), **given)
        return draw_samples(settings, 2, tmp_path / "a.png", progress=False, untuned=not given)

    with pytest.raises(ValueError, match="'ddpm' adds noise, which asks for a score"):
        draw(methods=("ddpm",), grids=("time",))
    assert draw() == 3  # Heun in equal steps: one call less at the end; not the default for Gaussian paths
    assert isinstance(load_pipeline(folder).model, SchroedingerModel)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [SB, {**SB, "coupling": "sinkhorn", "class_conditional": True}, CONVEX, {**CONVEX, "network": "dit"}, VECTORS],
    ids=["bridge", "bridge-sinkhorn", "convex", "convex-dit", "vectors"],
)
def test_twenty_steps_equal_ten_and_ten(tmp_path: Path, options: dict[str, Any]) -> None:
    if options.get("vector_conditional"):
        options = {**options, "train_data_dir": vectors_file(tmp_path)}
    if options.get("network") == "dit":
        options = {**options, "network_config": {"num_layers": 1}}
    shown = {"preview_images": 4, "preview_nfe": 4, "plots": True}
    settings = {"max_train_steps": 20, "checkpointing_steps": 10, "logging_steps": 1, **shown, **options}
    whole, again = run(tmp_path / "whole", **settings), tmp_path / "again"
    shutil.copytree(whole, again)
    shutil.rmtree(again / "checkpoint-20")
    run(again, **settings, resume_from_checkpoint="latest")
    assert losses(whole) == losses(again)
    if options.get("network") != "dit":
        assert same(weights(whole), weights(again))
    start = torch.randn(2, 1, 8, 8)
    labels = {"class_labels": torch.tensor([1, 2])} if options.get("class_conditional") else {}
    told = {"condition": vector_channels(torch.ones(2, 2), 8, 8)} if options.get("vector_conditional") else {}
    loaded = load_pipeline(again)
    made = sample(loaded.model, start, method="heun", grid="time", nfe=4, model_kwargs={**labels, **told})
    assert isinstance(made, Tensor)
    assert bool(made.isfinite().all())


def test_a_c_rectified_flow_resumes(tmp_path: Path) -> None:
    resumed_equals_unbroken(tmp_path, **CONVEX)
