"""Measured model statistics: closed forms, published ones, every way to differentiate, stopped runs, refusals."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pathline.interpolants import (
    DiscretePath,
    Gaussian,
    GaussianMixture,
    GaussianPath,
    LinearPath,
    VPPath,
    path_by_name,
)
from pathline.samplers import ClassifierFree, make_nodes, sample
from pathline.samplers.calibrate.model_statistics import measure_statistics
from pathline.samplers.calibrate.trajectories import BudgetError, Problem
from pathline.samplers.ems import ModelStatistics, path_facts
from support.goldens import FOLDER, mixture

MEAN = torch.tensor([-0.6, 0.2, 1.1], dtype=torch.float64)
VARIANCE = torch.tensor([0.05, 0.6, 2.0], dtype=torch.float64)


def smooth_mixture() -> GaussianMixture:
    """The mixture of the goldens, written with one variance for each coordinate: its code passes forward-mode AD."""
    m = mixture()
    return GaussianMixture(m["w"], m["mu"], variances=(m["s"] ** 2)[:, None].expand(8, 32), classes=m["cls"])


def data_of(target: Any, count: int, seed: int = 1) -> Tensor:
    drawn = target.sample(count, torch.Generator().manual_seed(seed))
    assert isinstance(drawn, Tensor)
    return drawn


def pair(path: GaussianPath | None = None, prediction: str = "data", **options: Any) -> Problem:
    """A network of two classes in two dimensions."""
    path = path or VPPath()
    target = GaussianMixture([0.5, 0.5], [[-1.0, 0.4], [1.0, 0.0]], variances=[[0.1, 0.2], [0.3, 0.1]], classes=[0, 1])
    model = target.as_model(path, prediction)

    def network(x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        if labels is None:
            return model(x, t)
        free, own = model(x, t), model(x, t, labels=labels.clamp(min=0))
        return torch.where((labels < 0)[:, None], free, own)

    return Problem(network, path, prediction, **options)


def points(count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)


# --- closed forms ---------------------------------------------------------------------------------------------


def test_statistics_of_a_gaussian_are_exact() -> None:
    """l = 1/(1 + e^{2λ}·v) to rounding; f does not vary, so s = 0; b up to the differences in dl/dλ."""
    path = VPPath()
    target = Gaussian(MEAN, variance=VARIANCE)
    errors = []
    for levels in (31, 61):
        problem = Problem(target.as_model(path, "noise"), path, "noise")
        found = measure_statistics(problem, data_of(target, 16), levels=levels, lam_range=(-4.0, 4.0))
        l = 1.0 / (1.0 + np.exp(2.0 * found.lam[:, None]) * VARIANCE.numpy())  # noqa: E741
        np.testing.assert_allclose(found.l, l, atol=1e-11)
        assert float(np.abs(found.s).max()) == 0.0
        errors.append(float(np.abs(found.b - 2.0 * l * (1.0 - l) * MEAN.numpy())[2:-2].max()))
    assert errors[1] < 0.03
    assert 3.0 < errors[0] / errors[1] < 5.0


REFINED = 10


def posterior(y: np.ndarray, lam: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Density of y = x/signal, data prediction and posterior variance for 0.3·N(−1, 0.2²) + 0.7·N(1, 0.4²)."""
    w, mu, v = np.array([0.3, 0.7]), np.array([-1.0, 1.0]), np.array([0.04, 0.16])
    e2 = np.exp(-2 * lam)[:, None, None]
    total = v + e2
    density = w / np.sqrt(total) * np.exp(-0.5 * (y[..., None] - mu) ** 2 / total)
    share = density / (density.sum(-1, keepdims=True) + 1e-300)
    means = mu + v / total * (y[..., None] - mu)
    D = (share * means).sum(-1)
    return density.sum(-1), D, (share * (means**2 + v * e2 / total)).sum(-1) - D**2


