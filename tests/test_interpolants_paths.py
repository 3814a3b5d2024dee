"""Gaussian paths: coefficients against the papers' formulas, rates, inverse, ends, types, configurations."""

import copy
import json
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pathline.interpolants import (
    CosineVPPath,
    DiscretePath,
    EDMPath,
    GaussianPath,
    KineticOptimalPath,
    LinearPath,
    PolynomialPath,
    SigmoidVPPath,
    VEPath,
    VPPath,
    list_paths,
    path_by_name,
    path_from_config,
)

BETAS = torch.linspace(1e-4, 0.02, 50, dtype=torch.float64)
PATHS: list[GaussianPath] = [path_by_name(name) for name in list_paths() if name != "discrete"]
PATHS += [DiscretePath.from_betas(BETAS), DiscretePath.scaled_linear(), DiscretePath.cosine(200)]
PATHS += [PolynomialPath(0.7), PolynomialPath(5), VPPath(0.5, 3.0), CosineVPPath(0.1), SigmoidVPPath(-3, 1, 0.4)]
PATHS += [EDMPath(rho=1.0), VEPath(0.1, 9.0)]
PATHS += [KineticOptimalPath((0.0, 0.1, 0.5, 0.9, 1.0)), KineticOptimalPath((0.0, 0.6, 0.2, 0.0), 0.4, 0.05)]
IDS = [f"{path.name}-{index}" for index, path in enumerate(PATHS)]
every_path = pytest.mark.parametrize("path", PATHS, ids=IDS)


def inner_times(count: int = 97) -> Tensor:
    """Times inside (0, 1) that avoid the knots of all discrete paths here."""
    return torch.linspace(0.0137, 0.9917, count, dtype=torch.float64)


def reference(path_name: str, t: Tensor) -> tuple[Tensor, Tensor]:
    """Signal and noise with default parameters, written as in the papers, with diffusion time tau."""
    tau = 1 - t
    integral = 0.5 * (20 - 0.1) * tau**2 + 0.1 * tau
    if path_name in ("linear", "kinetic-optimal"):
        return t, tau
    if path_name == "cosine":
        return (math.pi / 2 * t).sin(), (math.pi / 2 * t).cos()
    if path_name == "polynomial":
        return t**2, 1 - t**2
    if path_name == "linear-vp":
        return t, (1 - t**2).sqrt()
    if path_name == "vp":
        return (-integral / 2).exp(), (1 - (-integral).exp()).sqrt()
    if path_name == "sub-vp":
        return (-integral / 2).exp(), 1 - (-integral).exp()
    if path_name == "cosine-vp":
        power = ((tau + 0.008) / 1.008 * math.pi / 2).cos() ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
        return power.sqrt(), (1 - power).sqrt()
    if path_name == "sigmoid-vp":
        last, first = torch.tensor(3.0).double().sigmoid(), torch.tensor(-3.0).double().sigmoid()
        power = (last - (-3 + 6 * tau).sigmoid()) / (last - first)
        return power.sqrt(), (1 - power).sqrt()
    if path_name == "ve":
        return torch.ones_like(t), 0.01 * (50 / 0.01) ** tau
    assert path_name == "edm"
    return torch.ones_like(t), 80 * tau**7


