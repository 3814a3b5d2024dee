"""Kinetic-optimal paths: closed form, energies, known separations."""

import json
import math

import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor

from pathline.interpolants import (
    CosinePath,
    GaussianMixture,
    GaussianPath,
    KineticOptimalPath,
    LinearPath,
    VPPath,
    metric_angles,
    path_from_config,
)
from pathline.samplers import sample

NODES, WEIGHTS = (torch.from_numpy(values) for values in hermegauss(120))
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def two_points(ratio: Tensor) -> Tensor:
    """Λ of one coordinate that is 1 or −1: E tanh²(u² + u z)."""
    return ((ratio[:, None].square() + ratio[:, None] * NODES).tanh().square() * WEIGHTS).sum(1)


def test_energy_of_two_points_is_the_known_optimum() -> None:
    assert float(two_points(torch.tensor([0.7]).double())) == pytest.approx(0.3450260, abs=1e-7)
    path = KineticOptimalPath.from_separation(two_points, pieces=512, floor=1e-8)
    assert path._length == pytest.approx(0.69126, abs=1e-5)
    assert path.energy == pytest.approx(0.45912, abs=1e-5)
    # The same from the path's own coefficients, by quadrature; and those of two other paths.
    assert path.energy_of(path) == pytest.approx(path.energy, rel=1e-9)
    linear, cosine = path.energy_of(LinearPath()), path.energy_of(CosinePath())
    assert linear == pytest.approx(0.9824, abs=1e-4)
    assert cosine == pytest.approx(0.8690, abs=1e-4)
    assert 2 - 2 * math.sqrt(2 / math.pi) < path.energy < cosine < linear


def test_energy_is_that_of_the_exact_velocity_of_two_points() -> None:
    # Not through γ: E|E[velocity|x]|² of the mixture itself, by quadrature in x and t.
    target = GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], std=[1e-6, 1e-6])
    known = KineticOptimalPath.from_separation(two_points, pieces=256)

    def direct(path: GaussianPath, steps: int = 200) -> float:
        model, total = target.as_model(path, "velocity"), 0.0
        for t in ((torch.arange(steps) + 0.5) / steps).tolist():
            x = path.signal(t) + path.noise(t) * NODES  # by symmetry from one of the points alone
            total += float((model(x[:, None], t)[:, 0].square() * WEIGHTS).sum()) / steps
        return total

    for path in (LinearPath(), CosinePath(), known):
        assert direct(path) == pytest.approx(known.energy_of(path), abs=3e-3)
    assert known.energy_of(known) < 0.481  # against 0.459 without the floor


def test_no_neighbouring_path_has_less_energy() -> None:
    path = KineticOptimalPath.from_separation(two_points, pieces=64, scale=0.6, floor=0.02)
    floored = KineticOptimalPath(tuple(max(value, 0.02) for value in path.metric), 0.6, 0.02)
    assert floored.energy_of(path) == pytest.approx(path.energy, rel=1e-5)
    for change in (0.9, 1.1):
        other = KineticOptimalPath(tuple(min(1.0, value**change) for value in path.metric), 0.6, 0.02)
        assert floored.energy_of(other) > path.energy + 1e-5
    wider = KineticOptimalPath(path.metric, 0.66, 0.02)
    assert floored.energy_of(wider) > path.energy + 1e-5


def test_data_that_noise_does_not_mix_have_the_linear_path_and_a_scale_does_not_change_it() -> None:
    t = torch.linspace(0, 1, 33, dtype=torch.float64)
    for scale in (1.0, 0.3):
        point, linear = KineticOptimalPath((1.0,) * 9, scale).at(t), LinearPath().at(t)
        for found, expected in zip(point, linear, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert KineticOptimalPath().energy == pytest.approx(2.0)


def test_a_floor_bounds_the_rates_and_costs_little() -> None:
    energies = []
    for floor in (1e-4, 1e-3, 1e-2):
        path = KineticOptimalPath.from_separation(two_points, floor=floor)
        rate = float(path.signal_rate(0.0))
        assert 0.5 / math.sqrt(floor) < rate <= 1 / math.sqrt(floor)
        energies.append(path.energy_of(path))
        assert energies[-1] <= path.energy
    assert energies == sorted(energies)
    assert energies[-1] < 0.48


def test_it_is_sampled_like_any_path_and_survives_json() -> None:
    path = KineticOptimalPath.from_separation(two_points, pieces=32, scale=0.5)
    again = path_from_config(json.loads(json.dumps(path.config())))
    assert again == path
    target = GaussianMixture([0.5, 0.5], [[-0.5], [0.5]], std=[0.05, 0.05])
    x = path.prior((4096, 1), torch.Generator().manual_seed(0), dtype=torch.float64)
    made = sample(target.as_model(path, "velocity"), x, path=again, method="heun", grid="time", nfe=60)
    assert float(made.abs().mean()) == pytest.approx(0.5, abs=0.01)
    assert float(made.abs().std()) == pytest.approx(0.05, abs=0.01)


def test_velocity_data_and_noise_predictions_agree_on_the_path() -> None:
    path = KineticOptimalPath.from_separation(two_points, pieces=16)
    target = GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], std=[0.1, 0.1])
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    t = torch.linspace(0.05, 0.95, 9, dtype=torch.float64)
    point = path.at(t)
    data, noise, velocity = (target.as_model(path, name)(x, t)[:, 0] for name in ("data", "noise", "velocity"))
    torch.testing.assert_close(velocity, point.signal_rate * data + point.noise_rate * noise)


def test_angles_of_the_metric() -> None:
    angles = metric_angles(4)
    assert angles[0] == 0
    assert angles[2] == pytest.approx(math.pi / 4)
    assert math.pi / 2 - 0.1 < angles[4] < math.pi / 2


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: KineticOptimalPath((1.0,)), "at least 2 numbers, got 1"),
        (lambda: KineticOptimalPath((0.0, 1.5)), r"in \[0, 1\], got 1.5 at index 1"),
        (lambda: KineticOptimalPath((0.0, math.nan)), "got nan at index 1"),
        (lambda: KineticOptimalPath(scale=0.0), "scale must be"),
        (lambda: KineticOptimalPath(floor=0.0), r"floor must lie in \(0, 1\], got 0.0"),
        (lambda: KineticOptimalPath.from_separation(two_points, pieces=0), "pieces must be at least 1, got 0"),
        (lambda: KineticOptimalPath.from_separation(lambda u: u[:3]), r"shape \(128,\)"),
    ],
)
def test_bad_input_is_refused_with_words(call: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()  # type: ignore[operator]


def test_slopes_of_a_vp_path_are_counted_without_infinities() -> None:
    assert math.isfinite(KineticOptimalPath().energy_of(VPPath()))
