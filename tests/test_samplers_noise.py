"""Keyed noise: standard normal, independent, and a function of its key alone."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from scipy import stats

from pathline.samplers import START_NOISE, keyed_normal, seed_of
from pathline.samplers.keyed_noise import run_keys, run_normals


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


@pytest.mark.parametrize("seeds", [[5], [5, -3, 2**64 - 1]])
def test_keys_of_a_run_are_those_of_its_draws(seeds: list[int]) -> None:
    samples, draws, like = [4, 0, 2**40], [(0, 0), (7, 0), (7, 1), (START_NOISE, 3)], torch.empty(3, 2, 5)
    keys = run_keys(seeds, torch.tensor(samples), torch.tensor(draws))
    assert keys.shape == (4, 3)
    for key, (row, slot) in zip(keys, draws, strict=True):
        found = run_normals(key, like)
        for b, sample in enumerate(samples):
            seed = seeds[b % len(seeds)]
            assert torch.equal(found[b], keyed_normal((2, 5), seed, [sample], row, slot)[0])


@pytest.mark.parametrize("count", [1, 7, 2**15, 2**15 + 3, 2**17 + 1])
def test_pieces_do_not_show(count: int) -> None:
    """Draws longer and shorter than the pieces they are made in, beside each other."""
    both = keyed_normal((count,), 1, [0, 1, 2])
    longer = keyed_normal((count + count % 2,), 1, [2])
    assert torch.equal(both[2], longer[0, :count])
    assert torch.equal(both[2], keyed_normal((count,), 1, [2])[0])
    # the reference formula, on other numbers and in another order of operations
    wide = keyed_normal((count,), 1, [2], dtype=torch.float64)[0]
    torch.testing.assert_close(both[2].double(), wide, rtol=1e-4, atol=1e-5)


def test_threads_draw_the_same() -> None:
    expected = [keyed_normal((4, 64, 64), 0, [k]) for k in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda k: keyed_normal((4, 64, 64), 0, [k]), list(range(8)) * 5))
    assert all(torch.equal(z, expected[k % 8]) for k, z in enumerate(found))


def test_draws_in_and_out_of_inference_mode_agree() -> None:
    with torch.inference_mode():
        first = keyed_normal((4097,), 9, [3])
    assert torch.equal(first, keyed_normal((4097,), 9, [3]))
