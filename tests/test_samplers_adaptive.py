"""Adaptive methods: official runs, exact flows and laws, limits and their errors, the keyed Brownian path."""

import itertools
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pathline.interpolants import (
    CosinePath,
    DiscretePath,
    EDMPath,
    Gaussian,
    GaussianMixture,
    GaussianPath,
    LinearPath,
    VPPath,
)
from pathline.samplers import (
    AdaptiveError,
    ClassifierFree,
    NonFiniteError,
    Result,
    StaticThreshold,
    adaptive_info,
    list_adaptive,
    plan,
    sample,
)
from support.goldens import FOLDER, denoiser, index, mixture

DETERMINISTIC = [name for name in list_adaptive() if not adaptive_info(name).stochastic]
STOCHASTIC = [name for name in list_adaptive() if adaptive_info(name).stochastic]
PATHS = (LinearPath(), VPPath(), EDMPath(), CosinePath())
TARGET = Gaussian([0.3, -1.0, 2.0], variance=[0.2, 1.5, 0.05])


def start(path: GaussianPath, *shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return path.prior(shape or (4, 3), torch.Generator().manual_seed(seed), dtype=dtype)


def full(*arguments: Any, **options: Any) -> Result:
    result = sample(*arguments, full=True, **options)
    assert isinstance(result, Result)
    return result


# --- official runs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("golden", "order", "form"),
    [("dpm_adaptive2_noise-vp-uncond", 2, "noise"), ("dpm_adaptive3_x0-vp-uncond", 3, "data")],
)
def test_dpm_solver_adaptive_is_the_official_one(golden: str, order: int, form: str) -> None:
    """Every evaluation lies where the official one does; repeated steps need not call twice at their start."""
    case, g = index()[golden], np.load(FOLDER / f"{golden}.npz")
    seen: list[float] = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        seen.append(float(VPPath().lam(t[0])))
        return denoiser().as_model(VPPath(), form)(x, t)

    options = {"path": VPPath(), "method": "dpm-adaptive", "order": order, "form": form, "prediction": form}
    options |= {"grid": (0.0, 0.999), **case["extra"]}
    ours = full(network, mixture()["z"], recompute=True, **options)
    assert ours.evaluations == len(seen) == case["nfe"]
    assert np.abs(np.array(seen) - np.log(g["eval_alpha"] / g["eval_sigma"])).max() < 1e-6
    assert float((ours.sample - torch.tensor(g["sample"])).abs().max()) < 2e-9
    spared = full(network, mixture()["z"], **options)
    assert torch.equal(spared.sample, ours.sample)
    assert spared.evaluations == case["nfe"] - spared.options["rejected"]


def test_dopri5_is_the_one_of_sit() -> None:
    case = index()["sit_ode_dopri5-Linear-velocity-n2-uncond"]
    g = np.load(FOLDER / case["file"])
    seen: list[float] = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        seen.append(float(t[0]))
        signal, noise = seen[-1], 1.0 - seen[-1]
        return denoiser().data_prediction(x, signal, noise) + noise * denoiser().score(x, signal, noise)

    options = {"path": LinearPath(), "method": "dopri5", "norm": "mean", "prediction": "velocity"}
    ours = full(network, mixture()["z"], overshoot=True, **options)
    assert ours.evaluations == case["nfe"]
    assert np.abs(np.array(seen) - g["eval_t"]).max() < 1e-9
    assert float((ours.sample - torch.tensor(g["sample"])).abs().max()) < 1e-9
    landing = full(network, mixture()["z"], **options)
    assert max(seen[case["nfe"] :]) <= 1.0
    assert float((ours.sample - landing.sample).abs().max()) < 0.02


# --- exact flows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", DETERMINISTIC)
@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.name)
def test_error_follows_the_tolerance(path: GaussianPath, method: str) -> None:
    x = start(path)
    exact = TARGET.flow_map(x, path.at(0.01)[:2], path.at(0.9)[:2])
    variables = ("sigma", "time") if "variable" in adaptive_info(method).options else (None,)
    for variable in variables:
        options: dict[str, Any] = {"method": method, "grid": (0.01, 0.9)}
        options |= {} if variable is None else {"variable": variable}
        errors = []
        for tolerance in (1e-2, 1e-4) if method != "dopri8" else (1e-2, 1e-7):
            result = full(TARGET.as_model(path), x, path=path, rtol=tolerance, atol=tolerance, **options)
            errors.append(float((result.sample - exact).abs().max() / exact.abs().max()))
            assert result.table is None
            assert result.options["accepted"] > 0
        assert errors[1] < (0.03 if method == "fehlberg2" else 0.01)
        assert errors[1] < errors[0] / 3