def quadrature(lam: np.ndarray) -> tuple[np.ndarray, ...]:
    """Statistics of that mixture by integration over y, on a grid of λ ten times finer."""
    fine = np.linspace(lam[0], lam[-1], REFINED * (len(lam) - 1) + 1)
    y = np.linspace(-1, 1, 1501) * (6 * np.exp(-fine) + 3)[:, None]
    weight, D, variance = posterior(y, fine)
    weight = weight / weight.sum(-1, keepdims=True)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.asarray((weight * values).sum(-1))

    l = 1.0 - mean(variance * np.exp(2 * fine)[:, None])  # noqa: E741 (dD/dy by Tweedie's second formula)
    h = 1e-4
    dD = (posterior(y + h * (D - y), fine + h)[1] - posterior(y - h * (D - y), fine - h)[1]) / (2 * h)
    f = (1 - l)[:, None] * y - D
    rate = (1 - l)[:, None] * (D - y) - np.gradient(l, fine, edge_order=2)[:, None] * y - dD
    s = (mean(f * rate) - mean(f) * mean(rate)) / (mean(f * f) - mean(f) ** 2)
    b = mean(rate) - s * mean(f)
    return tuple(values[::REFINED] for values in (l, s, b))


def test_statistics_of_a_mixture_are_those_of_quadrature() -> None:
    path = LinearPath()
    target = GaussianMixture([0.3, 0.7], [[-1.0], [1.0]], variances=[[0.04], [0.16]])
    problem = Problem(target.as_model(path, "velocity"), path, "velocity")
    found = measure_statistics(problem, data_of(target, 16000), levels=41, lam_range=(-2.5, 2.5), batch_size=16000)
    for name, exact, allowed in zip("lsb", quadrature(found.lam), (0.01, 0.06, 0.06), strict=True):
        inner = slice(2, -2)
        assert float(np.abs(getattr(found, name)[inner, 0] - exact[inner]).max()) < allowed, name
        assert float(np.abs(exact[inner]).max()) > 5 * allowed, name  # the comparison says something


@pytest.mark.slow
def test_published_statistics_are_recovered() -> None:
    """Those of the goldens, from other noises: within the scatter between two halves of ours."""
    path = VPPath()
    stored = ModelStatistics.load(FOLDER / "ems-vp-uncond.npz")
    target = smooth_mixture()
    halves = [
        measure_statistics(
            Problem(target.as_model(path, "noise"), path, "noise"),
            data_of(target, 96, seed).reshape(-1, 2, 4, 4),
            levels=121,
            batch_size=96,
            seed=seed,
            derivative="backward",
        )
        for seed in (1, 2)
    ]
    np.testing.assert_allclose(halves[0].lam, stored.lam, atol=1e-12)
    inner = slice(1, -1)  # dl/dλ is taken one-sided there
    for name in "lsb":
        one, two, theirs = (getattr(v, name)[inner] for v in (*halves, stored))
        scatter = np.sqrt(((one - two) ** 2).mean())
        apart = np.sqrt((((one + two) / 2 - theirs) ** 2).mean())
        assert apart < 2.0 * scatter, name
        assert scatter < 0.15 * max(1.0, np.sqrt((theirs**2).mean())), name


@pytest.mark.parametrize("name", ["linear", "cosine", "vp", "edm"])
@pytest.mark.parametrize("prediction", ["data", "noise", "v", "velocity", "score"])
def test_statistics_belong_to_lambda_not_to_path_or_prediction(name: str, prediction: str) -> None:
    common: dict[str, Any] = {"levels": 9, "lam_range": (-3.0, 3.0), "derivative": "forward"}
    wanted = measure_statistics(pair(), points(8), **common)
    found = measure_statistics(pair(path_by_name(name), prediction), points(8), **common)
    for array in "lsb":
        np.testing.assert_allclose(getattr(found, array), getattr(wanted, array), rtol=1e-6, atol=1e-8)


# --- derivatives ----------------------------------------------------------------------------------------------