@pytest.mark.parametrize("name", [name for name in list_paths() if name != "discrete"])
def test_coefficients_equal_the_published_formulas(name: str) -> None:
    t = inner_times()
    point = path_by_name(name).at(t)
    signal, noise = reference(name, t)
    torch.testing.assert_close(point.signal, signal, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(point.noise, noise, rtol=1e-11, atol=1e-15)


@every_path
def test_rates_are_the_derivatives(path: GaussianPath) -> None:
    t = inner_times().requires_grad_()
    cases = (
        (path.signal, path.signal_rate),
        (path.noise, path.noise_rate),
        (lambda time: path.noise(time) ** 2 / 2, path.noise_noise_rate),
    )
    for function, rate in cases:
        value = function(t) + 0 * t
        (expected,) = torch.autograd.grad(value.sum(), t)
        torch.testing.assert_close(rate(t).detach(), expected, rtol=1e-10, atol=1e-13)
    h = 1e-6
    near = t.detach()
    for function, rate in cases:
        difference = (function(near + h) - function(near - h)) / (2 * h)
        torch.testing.assert_close(rate(near), difference, rtol=2e-6, atol=2e-7)


@every_path
def test_lam_is_log_signal_over_noise_increases_and_has_the_wronskian_as_slope(path: GaussianPath) -> None:
    t = inner_times().requires_grad_()
    point = path.at(t)
    lam = path.lam(t)
    torch.testing.assert_close(lam, point.lam, rtol=1e-12, atol=1e-12)
    assert bool((lam[1:] > lam[:-1]).all())
    assert bool((point.wronskian > 0).all())
    (slope,) = torch.autograd.grad(lam.sum(), t)
    torch.testing.assert_close(point.wronskian / (point.signal * point.noise), slope, rtol=1e-9, atol=1e-12)


@every_path
def test_time_at_inverts_lam(path: GaussianPath) -> None:
    low, high = max(path.lambda_min, -12.0), min(path.lambda_max, 12.0)
    lam = torch.linspace(low, high, 201, dtype=torch.float64)[1:-1]
    back = path.lam(path.time_at(lam))
    assert float(((back - lam).abs() / lam.abs().clamp(min=1)).max()) < 1e-12
    t = inner_times()
    torch.testing.assert_close(path.time_at(path.lam(t)), t, rtol=1e-12, atol=1e-13)


@every_path
def test_time_at_maps_infinities_and_values_beyond_the_ends_to_the_ends(path: GaussianPath) -> None:
    ends = torch.tensor([-math.inf, -1e4, 1e4, math.inf], dtype=torch.float64)
    times = path.time_at(ends)
    assert times[0] == 0
    assert times[3] == 1
    assert 0 <= times[1] < 1e-3
    assert 1 - 1e-3 < times[2] <= 1
    assert path.time_at(path.lam(0.0)) == 0
    assert path.time_at(path.lam(1.0)) == 1
    with pytest.raises(ValueError, match="NaN"):
        path.time_at(math.nan)


@every_path
def test_the_gradient_of_time_at_is_one_over_the_slope_of_lam(path: GaussianPath) -> None:
    lam = path.lam(inner_times()).requires_grad_()
    time = path.time_at(lam)
    (slope,) = torch.autograd.grad(time.sum(), lam)
    point = path.at(time.detach())
    torch.testing.assert_close(slope, point.signal * point.noise / point.wronskian, rtol=1e-8, atol=1e-14)
    beyond = torch.tensor([-math.inf, math.inf], dtype=torch.float64, requires_grad=True)
    (zero,) = torch.autograd.grad(path.time_at(beyond).sum(), beyond)
    assert zero.tolist() == [0, 0]


@every_path
def test_both_ends_are_exact_and_free_of_nan(path: GaussianPath) -> None:
    first, last = path.at(0.0), path.at(1.0)
    for point in (first, last):
        assert not any(bool(entry.isnan()) for entry in point)
        assert 0 <= point.signal <= 1
        assert point.noise >= 0
    if path.name == "ve":
        assert last.noise.item() == pytest.approx(path.config()["sigma_min"], rel=1e-14)
    else:
        assert last.noise == 0
        assert path.lam(1.0) == math.inf
        assert math.copysign(1.0, last.noise.item()) == 1.0
    assert last.signal.item() == pytest.approx(1.0, abs=1e-15)
    assert bool(path.noise_noise_rate(1.0).isfinite())
    assert bool(path.noise_noise_rate(0.0) <= 0)
    square_root = path.name in ("vp", "cosine-vp", "sigmoid-vp", "linear-vp", "discrete")
    assert (last.noise_rate == -math.inf) == square_root
    from_pure_noise = path.name in (
        "linear",
        "cosine",
        "polynomial",
        "kinetic-optimal",
        "linear-vp",
        "cosine-vp",
        "sigmoid-vp",
    )
    assert (path.lam(0.0) == -math.inf) == from_pure_noise
    assert (first.signal == 0) == from_pure_noise


@every_path
def test_default_range_of_lam_is_finite_and_within_the_path(path: GaussianPath) -> None:
    low, high = path.lambda_min, path.lambda_max
    assert isinstance(low, float)
    assert isinstance(high, float)
    assert math.isfinite(low)
    assert math.isfinite(high)
    assert low < high
    assert path.lam(0.0).item() <= low + 1e-12
    assert high <= path.lam(1.0).item() + 1e-12


def test_default_ranges_are_the_documented_ones() -> None:
    assert LinearPath().lambda_max == pytest.approx(math.log(100))
    assert VPPath().lambda_max == VPPath().lam(0.999).item()
    assert VPPath().lambda_min == VPPath().lam(0.0).item()
    assert EDMPath().lambda_min == -math.log(80)
    assert EDMPath().lambda_max == -math.log(0.002)
    path = DiscretePath.scaled_linear()
    assert path.lambda_min == pytest.approx(path.lam(path.time_of_index(999)).item(), abs=1e-13)
    assert path.lambda_max == pytest.approx(path.lam(path.time_of_index(0)).item(), abs=1e-13)


@every_path
@pytest.mark.parametrize("prediction", ["data", "noise", "velocity", "v", "score"])
def test_training_targets_are_bounded_on_the_training_interval(path: GaussianPath, prediction: str) -> None:
    low, high = path.train_interval(prediction)
    assert 0 <= low < high <= 1
    for t in (low, high):
        point = path.at(t)
        if prediction == "velocity":
            assert math.isfinite(point.signal_rate.item())
            assert math.isfinite(point.noise_rate.item())
        if prediction == "score":
            assert point.noise > 0
    with pytest.raises(ValueError, match="did you mean 'velocity'"):
        path.train_interval("velocty")


def test_small_noise_keeps_its_digits() -> None:
    tau = 1e-9
    t = 1 - tau
    exact_tau = 1 - t
    integral = 0.1 * exact_tau + 0.5 * 19.9 * exact_tau**2
    assert VPPath().noise(t).item() == pytest.approx(math.sqrt(-math.expm1(-integral)), rel=1e-14)
    assert VPPath().lam(t).item() == pytest.approx(-0.5 * math.log(math.expm1(integral)), rel=1e-14)
    assert LinearPath().lam(t).item() == pytest.approx(math.log(t) - math.log(exact_tau), rel=1e-14)


def test_discrete_path_has_the_training_levels_at_the_training_times() -> None:
    path = DiscretePath.scaled_linear()
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    power = torch.cumprod(1 - betas, 0)
    index = torch.arange(1000)
    times = path.time_of_index(index)
    assert times[999] == 0
    assert times[0] == pytest.approx(0.999)
    torch.testing.assert_close(path.signal(times), power.sqrt(), rtol=1e-13, atol=0)
    torch.testing.assert_close(path.noise(times), (1 - power).sqrt(), rtol=1e-12, atol=0)
    torch.testing.assert_close(path.index_of_time(times), index.double(), rtol=0, atol=1e-10)
    half = path.signal(path.time_of_index(torch.tensor([10.5], dtype=torch.float64))).log()
    torch.testing.assert_close(half, 0.25 * (power[10] * power[11]).log()[None], rtol=1e-13, atol=0)
    # At a knot the slope is that of the piece towards the data, also where t * steps is rounded down.
    later = torch.cat([torch.ones(1, dtype=torch.float64), power[:-1]])
    slope = 1000 * 0.5 * (later.log() - power.log()) * power.sqrt()
    torch.testing.assert_close(path.signal_rate(times), slope, rtol=1e-10, atol=0)


def test_discrete_cosine_follows_the_continuous_cosine_path() -> None:
    path, continuous = DiscretePath.cosine(2000), CosineVPPath()
    t = torch.linspace(0.05, 0.99, 20, dtype=torch.float64)
    torch.testing.assert_close(path.signal(t), continuous.signal(t), rtol=0, atol=1e-5)


@every_path
def test_types_shapes_and_devices_follow_the_time(path: GaussianPath) -> None:
    assert path.signal(0.3).dtype == torch.float64
    assert path.signal(0.3).shape == ()
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        t = torch.tensor([[0.25, 0.5, 0.75]], dtype=dtype)
        for entry in (*path.at(t), path.lam(t), path.time_at(path.lam(t))):
            assert entry.dtype == dtype
            assert entry.shape == (1, 3)
            assert bool(entry.isfinite().all())
    wide = path.at(torch.tensor([0.25, 0.5], dtype=torch.float64))
    single = path.at(torch.tensor([0.25, 0.5]))
    for exact, rounded in zip(wide, single, strict=True):
        torch.testing.assert_close(rounded.double(), exact, rtol=3e-4, atol=1e-6)


def test_sample_and_velocity_broadcast_over_the_batch() -> None:
    # As many samples as channels and pixels: the shape that hides wrong broadcasting.
    generator = torch.Generator().manual_seed(0)
    data, noise = torch.randn(2, 3, 3, 3, 3, generator=generator, dtype=torch.float64)
    t = torch.tensor([0.1, 0.5, 0.8], dtype=torch.float64)
    path = VPPath()
    x, velocity = path.sample(data, noise, t), path.velocity(data, noise, t)
    for index, time in enumerate(t.tolist()):
        point = [entry.item() for entry in path.at(time)]
        torch.testing.assert_close(x[index], point[0] * data[index] + point[1] * noise[index])
        torch.testing.assert_close(velocity[index], point[2] * data[index] + point[3] * noise[index])
    single = path.sample(data.float(), noise.float(), t)
    assert single.dtype == torch.float32
    torch.testing.assert_close(path.sample(data, noise, 0.5)[1], x[1])
    narrow = t.float()
    assert torch.equal(path.sample(data, noise, narrow), path.sample(data, noise, narrow.double()))
    h = 1e-6
    slope = (path.sample(data, noise, t + h) - path.sample(data, noise, t - h)) / (2 * h)
    torch.testing.assert_close(velocity, slope, rtol=1e-6, atol=1e-7)
    with pytest.raises(ValueError, match="per-sample value"):
        path.sample(data, noise, torch.tensor([0.1, 0.2]))


def test_prior_is_the_state_at_time_zero_and_depends_on_the_generator_alone() -> None:
    def draw(path: GaussianPath) -> Tensor:
        return path.prior((4, 2), torch.Generator().manual_seed(5), dtype=torch.float64)

    z = torch.randn(4, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    assert torch.equal(draw(LinearPath()), z)
    assert torch.equal(draw(EDMPath()), 80 * z)
    torch.testing.assert_close(draw(VPPath()), z * VPPath().noise(0.0))
    assert EDMPath().prior((1,)).dtype == torch.float32


@every_path
def test_configurations_survive_json_pickle_and_comparison(path: GaussianPath) -> None:
    path.signal(0.5)  # fills caches, which must not matter
    again = path_from_config(json.loads(json.dumps(path.config())))
    assert again == path
    assert hash(again) == hash(path)
    assert pickle.loads(pickle.dumps(path)) == path
    assert copy.deepcopy(path) == path
    assert path.constant_rates == (path.name == "linear")
    t = inner_times()
    assert torch.equal(again.lam(t), path.lam(t))


def test_vmap_and_compiled_style_tracing_do_not_meet_the_range_check() -> None:
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    assert torch.equal(torch.vmap(VPPath().signal)(t), VPPath().signal(t))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: path_by_name("edn"), "unknown path 'edn'; did you mean 'edm'"),
        (lambda: path_by_name("vp", beta_mx=3.0), "did you mean 'beta_max'"),
        (lambda: path_by_name("linear", power=3.0), "valid names: \\(none\\)"),
        (lambda: path_by_name("discrete"), "needs alphas_cumprod"),
        (lambda: path_from_config({"beta_min": 1.0}), "needs the key 'name'"),
        (lambda: LinearPath().signal(1.5), "t must lie in \\[0, 1\\].*got 1.5"),
        (lambda: LinearPath().at(torch.tensor([0.2, math.nan])), "got nan"),
        (lambda: VPPath(beta_min=0.0), "beta_min must be a finite number above 0, got 0.0"),
        (lambda: VPPath(beta_min=3.0, beta_max=1.0), "beta_min must be below beta_max"),
        (lambda: VEPath(sigma_min=60.0), "sigma_min must be below sigma_max"),
        (lambda: EDMPath(rho=-1.0), "rho must be"),
        (lambda: PolynomialPath(0.0), "power must be"),
        (lambda: CosineVPPath(math.inf), "offset must be"),
        (lambda: SigmoidVPPath(temperature=0.01), "at most 80"),
        (lambda: DiscretePath((0.9, 0.5, 0.0)), "got 0.0 at index 2.*2\\*\\*-24"),
        (lambda: DiscretePath((0.5, 0.9)), "decrease strictly.*entry 1"),
        (lambda: DiscretePath((0.5,)), "at least 2"),
        (lambda: DiscretePath.from_betas([0.1, 1.0]), "betas must be"),
    ],
)
def test_bad_input_is_refused_with_words(call: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()  # type: ignore[operator]


@given(
    low=st.floats(0.01, 2.0),
    rise=st.floats(0.1, 30.0),
    lam=st.floats(-2.0, 12.0),
)
def test_vp_inverse_holds_for_any_beta(low: float, rise: float, lam: float) -> None:
    path = VPPath(low, low + rise)
    clipped = max(lam, path.lam(0.0).item())
    t = path.time_at(clipped).item()
    # Near t = 1 the spacing of float64 bounds what a time can say about lam.
    assert path.lam(t).item() == pytest.approx(clipped, rel=1e-12, abs=1e-12 + 1e-15 / max(1 - t, 1e-16))


@given(
    start=st.floats(-6.0, 0.0),
    spread=st.floats(0.5, 10.0),
    temperature=st.floats(0.3, 3.0),
    lam=st.floats(-10.0, 10.0),
)
def test_sigmoid_inverse_holds_for_any_parameters(start: float, spread: float, temperature: float, lam: float) -> None:
    path = SigmoidVPPath(start, start + spread, temperature)
    t = path.time_at(lam).item()
    assert path.lam(t).item() == pytest.approx(lam, abs=1e-12 + 1e-15 / (1 - t))  # as above