@pytest.mark.parametrize("method", ["dopri5", "bosh3", "dpm-adaptive"])
def test_whole_path_ends_at_data(method: str) -> None:
    for path in (*PATHS, DiscretePath.scaled_linear()):
        x = start(path)
        exact = TARGET.flow_map(x, path.at(0.0)[:2], (1.0, 0.0))
        end = sample(TARGET.as_model(path), x, path=path, method=method, rtol=1e-4, atol=1e-4)
        assert float((end - exact).abs().max()) < 2e-2  # the data prediction at lambda_max stands for the clean end


def test_any_prediction_gives_the_same_flow() -> None:
    for path, method in itertools.product((LinearPath(), VPPath()), ("dopri5", "dpm-adaptive")):
        x = start(path)
        results = [
            sample(TARGET.as_model(path, kind), x, path=path, method=method, prediction=kind, grid=(0.01, 0.9))
            for kind in ("data", "noise", "velocity", "v", "score")
        ]
        assert all(torch.allclose(r, results[0], atol=1e-9) for r in results)


def test_gradients_flow_through_a_run() -> None:
    path, x = LinearPath(), start(LinearPath(), 1, 3).requires_grad_()
    options: dict[str, Any] = {"path": path, "rtol": 1e-7, "atol": 1e-8, "grid": (0.0, 0.9)}
    exact = TARGET.flow_map(x, (0.0, 1.0), (0.9, 0.1))
    (wanted,) = torch.autograd.grad(exact.square().sum(), x)
    out = sample(TARGET.as_model(path), x, method="dopri5", differentiable=True, **options)
    (found,) = torch.autograd.grad(out.square().sum(), x)
    assert torch.allclose(found, wanted, rtol=1e-5)
    assert not sample(TARGET.as_model(path), x, method="dopri5", **options).requires_grad


@pytest.mark.parametrize("method", ["dopri5", "dpm-adaptive", "sde-euler"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_types_and_conditions_pass_the_border(method: str, dtype: torch.dtype) -> None:
    seen = set()

    def model(x: Tensor, t: Tensor, bias: Tensor) -> Tensor:
        seen.add((x.dtype, t.dtype, t.shape == (len(x),)))
        return 0.2 * torch.tanh(x) + bias

    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1)).to(dtype)
    bias = torch.zeros(2, 1, 1, 1, dtype=dtype)
    out = full(model, x, path=LinearPath(), method=method, model_kwargs={"bias": bias}, per_sample=False, rtol=0.1)
    assert out.sample.dtype == dtype
    assert out.sample.shape == x.shape
    assert out.sample.isfinite().all()
    assert seen == {(dtype, torch.float32, True)}


def test_guidance_thresholding_and_progress(capsys: pytest.CaptureFixture[str]) -> None:
    path = VPPath()
    model = GaussianMixture([0.5, 0.5], [[-2.0, 0.0], [2.0, 0.5]], std=[0.1, 0.1], classes=[0, 1]).as_model(path)
    guidance = ClassifierFree(2.0, {"labels": torch.full((3,), -1)})
    options: dict[str, Any] = {
        "path": path,
        "method": "dpm-adaptive",
        "model_kwargs": {"labels": torch.tensor([0, 1, 1])},
    }
    x = sample(model, start(path, 3, 2), guidance=guidance, thresholding=StaticThreshold(1.0), progress=True, **options)
    assert float(x.abs().max()) <= 1.0
    assert "dpm-adaptive" in capsys.readouterr().err
    free = sample(model, start(path, 3, 2), guidance=guidance, **options)
    assert torch.sign(free[:, 0]).tolist() == [-1.0, 1.0, 1.0]


# --- the error of a batch ---------------------------------------------------------------------------------


def stiff(x: Tensor, t: Tensor) -> Tensor:
    """A velocity that turns fast for sample 0 and not at all for the others."""
    rate = torch.where(torch.arange(len(x)) == 0, 40.0, 0.0).to(x)[:, None]
    return rate * torch.cos(40.0 * t[:, None]) * torch.ones_like(x)


