"""The five predictions: the published table, round trips, ends, refusals."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pathline.interpolants import (
    PREDICTIONS,
    CosinePath,
    DiscretePath,
    EDMPath,
    GaussianPath,
    LinearPath,
    PathPoint,
    VPPath,
    coefficients,
    convert,
    list_paths,
    path_by_name,
)

PATHS: list[GaussianPath] = [path_by_name(name) for name in list_paths() if name != "discrete"]
PATHS.append(DiscretePath.scaled_linear())
every_path = pytest.mark.parametrize("path", PATHS, ids=[path.name for path in PATHS])
PAIRS = list(itertools.product(PREDICTIONS, PREDICTIONS))


def truth(data: Tensor, noise: Tensor, point: PathPoint) -> dict[str, Tensor]:
    """All predictions of a state whose data and noise are known, from their definitions."""
    a, s, da, ds = (entry[:, None] for entry in point)
    return {
        "x": a * data + s * noise,
        "data": data,
        "noise": noise,
        "velocity": da * data + ds * noise,
        "v": a * noise - s * data,
        "score": -noise / s,
    }


@every_path
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_every_prediction_becomes_every_other_and_comes_back(path: GaussianPath, source: str, target: str) -> None:
    generator = torch.Generator().manual_seed(1)
    data, noise = torch.randn(2, 7, 7, generator=generator, dtype=torch.float64)
    # Levels at which the state still tells data from noise; beyond them the question itself loses digits.
    lam = torch.linspace(max(path.lambda_min, -4.0), min(path.lambda_max, 4.0), 7, dtype=torch.float64)
    point = path.at(path.time_at(lam))
    known = truth(data, noise, point)
    result = convert(known["x"], known[source], point, source, target)
    scale = known[target].abs().max()
    assert float((result - known[target]).abs().max() / scale) < 1e-10
    back = convert(known["x"], result, point, target, source)
    assert float((back - known[source]).abs().max() / known[source].abs().max()) < 1e-9
    for index in range(7):
        c_x, c_out = coefficients(*(entry[index].item() for entry in point), source, target)
        row = c_x * known["x"][index] + c_out * known[source][index]
        torch.testing.assert_close(row, result[index], rtol=1e-9, atol=1e-12 * float(scale))


def test_table_of_the_velocity_and_v_rows() -> None:
    """The published formulas, written out a second time."""
    a, s, da, ds = 0.3, 0.8, 1.3, -0.7
    w, q = da * s - a * ds, a * a + s * s
    expected = {
        ("velocity", "data"): (-ds / w, s / w),
        ("velocity", "noise"): (da / w, -a / w),
        ("velocity", "score"): (-da / (s * w), a / (s * w)),
        ("noise", "data"): (1 / a, -s / a),
        ("noise", "velocity"): (da / a, -w / a),
        ("data", "velocity"): (ds / s, w / s),
        ("data", "score"): (-1 / s**2, a / s**2),
        ("score", "data"): (1 / a, s**2 / a),
        ("score", "noise"): (0.0, -s),
        ("score", "velocity"): (da / a, s * w / a),
        ("v", "data"): (a / q, -s / q),
        ("v", "noise"): (s / q, a / q),
        ("noise", "score"): (0.0, -1 / s),
    }
    for (source, target), pair in expected.items():
        assert coefficients(a, s, da, ds, source, target) == pytest.approx(pair, rel=1e-14)


def test_cosine_velocity_is_a_multiple_of_v_and_linear_velocity_is_data_less_noise() -> None:
    point = [entry.item() for entry in CosinePath().at(0.37)]
    assert coefficients(*point, "v", "velocity") == pytest.approx((0.0, -math.pi / 2), abs=1e-14)
    x = torch.tensor([[0.3, -1.0]], dtype=torch.float64)
    data = torch.tensor([[0.9, 0.4]], dtype=torch.float64)
    at = LinearPath().at(0.37)
    noise = convert(x, data, at, "data", "noise")
    torch.testing.assert_close(convert(x, data, at, "data", "velocity"), data - noise)


def test_ends_of_the_linear_path() -> None:
    first, last = (0.0, 1.0, 1.0, -1.0), (1.0, 0.0, 1.0, -1.0)
    assert coefficients(*first, "velocity", "data") == (1.0, 1.0)
    assert coefficients(*first, "velocity", "noise") == (1.0, 0.0)
    assert coefficients(*first, "noise", "score") == (0.0, -1.0)
    assert coefficients(*last, "velocity", "data") == (1.0, 0.0)
    assert coefficients(*last, "velocity", "noise") == (1.0, -1.0)
    assert coefficients(*last, "v", "data") == (1.0, 0.0)


@pytest.mark.parametrize(
    ("point", "source", "target"),
    [
        ((0.0, 1.0, 1.0, -1.0), "noise", "data"),
        ((0.0, 1.0, 1.0, -1.0), "noise", "velocity"),
        ((0.0, 1.0, 1.0, -1.0), "score", "data"),
        ((1.0, 0.0, 1.0, -1.0), "data", "noise"),
        ((1.0, 0.0, 1.0, -1.0), "noise", "score"),
        ((1.0, 0.0, 1.0, -1.0), "velocity", "score"),
        ((1.0, 0.0, 0.05, -math.inf), "velocity", "data"),
        ((1.0, 0.0, 0.05, -math.inf), "noise", "velocity"),
    ],
)
def test_undefined_conversions_are_refused(point: tuple[float, ...], source: str, target: str) -> None:
    words = f"a {source} prediction does not determine the {target} at signal"
    with pytest.raises(ValueError, match=words):
        coefficients(*point, source, target)  # type: ignore[arg-type]
    x = torch.ones(2, 3)
    tensors = PathPoint(*(torch.tensor([entry, entry]) for entry in point))
    with pytest.raises(ValueError, match=words):
        convert(x, x, tensors, source, target)


def test_missing_rates_and_misspelt_names_are_refused() -> None:
    assert coefficients(0.5, 0.5, None, None, "data", "noise") == (2.0, -1.0)
    for source, target in (("velocity", "data"), ("noise", "velocity")):
        with pytest.raises(ValueError, match="needs signal_rate and noise_rate"):
            coefficients(0.5, 0.5, None, None, source, target)
    with pytest.raises(ValueError, match=r"unknown source prediction 'epsilon'.*valid names: data, noise"):
        coefficients(0.5, 0.5, None, None, "epsilon", "data")
    with pytest.raises(ValueError, match="did you mean 'noise'"):
        convert(torch.ones(1), torch.ones(1), LinearPath().at(0.5), "data", "nois")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_type_of_the_output_is_kept_and_coefficients_are_computed_in_the_type_of_the_point(
    dtype: torch.dtype,
) -> None:
    x = torch.ones(2, 3, 4, dtype=dtype)
    point = VPPath().at(torch.tensor([0.2, 0.7], dtype=torch.float64))
    result = convert(x, 0.5 * x, point, "noise", "data")
    assert result.dtype == dtype
    assert result.shape == x.shape
    exact = (1 - 0.5 * point.noise) / point.signal
    torch.testing.assert_close(result[:, 0, 0].double(), exact, rtol=2e-2 if dtype == torch.bfloat16 else 1e-6, atol=0)


@given(
    lam=st.floats(-4.0, 4.0),
    scale=st.floats(0.1, 10.0),
    rates=st.tuples(st.floats(0.0, 5.0), st.floats(-5.0, -0.05)),
    state=st.tuples(st.floats(-3.0, 3.0), st.floats(-3.0, 3.0)),
    pair=st.sampled_from(PAIRS),
)
def test_host_coefficients_agree_with_the_definitions_at_any_point(
    lam: float,
    scale: float,
    rates: tuple[float, float],
    state: tuple[float, float],
    pair: tuple[str, str],
) -> None:
    noise_level = scale / math.hypot(1.0, math.exp(lam))
    point = PathPoint(*(torch.tensor([v]).double() for v in (noise_level * math.exp(lam), noise_level, *rates)))
    data, noise = (torch.tensor([[value]], dtype=torch.float64) for value in state)
    known = truth(data, noise, point)
    source, target = pair
    c_x, c_out = coefficients(*(entry.item() for entry in point), source, target)
    result = c_x * known["x"] + c_out * known[source]
    size = (c_x * known["x"]).abs() + (c_out * known[source]).abs() + 1e-12
    assert float((result - known[target]).abs() / size) < 1e-11


def test_edm_denoiser_is_the_familiar_derivative() -> None:
    """Karras et al.: dx/dsigma = (x - D) / sigma."""
    path = EDMPath()
    point = [entry.item() for entry in path.at(0.4)]
    c_x, c_out = coefficients(*point, "data", "velocity")
    sigma, rate = point[1], point[3]
    assert (c_x, c_out) == pytest.approx((rate / sigma, -rate / sigma))
