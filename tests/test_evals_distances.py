"""Moments and distances against closed forms, independent formulas and finite-sample theory."""

import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch

from pathline.evals.distances import (
    frechet_bias,
    frechet_distance,
    frechet_from_moments,
    frechet_infinity,
    kernel_distance,
    rbf_distance,
    sliced_wasserstein,
    wasserstein_1d,
)
from pathline.evals.moments import Moments
from pathline.evals.neighbours import precision_recall, radii

MU = np.zeros(2), np.array([1.0, -2.0])
SIGMA = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.3], [-0.3, 3.0]])


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_frechet_of_two_gaussians_has_the_published_value() -> None:
    assert frechet_from_moments(MU[0], SIGMA[0], MU[1], SIGMA[1]) == pytest.approx(5.9293119, abs=5e-8)


def test_frechet_agrees_with_the_matrix_square_root(rng: np.random.Generator) -> None:
    a, b = rng.standard_normal((2, 12, 12))
    first, second = a @ a.T, b @ b.T
    delta = rng.standard_normal(12)
    root = np.real(scipy.linalg.sqrtm(first @ second))
    expected = delta @ delta + np.trace(first) + np.trace(second) - 2 * np.trace(root)
    assert frechet_from_moments(delta, first, np.zeros(12), second) == pytest.approx(expected, rel=1e-10)


def test_frechet_of_diagonal_gaussians_is_a_sum_of_squares(rng: np.random.Generator) -> None:
    a, b, delta = rng.uniform(0, 3, 6), rng.uniform(0, 3, 6), rng.standard_normal(6)
    expected = ((np.sqrt(a) - np.sqrt(b)) ** 2).sum() + delta @ delta
    assert frechet_from_moments(delta, np.diag(a), 0 * delta, np.diag(b)) == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_of_a_set_to_itself_is_zero_also_when_singular(
    rng: np.random.Generator, no_warnings: None
) -> None:
    # Roots of eigenvalues that are rounding noise cost half the digits where the covariance is singular.
    for count, tolerance in ((500, 1e-11), (20, 1e-6)):
        x = rng.standard_normal((count, 64)) * np.linspace(0.1, 5, 64)
        moments = Moments.of(x)
        assert abs(frechet_distance(moments, moments)) < tolerance * np.trace(moments.covariance)


def test_frechet_refuses_unequal_dimensions() -> None:
    with pytest.raises(ValueError, match="agree in dimension"):
        frechet_from_moments(np.zeros(3), np.eye(3), np.zeros(2), np.eye(2))


@pytest.mark.parametrize("parts", [2, 7])
def test_merged_shards_equal_one_pass_and_numpy(rng: np.random.Generator, parts: int) -> None:
    x = 100 + rng.standard_normal((501, 8)) @ rng.standard_normal((8, 8))
    whole = Moments.of(x)
    merged = Moments()
    for shard in np.array_split(x, parts):
        merged = merged.merge(Moments.of(shard) if len(shard) > 8 else Moments().update(shard))
    assert merged.count == 501
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=0, atol=1e-10)
    np.testing.assert_allclose(merged.covariance, whole.covariance, rtol=0, atol=1e-10)
    np.testing.assert_allclose(whole.covariance, np.cov(x.T), rtol=1e-12)


def test_order_of_samples_and_batches_does_not_matter(rng: np.random.Generator) -> None:
    x = rng.standard_normal((300, 5))
    streamed = Moments()
    for batch in np.array_split(x[rng.permutation(300)], 13):
        streamed.update(batch)
    reference = Moments.exact(np.ones(5), np.eye(5))
    assert frechet_distance(streamed, reference) == pytest.approx(frechet_distance(Moments.of(x), reference), abs=1e-10)