def test_rules_agree_and_tell_their_cost() -> None:
    found = {}
    for rule, calls in (("forward", 4), ("backward", 10), ("difference", 5)):
        problem = pair(DiscretePath.scaled_linear(), "noise")
        found[rule] = measure_statistics(problem, points(6), levels=11, derivative=rule, step=0.003)
        assert problem.calls == calls * 6 * 11 == found[rule].metadata["calls"]
        assert found[rule].metadata["derivative"] == rule
    for name in "lsb":
        forward = getattr(found["forward"], name)
        np.testing.assert_allclose(getattr(found["backward"], name), forward, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(getattr(found["difference"], name)[1:-1], forward[1:-1], rtol=0.01, atol=0.01)


def test_auto_takes_what_the_network_allows() -> None:
    path = VPPath()
    smooth = pair(path).model
    isotropic = GaussianMixture([0.5, 0.5], [[-1.0, 0.4], [1.0, 0.0]], std=[0.3, 0.4]).as_model(path, "data")

    def rounded(x: Tensor, t: Tensor) -> Tensor:
        return smooth(x, (t * 1000).round() / 1000)

    class Opaque(torch.autograd.Function):
        """An operation that passes gradients but no forward-mode derivative."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return torch.tanh(x)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad * (1 - torch.tanh(ctx.saved_tensors[0]) ** 2)

    def opaque(x: Tensor, t: Tensor) -> Tensor:
        return torch.as_tensor(Opaque.apply(x * (1 + t[:, None])))

    for network, rule in (
        (smooth, "forward"),
        (opaque, "backward"),
        (isotropic, "difference"),
        (rounded, "difference"),
    ):
        found = measure_statistics(Problem(network, path), points(4), levels=5)
        assert found.metadata["derivative"] == rule
    with pytest.raises(ValueError, match=r"derivative='forward' does not pass .* give derivative='difference'"):
        measure_statistics(Problem(opaque, path), points(4), levels=5, derivative="forward")


def test_single_precision_networks_are_measured_in_double() -> None:
    wide, narrow = (measure_statistics(pair(), points(16, d), levels=21) for d in (torch.float64, torch.float32))
    assert narrow.l.dtype == np.float64
    np.testing.assert_allclose(narrow.l, wide.l, atol=1e-4)


def test_attention_is_differentiated(recwarn: pytest.WarningsRecorder) -> None:
    """A network of the kind that diffusers trains: fused attention kernels pass no derivative, plain ones do."""

    def network(x: Tensor, t: Tensor) -> Tensor:
        q = x.reshape(len(x), 1, 4, 4)
        mixed = torch.nn.functional.scaled_dot_product_attention(q, 0.5 * q, q + t.reshape(-1, 1, 1, 1))
        return mixed.reshape(x.shape)

    data = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    found = measure_statistics(Problem(network, VPPath()), data, levels=5)
    assert found.metadata["derivative"] in ("forward", "backward")


# --- guidance, data, files ------------------------------------------------------------------------------------


def guided(scale: float, count: int, **options: Any) -> Problem:
    labels = torch.arange(count) % 2
    guidance = ClassifierFree(scale, {"labels": torch.full_like(labels, -1)})
    return pair(guidance=guidance, model_kwargs={"labels": labels}, **options)


def test_guidance_is_part_of_the_network() -> None:
    problem = guided(3.0, 8)
    found = measure_statistics(problem, points(8), levels=7, derivative="forward", batch_size=8)
    assert found.metadata["guidance"] == {"name": "ClassifierFree", "scale": 3.0}
    assert problem.calls == 4 * 8 * 7  # a guided pair is one call
    plain = measure_statistics(pair(), points(8), levels=7, derivative="forward")
    assert float(np.abs(found.l - plain.l).max()) > 0.05


def test_batches_may_bring_their_own_arguments() -> None:
    labels = torch.arange(8) % 2
    whole = pair(model_kwargs={"labels": labels})
    wanted = measure_statistics(whole, points(8), levels=5, batch_size=4)
    batches = [(points(8)[k : k + 4], {"labels": labels[k : k + 4]}) for k in (0, 4)]
    found = measure_statistics(pair(), iter(batches), levels=5)
    for name in "lsb":
        assert np.array_equal(getattr(found, name), getattr(wanted, name))


class StoppedError(Exception):
    pass


def batches(count: int) -> Iterator[Tensor]:
    for k in range(3):
        if k == count:
            raise StoppedError
        yield points(12)[4 * k : 4 * k + 4]


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_a_stopped_run_goes_on_bit_for_bit(suffix: str, tmp_path: Path) -> None:
    file, common = tmp_path / f"partial.{suffix}", {"levels": 7}  # stopped long before the first minute is over
    wanted = measure_statistics(pair(), batches(3), levels=7)
    with pytest.raises(StoppedError):
        measure_statistics(pair(), batches(2), resume=file, **common)
    problem = pair()
    found = measure_statistics(problem, batches(3), resume=file, **common)
    assert problem.calls == 4 * 4 * 7 + 2  # one batch was missing, and two calls tell the network
    assert found.metadata == wanted.metadata
    for name in "lsb":
        assert np.array_equal(getattr(found, name), getattr(wanted, name))
    again = pair()
    assert measure_statistics(again, points(12), resume=file, batch_size=4, **common).metadata == wanted.metadata
    assert again.calls == 2
    with pytest.raises(ValueError, match=r"partial sums of other settings \(levels\)"):
        measure_statistics(pair(), batches(3), levels=8, resume=file)
    with pytest.raises(ValueError, match="partial sums of other data"):
        measure_statistics(pair(), points(12) + 1.0, levels=7, resume=file, batch_size=4)
    with pytest.raises(ValueError, match="of more data than were given"):
        measure_statistics(pair(), points(12)[:4], levels=7, resume=file)


def test_statistics_run_on_the_prediction_and_guidance_they_were_measured_with() -> None:
    problem = guided(3.0, 4)
    found = measure_statistics(problem, points(4), levels=5, model="abc")
    assert found.metadata["path"] == path_facts(VPPath())

    def drawn(**use: Any) -> Any:
        given = {"prediction": "data", "guidance": problem.guidance, "model_kwargs": problem.model_kwargs, **use}
        nodes = make_nodes(problem.path, [0.05, 0.5, 0.9, 1.0])
        return sample(
            problem.model, points(4), path=problem.path, method="dpm-solver-v3", grid=nodes, statistics=found, **given
        )

    assert torch.isfinite(drawn()).all()
    other = guided(5.0, 4).guidance
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"guidance": other}, "guidance 3, not 5"),
        ({"guidance": None}, "guidance 3, not none"),
        ({"prediction": "noise"}, "a data prediction, not noise"),
    ]
    for use, message in wrong:
        with pytest.raises(ValueError, match=f"{message}.*force=True"):
            drawn(**use)
        assert torch.isfinite(drawn(force=True, **use)).all()
    unguided = measure_statistics(pair(), points(4), levels=5)
    assert unguided.provenance() == {"prediction": "data", "guidance": None}
    assert ModelStatistics(found.lam, found.l, found.s, found.b).provenance() == {}


def test_progress_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    measure_statistics(pair(), points(4), levels=5, batch_size=2, progress=True)
    assert "model statistics: 100%" in capsys.readouterr().err


# --- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 2}, "levels=2 is not possible"),
        ({"step": 0.0}, "step=0.0 is not possible"),
        ({"derivative": "jvp"}, "derivative 'jvp'"),
        ({"lam_range": (2.0, 1.0)}, r"lam_range=\(2.0, 1.0\) is not possible on path 'vp'"),
        ({"lam_range": (-9.0, 1.0)}, "whose λ runs from -5.02498 to inf"),
        ({"resume": "sums.json"}, "resume='sums.json' is not possible"),
        ({"data": torch.zeros(4, 2, dtype=torch.int64)}, "data must be floating-point tensors"),
        ({"data": torch.zeros(1, 2)}, "need at least 2 samples, got 1"),
        ({"data": [torch.zeros(2, 2), torch.zeros(2, 3)]}, r"shape \(3,\) follow ones of shape \(2,\)"),
    ],
    ids=str,
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    data = options.pop("data", points(4))
    with pytest.raises(ValueError, match=message):
        measure_statistics(pair(), data, **{"levels": 5, **options})


def test_a_budget_that_does_not_pay_for_all_is_refused_at_once() -> None:
    problem = pair(budget=4 * 16 * 9 - 1)
    with pytest.raises(BudgetError, match="measuring model statistics needs 576 network calls"):
        measure_statistics(problem, points(16), levels=9, batch_size=4, derivative="forward")
    assert problem.calls == 0


def test_outputs_that_are_not_finite_are_named() -> None:
    problem = Problem(lambda x, t: x / (t[:, None] - t[:, None]), VPPath())
    with pytest.raises(ValueError, match=r"not finite at λ = -5.02"):
        measure_statistics(problem, points(4), levels=5, derivative="difference")


def test_partial_sums_of_another_network_or_class_are_refused(tmp_path: Path) -> None:
    path, data = LinearPath(), torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    law = GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.5]], std=[0.2, 0.2], classes=[0, 1])
    model, file = law.as_model(path, "data"), tmp_path / "sums.npz"

    def measured(network: Any, label: int) -> Any:
        kwargs = {"labels": torch.full((8,), label)}
        return measure_statistics(Problem(network, path, "data", model_kwargs=kwargs), data, levels=3, resume=file)

    measured(model, 0)
    with pytest.raises(ValueError, match="another network"):
        measured(lambda x, t, **kwargs: 0.3 * model(x, t, **kwargs) + 1.0, 0)
    with pytest.raises(ValueError, match=r"other data|another network"):
        measured(model, 1)
