"""Resampling, weights, populations: unbiasedness, variances in closed form, and every degenerate case."""

import math
import warnings

import numpy as np
import pytest
import torch

from pathline.samplers.smc import (
    SCHEMES,
    ExtinctionError,
    Policy,
    Population,
    conditional_effective_size,
    effective_size,
    inverse_largest,
    log_mean_exp,
    next_temperature,
    normalised,
    perplexity,
    resample,
)

WEIGHTS = np.array([0.1, 0.15, 0.2, 0.25, 0.3])
VARIANCES = {
    "multinomial": [0.9, 1.275, 1.6, 1.875, 2.1],
    "stratified": [0.0, 0.25, 0.5, 0.25, 0.0],
    "systematic": [0.0, 0.25, 0.0, 0.25, 0.0],
    "residual": [0.0, 0.25, 0.0, 0.25, 0.0],
    "ssp": [0.0, 0.25, 0.0, 0.25, 0.0],
}


def wrong(weights: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Copies of the heaviest particles only: what a biased scheme does to an estimate."""
    return np.argsort(-weights)[np.arange(count) % max(1, count // 2)]


def copies(scheme, weights, count, draws):
    found = [np.bincount(resample(weights, count, scheme=scheme, step=k), minlength=len(weights)) for k in range(draws)]
    return np.array(found, dtype=float)


@pytest.mark.parametrize("scheme", VARIANCES)
def test_offspring_have_the_mean_and_variance_of_theory(scheme: str) -> None:
    n = copies(scheme, WEIGHTS, 10, 1500)
    expected = 10 * WEIGHTS
    assert (n.sum(1) == 10).all()
    spread = np.array(VARIANCES[scheme])
    assert np.abs(n.mean(0) - expected).max() < 5 * math.sqrt(spread.max() / 1500) + 1e-12
    assert np.abs(n.var(0) - spread).max() < 0.15 * max(0.3, spread.max())
    if scheme in ("systematic", "ssp"):
        assert ((n >= np.floor(expected)) & (n <= np.ceil(expected))).all()


def test_killing_is_unbiased_and_a_wrong_scheme_is_caught() -> None:
    n = copies("killing", WEIGHTS, 5, 1500)
    assert np.abs(n.mean(0) - 5 * WEIGHTS).max() < 0.1
    assert np.abs(copies(wrong, WEIGHTS, 5, 50).mean(0) - 5 * WEIGHTS).max() > 0.5
    with pytest.raises(ValueError, match="killing"):
        resample(WEIGHTS, 4, scheme="killing")


@pytest.mark.parametrize("scheme", ["systematic", "ssp", "stratified", "residual", "killing"])
def test_equal_weights_keep_everyone_in_place(scheme: str) -> None:
    for n in (1, 2, 7, 1000):
        assert (resample(np.full(n, 1 / n), scheme=scheme, seed=n) == np.arange(n)).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_heavy_particle_takes_all_places(scheme: str) -> None:
    weights = np.zeros(6)
    weights[4] = 2.0
    assert (resample(weights, scheme=scheme) == 4).all()


@pytest.mark.parametrize("scheme", ["multinomial", "systematic", "stratified", "residual"])
def test_a_million_single_precision_weights_never_point_beyond_the_end(scheme: str) -> None:
    weights = torch.randn(1_000_000, generator=torch.Generator().manual_seed(3)).softmax(0).numpy()
    chosen = resample(weights, scheme=scheme)
    assert chosen.min() >= 0
    assert chosen.max() < 1_000_000
    assert (weights[chosen] > 0).all()


def test_ssp_of_random_weights_stays_within_one_of_the_mean() -> None:
    rng = np.random.default_rng(0)
    for k in range(200):
        weights = rng.exponential(size=rng.integers(1, 40)) ** 3
        count = int(rng.integers(1, 60))
        n = np.bincount(resample(weights, count, scheme="ssp", step=k), minlength=len(weights))
        expected = count * weights / weights.sum()
        assert n.sum() == count
        assert (np.abs(n - expected) < 1 + 1e-9).all()


def test_the_same_key_gives_the_same_indices_and_impossible_weights_are_refused() -> None:
    first = resample(WEIGHTS, seed=2**63 + 5, step=3)
    assert (first == resample(WEIGHTS, seed=2**63 + 5, step=3)).all()
    for bad in ([], [0.0, 0.0], [-1.0, 2.0], [np.nan, 1.0], [np.inf, 1.0]):
        with pytest.raises(ValueError, match="weights"):
            resample(np.array(bad))
    with pytest.raises(ValueError, match="did you mean 'systematic'"):
        resample(WEIGHTS, scheme="systematik")


def test_effective_sizes_and_means_of_log_weights() -> None:
    lw = torch.tensor([0.0, 0.0, -torch.inf, -torch.inf])
    assert effective_size(lw) == pytest.approx(2.0)
    assert float(log_mean_exp(lw)) == pytest.approx(math.log(0.5))
    assert effective_size(torch.full((3,), -torch.inf)) == 0.0
    assert normalised(torch.full((4,), -torch.inf)).tolist() == [0.25] * 4
    shifted = torch.tensor([1000.0, 1001.0])
    assert effective_size(shifted) == pytest.approx(float(effective_size(shifted - 1000)))
    uneven = torch.tensor([0.7, 0.1, 0.1, 0.1]).log()
    sizes = [float(size(uneven)) for size in (inverse_largest, effective_size, perplexity)]
    assert sizes == pytest.approx([1 / 0.7, 1 / 0.52, math.exp(-0.7 * math.log(0.7) - 0.3 * math.log(0.1))])
    for size in (perplexity, inverse_largest):
        assert size(torch.zeros(5)) == pytest.approx(5.0)
        assert size(torch.full((3,), -torch.inf)) == 0.0
    assert Population(4, Policy(criterion="largest", ess=0.45)).checkpoint(uneven, 0)[1] is not None
    assert Population(4, Policy(criterion="perplexity", ess=0.45)).checkpoint(uneven, 0)[1] is None
    assert conditional_effective_size(torch.tensor([0.0, -5.0]), torch.tensor([2.0, 2.0])) == pytest.approx(2.0)


def test_tempering_meets_the_effective_size_and_stops_at_one() -> None:
    loglik = -torch.linspace(0, 60, 200)
    step = next_temperature(loglik, 0.0, ess=0.5)
    assert 0 < step < 1
    assert float(effective_size(step * loglik)) == pytest.approx(100, rel=1e-4)
    assert next_temperature(loglik * 1e-6, 0.3) == 1.0
    with pytest.raises(ValueError, match="log_likelihood"):
        next_temperature(torch.full((3,), -torch.inf), 0.0)
    barred = torch.cat([torch.full((150,), -torch.inf), torch.zeros(50)])
    assert next_temperature(barred, 0.0) == 1.0  # no step keeps more than 50 alive


def anneal(count: int, seed: int, scheme="systematic", ess: float = 0.5) -> tuple[float, float]:
    """N(0, 1) to exp(−(x − 1)²/0.5) in 20 temperatures (card 2.5.2): log Ẑ and its error bar."""
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.standard_normal(count))
    lw = torch.zeros(count, dtype=torch.float64)
    population = Population(count, Policy(resampler=scheme, ess=ess), seed)
    for k in range(1, 21):
        lw = lw + (0.5 * x**2 - 2 * (x - 1) ** 2) / 20
        lw, parents = population.checkpoint(lw, k, last=k == 20)
        x = x if parents is None else x[torch.from_numpy(parents)]
        precision = 1 + 3 * k / 20
        mean = 4 * k / 20 / precision
        x = mean + 0.7 * (x - mean) + math.sqrt(0.51 / precision) * torch.from_numpy(rng.standard_normal(count))
    return population.log_z(lw) + 0.5 * math.log(2 * math.pi), population.log_z_error(lw)


@pytest.mark.slow
def test_estimates_of_z_are_unbiased_and_the_error_bar_is_right() -> None:
    exact = math.sqrt(math.pi / 2)
    variances = []
    for count, runs in ((16, 100), (64, 50)):
        found = np.array([anneal(count, seed) for seed in range(runs)])
        z = np.exp(found[:, 0])
        assert abs(z.mean() - exact) < 4 * z.std() / math.sqrt(runs)
        variances.append(found[:, 0].var())
        assert np.square(found[:, 1]).mean() == pytest.approx(variances[-1], rel=0.35)
    assert 2.5 < variances[0] / variances[1] < 6.0
    biased = np.exp([anneal(16, seed, wrong, 1.0)[0] for seed in range(16)])
    assert abs(biased.mean() - exact) > 4 * biased.std() / math.sqrt(16)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_estimates_of_z_are_unbiased_with_every_scheme_at_full_length(scheme: str) -> None:
    exact = math.sqrt(math.pi / 2)
    for ess in (0.5, 1.0):
        z = np.exp([anneal(64, seed, scheme, ess)[0] for seed in range(400)])
        assert abs(z.mean() - exact) < 4 * z.std() / math.sqrt(len(z))


def test_degenerate_weights_have_a_defined_meaning_and_a_warning() -> None:
    population = Population(4, Policy(ess=1.0))
    with pytest.warns(UserWarning, match="1 of 4 weights are NaN at row 7"):
        lw, parents = population.checkpoint(torch.tensor([math.nan, 0.0, 0.0, 0.0]), 7)
    assert parents is not None
    assert 0 not in parents
    assert lw.tolist() == [0.0] * 4
    assert population.log_z(lw) == pytest.approx(math.log(0.75))
    with pytest.warns(UserWarning, match="all 4 particles have weight 0 at row 8"):
        lw, parents = population.checkpoint(torch.full((4,), -torch.inf), 8)
    assert parents is None
    assert lw.tolist() == [0.0] * 4
    assert population.log_z(lw) == -math.inf
    assert population.trace[-1].resampled is False
    with pytest.raises(ExtinctionError, match="row 0"):
        Population(2, Policy(extinct="raise")).checkpoint(torch.full((2,), -torch.inf), 0)
    with pytest.raises(ValueError, match=r"\+inf"):
        Population(2).checkpoint(torch.tensor([0.0, torch.inf]), 0)


def test_one_particle_is_warned_of_and_never_resampled() -> None:
    with pytest.warns(UserWarning, match="one particle"):
        population = Population(1, Policy(ess=1.0, last=True))
    lw, parents = population.checkpoint(torch.tensor([-3.0]), 0, last=True)
    assert parents is None
    assert population.log_z(lw) == -3.0
    assert math.isnan(population.log_z_error(lw))


def test_the_genealogy_knows_lines_and_diversity() -> None:
    population = Population(3, Policy(ess=1.0))
    _, first = population.checkpoint(torch.tensor([0.0, -torch.inf, -torch.inf]), 0)
    assert first.tolist() == [0, 0, 0]
    assert population.genealogy.unique == 1
    assert population.genealogy.line(2) == [0, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isnan(population.log_z_error(torch.zeros(3)))
    for bad in ({"ess": 1.5}, {"every": 0}, {"extinct": "ignore"}, {"resampler": "none"}, {"criterion": "es"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Policy(**bad)