@pytest.mark.parametrize("method", ["dopri5", "adaptive_heun"])
def test_the_worst_norm_does_not_hide_a_sample(method: str) -> None:
    x = torch.zeros(400, 2, dtype=torch.float64)
    options: dict[str, Any] = {
        "path": LinearPath(),
        "method": method,
        "prediction": "velocity",
        "rtol": 0.0,
        "atol": 1e-2,
    }
    errors = {}
    for norm in ("worst", "mean"):
        out = sample(stiff, x, norm=norm, **options)
        errors[norm] = float((out[0] - np.sin(40.0)).abs().max())
        assert float(out[1:].abs().max()) == 0.0
    assert errors["worst"] < 0.1
    assert errors["mean"] > 3 * errors["worst"]


@pytest.mark.parametrize("method", ["dopri5", "dpm-adaptive"])
def test_per_sample_control_does_not_depend_on_the_batch(method: str) -> None:
    path = VPPath()
    x = start(path, 4, 3)
    model = GaussianMixture([0.5, 0.5], [[-1.0, 0, 0], [1.0, 0.5, 0]], std=[0.1, 0.3]).as_model(path)
    options: dict[str, Any] = {"path": path, "method": method, "rtol": 1e-2, "atol": 1e-2}
    whole = full(model, x, per_sample=True, **options)
    parts = torch.cat([sample(model, x[k : k + 1], **options) for k in range(4)])
    tail = sample(model, x[2:], per_sample=True, chunk_size=2, **options)
    assert torch.equal(whole.sample, parts)
    assert torch.equal(whole.sample[2:], tail)
    assert not torch.equal(sample(model, x, **options), whole.sample)
    assert whole.evaluations == max(full(model, x[k : k + 1], **options).evaluations for k in range(4))


