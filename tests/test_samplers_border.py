"""What happens between the network and a method: thresholding, levels outside tables, the analytic first step."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pathline.interpolants import EDMPath, Gaussian, GaussianMixture, GaussianPath, LinearPath, VPPath
from pathline.samplers import (
    AnalyticStart,
    Border,
    ClassifierFree,
    DynamicThreshold,
    Level,
    StaticThreshold,
    Table,
    build_table,
    make_nodes,
    plan,
    run,
    sample,
)
from support.goldens import FOLDER, denoiser, golden_nodes, index

PATHS = (VPPath(), LinearPath(), EDMPath())
BLOBS = GaussianMixture([0.5, 0.5], [[-1.5, 0.2, 0.1], [1.4, 0.5, -0.3]], std=[0.2, 0.4], classes=[0, 1])


def start(path: GaussianPath, *shape: int) -> Tensor:
    return path.prior(shape or (4, 3), torch.Generator().manual_seed(0), dtype=torch.float64)


# --- thresholding -----------------------------------------------------------------------------------------


def test_dynamic_thresholding_is_the_official_one() -> None:
    case = index()["ds_unipc_bh2_3_thr-edm-polynomial-n10-uncond"]
    g = np.load(FOLDER / case["file"])
    table = build_table("unipc", golden_nodes(case, g), order=3, variant="bh2")

    def network(x: Tensor, t: Tensor) -> Tensor:
        return denoiser().data_prediction(x, 1.0, float(t[0]))

    x_init, wanted = torch.tensor(g["x_init"]), torch.tensor(g["sample"])
    found = run(table, network, x_init, thresholding=DynamicThreshold(0.995, 1.0))
    assert float((found - wanted).abs().max()) < 1e-9
    assert float((run(table, network, x_init) - wanted).abs().max()) > 0.1


@pytest.mark.parametrize(("ratio", "largest"), [(0.995, 1.0), (0.9, 2.5), (0.5, 1e6), (1.0, 3.0)])
def test_dynamic_thresholding_is_that_of_diffusers(ratio: float, largest: float) -> None:
    from diffusers import DDPMScheduler

    stock = DDPMScheduler(thresholding=True, dynamic_thresholding_ratio=ratio, sample_max_value=largest)
    for shape in ((3, 2, 4, 4), (2, 1, 1), (1, 3, 5)):
        data = 2.0 * torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        found = DynamicThreshold(ratio, max_value=largest)(data)
        assert torch.allclose(found, stock._threshold_sample(data), atol=1e-12)


def test_a_range_of_another_width_is_the_same_rule_scaled() -> None:
    data = torch.randn(4, 50, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert torch.allclose(DynamicThreshold(0.8, limit=0.5)(data), 0.5 * DynamicThreshold(0.8)(data / 0.5), atol=1e-14)
    assert torch.equal(DynamicThreshold(0.8, limit=100.0)(data), data)
    assert torch.equal(StaticThreshold(0.5)(data), data.clamp(-0.5, 0.5))


@pytest.mark.parametrize("rule", [StaticThreshold(0.6), DynamicThreshold(0.7, limit=0.6)], ids=str)
@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.name)
def test_data_and_noise_keep_explaining_the_state(path: GaussianPath, rule: Any) -> None:
    """Methods that store data, noise or velocity see one thresholded network, whatever it predicts."""
    x = start(path)
    cases = {"dpm++": {}, "ipndm": {}, "dpm": {}, "heun": {"variant": "time"}, "ddim": {"eta": 1.0}}
    clipped = BLOBS.as_model(path)
    for method, options in cases.items():
        given: dict[str, Any] = {"path": path, "method": method, "steps": 6, **options}
        by_hand = sample(lambda x, t: rule(clipped(x, t)), x, **given)
        given["thresholding"] = rule
        for kind in ("data", "velocity", "v"):
            found = sample(BLOBS.as_model(path, kind), x, prediction=kind, **given)
            assert torch.allclose(found, by_hand, atol=1e-8), (method, kind)
    assert float(sample(BLOBS.as_model(path), x, path=path, steps=6, thresholding=rule).abs().max()) <= 0.6 + 1e-12


def test_thresholding_acts_per_sample_after_guidance() -> None:
    path, seen = VPPath(), []
    x, labels = start(path, 5, 3), torch.tensor([0, 1, 0, 1, 1])

    def rule(data: Tensor) -> Tensor:
        seen.append(data)
        return DynamicThreshold(0.8)(data)

    options: dict[str, Any] = {"path": path, "steps": 5, "model_kwargs": {"labels": labels}}
    free = [ClassifierFree(4.0, {"labels": torch.full((n,), -1)}) for n in (5, 1)]
    whole = sample(BLOBS.as_model(path), x, guidance=free[0], thresholding=rule, **options)
    assert len(seen) == 5
    assert all(data.shape == x.shape for data in seen)
    unconditional = BLOBS.data_prediction(x, *(float(c) for c in path.at(0.0)[:2]))
    conditional = BLOBS.data_prediction(x, *(float(c) for c in path.at(0.0)[:2]), labels=labels)
    assert torch.allclose(seen[0], unconditional + 4.0 * (conditional - unconditional), atol=1e-12)
    chunks = sample(BLOBS.as_model(path), x, guidance=free[1], thresholding=rule, chunk_size=1, **options)
    assert torch.allclose(whole, chunks, atol=1e-13)


def test_gradients_flow_through_thresholding() -> None:
    path = LinearPath()
    x = start(path, 2, 3).requires_grad_()

    def through(x: Tensor) -> Tensor:
        rule = DynamicThreshold(0.7, limit=0.5)
        return sample(BLOBS.as_model(path), x, path=path, steps=3, differentiable=True, thresholding=rule)

    assert torch.autograd.gradcheck(through, (x,))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: StaticThreshold(0.0), "limit=0.0 is not possible"),
        (lambda: DynamicThreshold(99.5), r"percentile=99.5 is not possible; it must lie in \(0, 1\]"),
        (lambda: DynamicThreshold(limit=float("inf")), "limit=inf"),
        (lambda: DynamicThreshold(max_value=0.5), "max_value=0.5 is not possible; it must be at least limit=1.0"),
        (
            lambda: sample(BLOBS.as_model(VPPath()), start(VPPath()), path=VPPath(), thresholding=1.0),
            r"thresholding=1.0 is not possible; pass StaticThreshold\(1.0\)",
        ),
    ],
)
def test_impossible_thresholds_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_data_that_cannot_be_known_cannot_be_thresholded() -> None:
    level = Level(0.0, 0.0, 1.0, 1.0, -1.0)
    border = Border(lambda x, t: x, torch.zeros(1, 3), "noise", thresholding=StaticThreshold())
    with pytest.raises(ValueError, match="noise prediction does not determine the data"):
        border.conversion(level, "noise")
    assert Border(lambda x, t: x, torch.zeros(1, 3), "noise").conversion(level, "noise") == ((0.0, 1.0),)


def test_any_level_can_be_queried_and_is_counted() -> None:
    path = VPPath()
    x, nodes = start(path), make_nodes(path, "time", 5)
    border = Border(BLOBS.as_model(path, "v"), x, "v")
    for k in range(5):
        level = nodes.level(k)
        data = BLOBS.data_prediction(x, level.signal, level.noise)
        assert torch.allclose(border.at(level, "data", x, {}), data, atol=1e-10)
        assert torch.allclose(border.at(level, "noise", x, {}), (x - level.signal * data) / level.noise, atol=1e-10)
    assert border.evaluations == 10


# --- analytic first step ----------------------------------------------------------------------------------

MEAN, VARIANCE = np.array([0.5, -1.0, 2.0]), np.array([0.3, 2.0, 0.01])


@pytest.mark.parametrize("method", ["dpm++", "ipndm", "unipc", "dpm", "euler"])
@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.name)
def test_it_equals_the_network_on_gaussian_data(path: GaussianPath, method: str) -> None:
    x = start(path)
    cases: list[tuple[Any, Any, AnalyticStart, dict[str, Tensor] | None]] = [
        (MEAN, VARIANCE, AnalyticStart(MEAN, VARIANCE), None),
        (np.full(3, 0.5), np.full(3, 0.7), AnalyticStart(0.5, 0.7), None),
        (np.zeros(3), VARIANCE, AnalyticStart(0.0, VARIANCE), None),
        (MEAN, np.full(3, 0.7), AnalyticStart(variance=0.7), {"data_mean": torch.tensor(MEAN)}),
    ]
    for mean, variance, afs, anchors in cases:
        model = Gaussian(mean, variance=variance).as_model(path)
        options: dict[str, Any] = {"path": path, "method": method, "steps": 4}
        spared = sample(model, x, afs=afs, anchors=anchors, full=True, **options)
        whole = sample(model, x, full=True, **options)
        assert torch.allclose(spared.sample, whole.sample, atol=1e-10)
        assert spared.evaluations == whole.evaluations - 1
        crude = sample(model, x, afs="unit", **options)
        assert not mean.any() or not torch.allclose(crude, whole.sample, atol=1e-6)


def test_images_of_mean_and_variance_broadcast() -> None:
    path, shape = VPPath(), (2, 4, 4)
    mean = np.linspace(-1, 1, 32).reshape(shape)
    variance = np.array([0.2, 1.5]).reshape(2, 1, 1)
    model = Gaussian(mean, variance=np.broadcast_to(variance, shape).copy()).as_model(path)
    x = start(path, 3, *shape)
    spared = sample(model, x, path=path, steps=5, afs=AnalyticStart(mean, variance))
    assert torch.allclose(spared, sample(model, x, path=path, steps=5), atol=1e-10)


def test_saved_tables_keep_it(tmp_path: Path) -> None:
    path = VPPath()
    model, x = Gaussian(MEAN, variance=VARIANCE).as_model(path), start(path)
    table = plan(path, "unipc", steps=4, afs=AnalyticStart(MEAN, VARIANCE))
    assert table.options["afs"] == {"mean": "array of shape (3,)", "variance": "array of shape (3,)"}
    table.save(tmp_path / "t.safetensors")
    assert torch.equal(run(Table.load(tmp_path / "t.safetensors"), model, x), run(table, model, x))
    with pytest.raises(ValueError, match="safetensors"):
        table.save(tmp_path / "t.json")
    plain = plan(path, "unipc", steps=4, afs=AnalyticStart(0.5, 2.0))
    assert plain.options["afs"] == {"mean": 0.5, "variance": 2.0}
    plain.save(tmp_path / "t.json")
    assert torch.equal(run(Table.load(tmp_path / "t.json"), model, x), run(plain, model, x))
    assert "ones" in plain.describe()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, -1.0), "variance=-1.0 of an analytic first step is not possible; it must be finite and not negative"),
        ((float("nan"),), "mean=nan"),
    ],
)
def test_impossible_moments_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnalyticStart(*arguments)


def test_a_thresholding_that_changes_shapes_is_refused() -> None:
    path = VPPath()
    with pytest.raises(ValueError, match=r"thresholding returned \(3,\) for data predictions of shape \(4, 3\)"):
        sample(BLOBS.as_model(path), start(path), path=path, nfe=3, thresholding=lambda data: data[0])
