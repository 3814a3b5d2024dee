"""Equal signal-to-noise ratios on different paths: states, velocities, networks."""

import itertools

import pytest
import torch
from torch import Tensor

from pathline.interpolants import (
    PREDICTIONS,
    CosinePath,
    DiscretePath,
    EDMPath,
    GaussianMixture,
    GaussianPath,
    LinearPath,
    VEPath,
    VPPath,
    transfer,
    transfer_model,
)

PATHS: list[GaussianPath] = [LinearPath(), CosinePath(), VPPath(), VEPath(), EDMPath(), DiscretePath.scaled_linear()]
PAIRS = list(itertools.permutations(PATHS, 2))
every_pair = pytest.mark.parametrize(("source", "target"), PAIRS, ids=[f"{a.name}-to-{b.name}" for a, b in PAIRS])


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MIXTURE = GaussianMixture([0.4, 0.6], draws(2, 3, seed=1), [0.3, 0.7], classes=[0, 1])


@every_pair
def test_scaled_states_are_states_of_the_other_path_and_the_way_back_is_the_inverse(
    source: GaussianPath, target: GaussianPath
) -> None:
    t = source.time_at(torch.linspace(-2.5, 3.0, 23, dtype=torch.float64))
    other, scale = transfer(source, target, t)
    torch.testing.assert_close(scale * source.signal(t), target.signal(other), rtol=1e-10, atol=0)
    torch.testing.assert_close(scale * source.noise(t), target.noise(other), rtol=1e-10, atol=0)
    back, inverse = transfer(target, source, other)
    torch.testing.assert_close(back, t, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(inverse * scale, torch.ones_like(scale), rtol=1e-11, atol=0)


@pytest.mark.parametrize(
    ("source", "target"),
    [(LinearPath(), CosinePath()), (LinearPath(), VPPath()), (EDMPath(), CosinePath()), (VPPath(), VEPath())],
    ids=lambda path: path.name,
)
def test_velocity_of_the_other_path_by_the_chain_rule(source: GaussianPath, target: GaussianPath) -> None:
    """velocity' = (dc/dr) (x'/c) + c (dt/dr) velocity, the derivatives by differences."""
    r = torch.linspace(0.3, 0.8, 6, dtype=torch.float64)
    h = 1e-6
    t, inverse = transfer(target, source, r)
    c = 1 / inverse
    (t_up, up), (t_down, down) = transfer(target, source, r + h), transfer(target, source, r - h)
    dc = (1 / up - 1 / down) / (2 * h)
    dt = (t_up - t_down) / (2 * h)
    x = draws(6, 3, seed=2) * target.noise(r)[:, None]
    inner = MIXTURE.as_model(source, "velocity")(x / c[:, None], t)
    expected = dc[:, None] * x / c[:, None] + (c * dt)[:, None] * inner
    torch.testing.assert_close(MIXTURE.as_model(target, "velocity")(x, r), expected, rtol=1e-6, atol=1e-6)


@every_pair
def test_a_network_of_one_path_serves_another(source: GaussianPath, target: GaussianPath) -> None:
    r = target.time_at(torch.linspace(-2.0, 2.5, 6, dtype=torch.float64))
    x = target.sample(MIXTURE.sample(6, torch.Generator().manual_seed(0)), draws(6, 3, seed=4), r)
    labels = torch.tensor([0, 1, -1, 0, 1, -1])
    for prediction, wanted in itertools.product(PREDICTIONS, PREDICTIONS):
        wrapped = transfer_model(MIXTURE.as_model(source, prediction), source, target, prediction, wanted)
        expected = MIXTURE.as_model(target, wanted)(x, r, labels)
        scale = float(expected.abs().max())
        assert float((wrapped(x, r, labels=labels) - expected).abs().max()) < 1e-8 * max(1.0, scale)


def test_ends_that_exist_on_both_paths_are_exact() -> None:
    time, scale = transfer(LinearPath(), CosinePath(), torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert time.tolist() == [0.0, 1.0]
    assert scale.tolist() == [1.0, 1.0]
    time, scale = transfer(EDMPath(), VEPath(0.01, 80.0), 0.0)
    assert time == 0
    assert scale.item() == pytest.approx(1.0, rel=1e-12)
    time, scale = transfer(VPPath(), LinearPath(), 1.0)
    assert time == 1
    assert scale == 1


def test_a_ratio_the_other_path_lacks_is_refused_with_its_range() -> None:
    with pytest.raises(
        ValueError, match=r"t = 0 the path 'linear'.*-inf, which the path 'vp' never has.*-5.0.* to inf"
    ):
        transfer(LinearPath(), VPPath(), 0.0)
    with pytest.raises(ValueError, match="'ve' never has"):
        transfer(LinearPath(), VEPath(), torch.tensor([0.5, 1.0]))
    with pytest.raises(ValueError, match="unknown target prediction 'flow'"):
        transfer_model(None, LinearPath(), VPPath(), "data", "flow")


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_beyond_the_trained_range_the_nearest_end_gives_its_data_prediction(prediction: str) -> None:
    """A flow sampler starts from pure noise, which a VP network never saw."""
    path, model = VPPath(), MIXTURE.as_model(VPPath(), prediction)
    wrapped = transfer_model(model, path, LinearPath(), prediction, "data")
    x = draws(4, 3, seed=5)
    result = wrapped(x, 0.0)
    assert bool(result.isfinite().all())
    torch.testing.assert_close(result, MIXTURE.as_model(path)(x, 0.0), rtol=1e-6, atol=1e-6)
    velocity = transfer_model(model, path, LinearPath(), prediction, "velocity")(x, 0.0)
    torch.testing.assert_close(velocity, result - x, rtol=1e-6, atol=1e-6)


def test_the_inner_network_gets_times_of_its_own_path_in_a_plain_type() -> None:
    seen = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        seen.append((x.dtype, t.dtype, t.shape))
        return x

    wrapped = transfer_model(network, EDMPath(), LinearPath(), "data")
    wrapped(torch.ones(2, 3), 0.5)
    wrapped(torch.ones(2, 3, dtype=torch.float64), torch.tensor([0.4, 0.5], dtype=torch.float64))
    assert seen == [(torch.float32, torch.float32, (2,)), (torch.float64, torch.float64, (2,))]