# --- limits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", list_adaptive())
def test_the_cap_is_never_passed(method: str) -> None:
    calls = 0

    def model(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.tanh(3 * x)

    options: dict[str, Any] = {"path": VPPath(), "method": method, "rtol": 0.2, "atol": 0.2}
    x = start(VPPath(), 1, 3)
    cap = full(model, x, **options).evaluations
    assert calls == cap
    assert full(model, x, nfe=cap, **options).evaluations == cap
    calls = 0
    message = rf"not done after nfe={cap - 1} calls; it is at .*time .*Raise nfe.*rtol="
    with pytest.raises(AdaptiveError, match=message):
        sample(model, x, nfe=cap - 1, **options)
    assert calls == cap - 1


@pytest.mark.parametrize("method", ["dopri5", "dpm-adaptive", "sde-heun"])
def test_the_step_floor_names_place_step_and_error(method: str) -> None:
    def jump(x: Tensor, t: Tensor) -> Tensor:
        return torch.where(t[:, None] < 0.5, 5.0, -5.0) * torch.ones_like(x)

    options: dict[str, Any] = {"eta": 0.0} if method == "sde-heun" else {}
    options |= {"prediction": "velocity", "rtol": 1e-6, "atol": 1e-6, "min_step": 0.01}
    message = r"needs a step below min_step=0.01 at .*time 0\.\d+.*\(step .*the tolerance out of reach\. Larger"
    with pytest.raises(AdaptiveError, match=message):
        sample(jump, start(LinearPath(), 1, 3), path=LinearPath(), method=method, **options)


@pytest.mark.parametrize("method", list_adaptive())
def test_values_that_are_not_finite_are_named(method: str) -> None:
    def broken(x: Tensor, t: Tensor) -> Tensor:
        return torch.where(t[:, None] > 0.3, torch.nan, 0.1) * x

    with pytest.raises(NonFiniteError, match=f"'{method}' met a non-finite prediction at time 0.[3-9]"):
        sample(broken, start(LinearPath()), path=LinearPath(), method=method)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "dopri5", "steps": 5}, "chooses its own steps and has no rows; leave out steps"),
        ({"method": "dopri5", "callback": print}, "leave out callback"),
        ({"method": "dopri5", "nfe": 0}, "nfe=0 is not possible; for 'dopri5' it is a cap"),
        ({"method": "dopri5", "grid": "karras"}, "give two times"),
        ({"method": "dopri5", "grid": (0.5, 0.2)}, "must rise within"),
        ({"method": "dopri5", "grid": [0.0, 0.5, 1.0]}, "must be two path times"),
        ({"method": "dopri5", "path": None}, "path is missing"),
        ({"method": "dopri5", "rtoll": 1.0}, "rtoll.*rtol"),
        ({"method": "dopri5", "rtol": -1.0}, r"rtol=-1.0 is not possible"),
        ({"method": "dopri5", "atol": 0.0}, r"atol=0.0 is not possible"),
        ({"method": "dopri5", "norm": "max"}, "unknown norm 'max'"),
        ({"method": "dopri5", "variable": "lam"}, "unknown variable 'lam'"),
        ({"method": "dopri5", "min_step": 0.0}, "min_step=0.0 is not possible"),
        ({"method": "dopri5", "overshoot": True}, "overshoot=True evaluates the network beyond"),
        ({"method": "dopri5", "prediction": "noise"}, r"a noise prediction cannot give the .* start a little later"),
        ({"method": "dpm-adaptive", "order": 4}, "order=4 is not possible"),
        ({"method": "dpm-adaptive", "form": "v"}, "form|variant"),
        ({"method": "sde-euler", "eta": -1.0}, "eta=-1.0 is not possible"),
        ({"method": "sde-euler", "epsilon": "linaer"}, "linear"),
        ({"method": "dopri"}, "unknown method 'dopri'; did you mean.*dopri5"),
    ],
)
def test_impossible_requests_are_refused_before_any_call(options: dict[str, Any], message: str) -> None:
    def model(x: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("called")

    with pytest.raises(ValueError, match=message):
        sample(model, start(LinearPath()), **({"path": LinearPath()} | options))


def test_adaptive_methods_have_facts_but_no_table() -> None:
    with pytest.raises(ValueError, match="'dopri5' chooses its steps while it runs and has no table"):
        plan(VPPath(), "dopri5")
    with pytest.raises(ValueError, match="unknown adaptive method 'dopri6'"):
        adaptive_info("dopri6")
    for name in list_adaptive():
        info = adaptive_info(name)
        assert info.summary.endswith(".")
        assert info.bibtex.startswith("@misc{")
        assert {"rtol", "atol", "per_sample"} <= set(info.options)


# --- stochastic equations ---------------------------------------------------------------------------------

MANY = Gaussian(torch.full((4096,), 0.7), variance=0.3)
NOISES = [{"eta": 0.3}, {"epsilon": "linear"}, {"epsilon": "sigma", "eta": 0.5}]


@pytest.mark.parametrize("options", [*NOISES, {"method": "sde-heun"}, {"method": "sde-srk"}], ids=str)
def test_law_of_the_reverse_sde(options: dict[str, Any]) -> None:
    """Gaussian data: mean and variance within Monte Carlo error (3 of its standard deviations, plus the tolerance)."""
    path = LinearPath() if "epsilon" in options else VPPath()
    given = {"method": "sde-midpoint", "rtol": 0.02, "atol": 0.01} | options
    x = sample(MANY.as_model(path), start(path, 1, 4096), path=path, **given)
    assert abs(float(x.mean()) - 0.7) < 3 * (0.3 / 4096) ** 0.5 + 0.01
    assert abs(float(x.var()) - 0.3) < 3 * 0.3 * (2 / 4096) ** 0.5 + 0.012
    start_noise = start(path, 1, 4096)[0]
    memory = float(torch.corrcoef(torch.stack([x[0], start_noise]))[0, 1])
    assert memory < 0.9  # a flow keeps the order of its starts


def test_any_batch_split_gives_the_same_stochastic_samples() -> None:
    path = VPPath()
    x = start(path, 3, 3)
    options: dict[str, Any] = {"path": path, "method": "sde-srk", "rtol": 0.2, "atol": 0.2}
    before = torch.get_rng_state()
    whole = sample(TARGET.as_model(path), x, seed=3, **options)
    assert torch.equal(before, torch.get_rng_state())
    tail = sample(TARGET.as_model(path), x[2:], seed=3, sample_offset=2, **options)
    assert torch.equal(whole[2:], tail)
    assert not torch.allclose(whole, sample(TARGET.as_model(path), x, seed=4, **options), atol=1e-2)
    # two tolerances see one noise path
    fine = sample(TARGET.as_model(path), x, seed=3, **(options | {"rtol": 0.05, "atol": 0.05}))
    assert float((whole - fine).abs().max()) < 0.2


def test_missing_torchsde_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchsde", None)
    with pytest.raises(ImportError, match=r"install pathline\[adaptive\]"):
        sample(TARGET.as_model(VPPath()), start(VPPath()), path=VPPath(), method="sde-euler")


def test_tolerances_below_rounding_are_refused() -> None:
    x = start(VPPath(), dtype=torch.float32)
    with pytest.raises(ValueError, match=r"rtol=1e-14 and atol=1e-14 of 'dopri5' are finer than torch.float32"):
        sample(TARGET.as_model(VPPath()), x, path=VPPath(), method="dopri5", rtol=1e-14, atol=1e-14)
