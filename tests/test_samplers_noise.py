"""Keyed noise: standard normal, independent, and a function of its key alone."""

import pytest
import torch
from scipy import stats

from pathline.samplers import START_NOISE, keyed_normal, seed_of


def test_standard_normal() -> None:
    z = keyed_normal((1000,), seed=3, samples=range(200), dtype=torch.float64).flatten().numpy()
    assert stats.kstest(z, "norm").pvalue > 1e-3
    assert abs(z.mean()) < 4 / len(z) ** 0.5
    assert abs(z.var() - 1) < 4 * (2 / len(z)) ** 0.5
    assert abs(stats.kurtosis(z)) < 4 * (24 / len(z)) ** 0.5


def test_streams_are_uncorrelated() -> None:
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, START_NOISE, 0)]
    streams = torch.stack(
        [keyed_normal((20000,), s, [7], r, k, dtype=torch.float64)[0] for s, r, k in keys]
        + [keyed_normal((20000,), 0, [8], dtype=torch.float64)[0]]
    )
    off = torch.corrcoef(streams) - torch.eye(len(streams))
    assert float(off.abs().max()) < 5 / 20000**0.5


def test_neighbouring_samples_and_pixels_are_uncorrelated() -> None:
    z = keyed_normal((64,), 5, range(20000), dtype=torch.float64)
    assert float((z[:-1] * z[1:]).mean()) == pytest.approx(0, abs=5 / (64 * 20000) ** 0.5)
    assert float((z[:, :-1] * z[:, 1:]).mean()) == pytest.approx(0, abs=5 / (64 * 20000) ** 0.5)


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 5), (3, 4, 4)])
def test_a_batch_is_its_samples(shape: tuple[int, ...]) -> None:
    whole = keyed_normal(shape, 11, range(8), 2, 1)
    parts = torch.cat([keyed_normal(shape, 11, [i], 2, 1) for i in range(8)])
    assert torch.equal(whole, parts)


def test_types_share_their_noise() -> None:
    wide = keyed_normal((50,), 1, [0, 1], dtype=torch.float64)
    narrow = keyed_normal((50,), 1, [0, 1])
    assert torch.allclose(wide.float(), narrow, atol=2e-5)
    assert keyed_normal((4,), 1, [0], dtype=torch.bfloat16).dtype == torch.bfloat16


def test_global_random_state_is_untouched() -> None:
    before = torch.get_rng_state()
    keyed_normal((10,), 1, [0])
    assert torch.equal(before, torch.get_rng_state())


def test_generator_gives_one_seed() -> None:
    a, b = (seed_of(torch.Generator().manual_seed(4)) for _ in range(2))
    assert a == b
    assert 0 <= a < 2**64
    assert seed_of(torch.Generator().manual_seed(5)) != a