def test_float32_features_with_a_large_mean_keep_their_variance() -> None:
    x = torch.randn(50_000, 3, generator=torch.Generator().manual_seed(0)) + 100.0
    moments = Moments()
    for batch in x.split(500):
        moments.update(batch)
    np.testing.assert_allclose(np.diag(moments.covariance), x.double().var(0), rtol=1e-9)


def test_moments_refuse_too_few_and_warn_at_few_samples(rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        _ = Moments.of(rng.standard_normal((1, 3))).covariance
    with pytest.warns(UserWarning, match="4 samples for 4 features"):
        _ = Moments.of(rng.standard_normal((4, 4))).covariance
    with pytest.raises(ValueError, match="not finite in 1 of 3 samples"):
        Moments.of(np.array([[1.0], [np.nan], [2.0]]))
    with pytest.raises(ValueError, match="20000 features would need a covariance of 3 GB"):
        Moments.of(np.zeros((2, 20_000)))
    with pytest.raises(ValueError, match="4 columns"):
        Moments.of(np.zeros((3, 4))).update(np.zeros((3, 5)))


def test_statistics_survive_the_disk(tmp_path: Path, rng: np.random.Generator) -> None:
    moments = Moments.of(rng.standard_normal((50, 4)), {"name": "toy", "split": "train"})
    moments.save(tmp_path / "ref.npz")
    loaded = Moments.load(tmp_path / "ref.npz")
    np.testing.assert_allclose(loaded.covariance, moments.covariance, rtol=1e-14)
    assert (loaded.count, loaded.metadata) == (50, {"name": "toy", "split": "train"})
    np.savez(tmp_path / "foreign.npz", mu=np.zeros(2), sigma=np.eye(2))
    assert frechet_distance(Moments.load(tmp_path / "foreign.npz"), Moments.exact([1, 0], np.eye(2))) == pytest.approx(
        1
    )


def test_damaged_statistics_are_named(tmp_path: Path) -> None:
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(ValueError, match=r"broken\.npz cannot be read"):
        Moments.load(tmp_path / "broken.npz")
    np.savez(tmp_path / "other.npz", mu=np.zeros(2))
    with pytest.raises(ValueError, match=r"other\.npz lacks \['sigma'\]"):
        Moments.load(tmp_path / "other.npz")


def test_bias_of_a_perfect_generator() -> None:
    assert frechet_bias(np.eye(64), 2000) == pytest.approx(64 / 2000 + 64 * 65 / 8000, rel=1e-12)
    assert frechet_bias(np.diag(np.linspace(0.05, 2, 40)), 1000) == pytest.approx(0.3908, abs=5e-5)


def test_frechet_of_a_perfect_generator_has_the_predicted_bias(rng: np.random.Generator) -> None:
    reference = Moments.exact(np.zeros(16), np.eye(16))
    values = [frechet_distance(Moments.of(rng.standard_normal((400, 16))), reference) for _ in range(60)]
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    assert abs(np.mean(values) - frechet_bias(np.eye(16), 400)) < 4 * error + 0.02 * frechet_bias(np.eye(16), 400)


def test_regression_of_a_perfect_generator_on_one_over_n_has_no_intercept(rng: np.random.Generator) -> None:
    reference = Moments.exact(np.zeros(8), np.eye(8))
    sizes = np.array([100, 150, 200, 300, 450, 700, 1000])
    values, weights = [], []
    for n in sizes:
        repeats = [frechet_distance(Moments.of(rng.standard_normal((n, 8))), reference) for _ in range(40)]
        values.append(np.mean(repeats))
        weights.append(math.sqrt(len(repeats)) / np.std(repeats, ddof=1))
    scale = np.array(weights)
    design = np.stack([np.ones(len(sizes)), 1 / sizes], axis=1) * scale[:, None]
    solution = np.linalg.lstsq(design, np.array(values) * scale, rcond=None)[0]
    error = math.sqrt(np.linalg.inv(design.T @ design)[0, 0])
    assert abs(solution[0]) < 3 * error
    assert solution[1] == pytest.approx(8 + 8 * 9 / 4, rel=0.1)


def test_extrapolated_frechet_removes_most_of_the_bias(rng: np.random.Generator) -> None:
    reference = Moments.exact(np.zeros(8), np.eye(8))
    x = rng.standard_normal((2000, 8))
    plain = frechet_distance(Moments.of(x), reference)
    extrapolated = frechet_infinity(x, reference)
    assert abs(extrapolated.value) < 0.5 * plain
    with pytest.raises(ValueError, match="too few to extrapolate"):
        frechet_infinity(x[:8], reference)


def test_kernel_distance_in_one_dimension_has_its_closed_form(rng: np.random.Generator) -> None:
    n = 2000
    x, y = rng.standard_normal((n, 1)), rng.standard_normal((n, 1)) + 1
    # (1 + xy)^3 = 1 + 3xy + 3x^2y^2 + x^3y^3: the unbiased estimate is quadratic in the raw moments.
    whole = kernel_distance(x, y, block_size=n).value
    assert whole == pytest.approx(22, abs=4)
    sums = [[(v**k).sum() for k in (1, 2, 3)] for v in (x, y)]
    squares = [[(v ** (2 * k)).sum() for k in (1, 2, 3)] for v in (x, y)]
    expected = sum(
        c * sum((sums[s][k] ** 2 - squares[s][k]) / (n * (n - 1)) for s in (0, 1))
        - c * 2 * sums[0][k] * sums[1][k] / n**2
        for k, c in enumerate((3, 3, 1))
    )
    assert whole == pytest.approx(expected, rel=1e-10)


def test_kernel_distance_of_one_law_is_zero_on_average_and_may_be_negative(rng: np.random.Generator) -> None:
    values = [
        kernel_distance(rng.standard_normal((60, 4)), rng.standard_normal((80, 4)), block_size=80).value
        for _ in range(200)
    ]
    assert min(values) < 0
    assert abs(np.mean(values)) < 4 * np.std(values) / math.sqrt(len(values))


def test_kernel_distance_is_repeatable_and_blocks_have_spread(rng: np.random.Generator) -> None:
    x, y = rng.standard_normal((300, 3)), rng.standard_normal((300, 3)) + 0.5
    first = kernel_distance(x, y, blocks=20, block_size=100, seed=3)
    assert first == kernel_distance(x, y, blocks=20, block_size=100, seed=3)
    assert first.spread > 0
    with pytest.raises(ValueError, match="at least 2 samples"):
        kernel_distance(x[:1], y)
    with pytest.raises(ValueError, match="3 and 2 columns"):
        kernel_distance(x, y[:, :2])


def test_gaussian_kernel_distance_has_its_closed_form(rng: np.random.Generator) -> None:
    expected = 2 / math.sqrt(3) * (1 - math.exp(-1 / 6))
    assert expected == pytest.approx(0.1772676, abs=1e-7)
    values = [rbf_distance(rng.standard_normal((300, 1)), rng.standard_normal((200, 1)) + 1, [1.0]) for _ in range(60)]
    assert abs(np.mean(values) - expected) < 4 * np.std(values) / math.sqrt(60)
    x, y = rng.standard_normal((2, 50, 3))
    assert rbf_distance(x, y, [1.0, 2.0]) == pytest.approx(
        rbf_distance(x, y, [1.0]) + rbf_distance(x, y, [2.0]), rel=1e-12
    )


def test_one_dimensional_wasserstein_of_unequal_counts_is_exact(rng: np.random.Generator) -> None:
    x, y = rng.standard_normal((6, 2)), rng.standard_normal((4, 2))
    # 12 = lcm(6, 4): repeating every point makes both sides equally many.
    expected = wasserstein_1d(np.repeat(x, 2, axis=0), np.repeat(y, 3, axis=0))
    np.testing.assert_allclose(wasserstein_1d(x, y), expected, rtol=1e-12)
    assert wasserstein_1d(np.array([[0.0], [1.0]]), np.array([[3.0]]))[0] == pytest.approx((9 + 4) / 2)


def test_finite_sample_wasserstein_of_one_law(rng: np.random.Generator) -> None:
    values = [wasserstein_1d(*rng.standard_normal((2, 1000, 1)))[0] for _ in range(200)]
    assert np.mean(values) == pytest.approx(0.0062, abs=4 * np.std(values) / math.sqrt(200) + 3e-4)


def test_sliced_wasserstein_of_a_shift(rng: np.random.Generator) -> None:
    x, delta = rng.standard_normal((400, 10)), np.linspace(-1, 2, 10)
    expected = delta @ delta / 10
    directions = 4000
    value = sliced_wasserstein(x, x + delta, directions=directions)
    assert value == pytest.approx(expected, abs=4 * math.sqrt(2 / directions) * expected)
    assert value == sliced_wasserstein(x, x + delta, directions=directions)
    assert value != sliced_wasserstein(x, x + delta, directions=directions, seed=1)


class _Flat(torch.nn.Module):
    """Images as their pixels: a feature extractor for torchmetrics."""

    num_features = 12

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.double().flatten(1) / 255


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save")
def test_distances_agree_with_torchmetrics() -> None:
    fid, kid = (pytest.importorskip(f"torchmetrics.image.{name}") for name in ("fid", "kid"))
    generator = torch.Generator().manual_seed(3)
    real = torch.randint(0, 256, (300, 3, 2, 2), generator=generator, dtype=torch.uint8)
    fake = (real.roll(1, 0) * 0.8).to(torch.uint8)[:200]
    frechet = fid.FrechetInceptionDistance(feature=_Flat()).set_dtype(torch.float64)
    kernel = kid.KernelInceptionDistance(feature=_Flat(), subsets=1, subset_size=200).set_dtype(torch.float64)
    for metric in (frechet, kernel):
        metric.update(real[:200], real=True)
        metric.update(fake, real=False)
    x, y = (_Flat()(images).numpy() for images in (fake, real[:200]))
    ours = frechet_distance(Moments.of(x), Moments.of(y))
    assert ours == pytest.approx(float(frechet.compute()), rel=1e-5)
    assert kernel_distance(x, y).value == pytest.approx(float(kernel.compute()[0]), rel=1e-5)


def test_neighbour_scores_of_identical_and_of_distant_sets(rng: np.random.Generator) -> None:
    x = rng.standard_normal((200, 3))
    assert tuple(precision_recall(x, x)) == (1.0, 1.0, 1.0, 1.0)
    assert tuple(precision_recall(x + 100, x)) == (0.0, 0.0, 0.0, 0.0)


def test_neighbour_scores_of_one_law(rng: np.random.Generator) -> None:
    scores = precision_recall(rng.standard_normal((2000, 2)), rng.standard_normal((2000, 2)))
    assert scores.density == pytest.approx(1, abs=0.05)
    assert scores.coverage == pytest.approx(1 - 2**-5, abs=0.02)


def test_recall_sees_a_missing_mode_and_precision_does_not(rng: np.random.Generator) -> None:
    real = np.concatenate([rng.standard_normal((200, 2)), rng.standard_normal((200, 2)) + 50])
    scores = precision_recall(rng.standard_normal((200, 2)), real)
    assert scores.precision > 0.9
    assert scores.recall < 0.55


def test_neighbour_radius_excludes_the_point_itself() -> None:
    x = np.array([[0.0], [1.0], [3.0], [7.0]])
    np.testing.assert_allclose(radii(x, 1), [1, 1, 2, 4])
    np.testing.assert_allclose(radii(x, 2), [3, 2, 3, 6])
    with pytest.raises(ValueError, match=r"k must lie in 1\.\.\.3"):
        radii(x, 4)
