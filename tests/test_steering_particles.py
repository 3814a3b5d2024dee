"""FK steering and twisted diffusion on Gaussian chains whose kernels are exact, and what odd rewards do."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pathline.samplers import ClassifierFree, Table, build_table, run
from pathline.samplers.smc import ExtinctionError, Policy
from pathline.samplers.steering import (
    POTENTIALS,
    DataReward,
    SteeredResult,
    Steering,
    Twisted,
    das_temperatures,
    steered_sample,
)
from support.ranks import in_threads
from support.steering import VP, exact_chain, standard_normal, vp_nodes

CHAIN = exact_chain(50)
HALF = exact_chain(25)
SHORT = exact_chain(12)
ANCESTRAL = build_table("ddim", vp_nodes(12), eta=1.0)
Y, SPREAD = 2.0, 0.25


def first(x: Tensor) -> Tensor:
    return x[:, 0]


def drawn(steering: Any, count: int, seed: int = 0, table: Table = CHAIN, **given: Any) -> SteeredResult:
    return steered_sample(standard_normal, steering, (1,), count, method=table, seed=seed, dtype=torch.float64, **given)


def mean_and_error(values: list[float]) -> tuple[float, float]:
    return float(torch.tensor(values).mean()), float(torch.tensor(values).std()) / math.sqrt(len(values))


def observed(data: Tensor, level: Any, posterior: bool = True) -> Tensor:
    """log N(y; data, spread) widened by what is not known of the data yet, for N(0, 1) data."""
    variance = SPREAD + (1.0 - level.signal**2 if posterior else 0.0)
    return -0.5 * (first(data) - Y) ** 2 / variance - 0.5 * math.log(2 * math.pi * variance)


def test_more_particles_come_closer_to_the_tilted_law() -> None:
    """Card 3.6.1: E[mean] of N(0, 1) tilted by e^x, whose mean is 1."""
    published = {4: (0.685, 0.010), 64: (0.970, 0.012), 1024: (0.989, 0.011)}
    found = {}
    for count, runs in ((4, 30), (64, 8), (1024, 5)):
        steering = Steering(first, Policy(ess=1.0), checkpoints=10)
        means = [float(drawn(steering, count, seed).mean(first)) for seed in range(runs)]
        mean, error = mean_and_error(means)
        expected, own = published[count]
        assert abs(mean - expected) < 4 * math.hypot(error, own), count
        found[count] = mean
    assert found[4] < found[64]
    assert abs(found[1024] - 1.0) < 0.06


@pytest.mark.slow
def test_the_tilted_law_is_reached_monotonically() -> None:
    means = []
    for count, runs in ((4, 600), (16, 300), (64, 100), (1024, 30)):
        steering = Steering(first, Policy(ess=1.0), checkpoints=10)
        means.append(mean_and_error([float(drawn(steering, count, seed).mean(first)) for seed in range(runs)])[0])
    assert means == sorted(means)
    assert abs(means[-1] - 1.0) < 0.03
    assert [abs(m - p) < 0.06 for m, p in zip(means, (0.685, 0.913, 0.970, 0.989), strict=True)] == [True] * 4


@pytest.mark.parametrize("potential", POTENTIALS)
@pytest.mark.parametrize("checkpoints", [1, 3, [2, 7], None])
def test_weights_of_a_path_telescope(potential: str, checkpoints: Any) -> None:
    """Card 3.6.2: without resampling, exactly scale·(r(result) − least) whatever the potential."""
    steering = Steering(first, Policy(ess=0.0), scale=1.7, potential=potential, least=-0.4, checkpoints=checkpoints)
    result = drawn(steering, 5, table=SHORT)
    torch.testing.assert_close(result.log_weights, 1.7 * (result.rewards + 0.4), rtol=1e-12, atol=1e-12)
    calls = {1: 10, 3: 3}.get(checkpoints, 2) if isinstance(checkpoints, int) else len(checkpoints or ())
    assert result.reward_calls == 5 * (calls + 1)


@pytest.mark.parametrize("potential", POTENTIALS)
def test_every_potential_has_the_same_target(potential: str) -> None:
    steering = Steering(first, Policy(ess=0.9), scale=0.7, potential=potential, checkpoints=[3, 7, 9])
    results = [drawn(steering, 200, seed, table=SHORT) for seed in range(12)]
    log_z, error = mean_and_error([math.exp(r.log_z) for r in results])
    assert abs(log_z - math.exp(0.7**2 / 2)) < 4 * error + 0.01
    mean, error = mean_and_error([float(r.mean(first)) for r in results])
    assert abs(mean - 0.7) < 4 * error + 0.02
    assert min(r.ancestors for r in results) < 200


def test_scale_0_is_the_method_itself_bit_by_bit() -> None:
    """Card 3.6.5, and the same for twisted particles."""
    start = drawn(Steering(first, scale=0.0), 8, table=ANCESTRAL)
    plain = run(ANCESTRAL, standard_normal, _start(8), seed=0)
    assert torch.equal(start.sample, plain)
    assert not start.log_weights.any()
    assert torch.equal(drawn(Twisted(first, scale=0.0), 8, table=ANCESTRAL).sample, plain)
    bootstrap = drawn(Twisted(first, Policy(ess=0.0), shift=False), 8, table=ANCESTRAL)
    assert torch.equal(bootstrap.sample, plain)
    assert (bootstrap.reward_calls, bootstrap.backward_passes) == (8 * 13, 0)


def _start(count: int) -> Tensor:
    from pathline.samplers.keyed_noise import START_NOISE, keyed_normal

    return keyed_normal((1,), 0, range(count), START_NOISE, dtype=torch.float64) * ANCESTRAL.start.noise


def test_twisting_samples_a_conjugate_posterior() -> None:
    """Card 3.6.3: posterior N(1.6, 0.2), log Z = −2.630510, final ESS/N 0.937."""
    results = [drawn(Twisted(DataReward(observed, takes_level=True)), 1000, seed) for seed in range(5)]
    mean, _ = mean_and_error([float(r.mean(first)) for r in results])
    assert abs(mean - 1.6) < 4 * 0.012 / math.sqrt(5)
    variance = sum(float(r.mean(lambda x: first(x) ** 2)) for r in results) / 5 - mean**2
    assert abs(variance - 0.2) < 4 * 0.009 / math.sqrt(5)
    log_z, _ = mean_and_error([r.log_z for r in results])
    assert abs(log_z + 2.630510) < 4 * 0.0075 / math.sqrt(5)
    assert abs(sum(r.trace[-1].ess for r in results) / 5000 - 0.937) < 0.006
    assert results[0].backward_passes == 1000 * 50
    assert results[0].reward_calls == 1000 * 51
    assert results[0].network_samples == 1000 * 50


def test_bootstrap_and_a_twist_that_is_too_narrow_are_noisier() -> None:
    """Card 3.6.3: sd of log Ẑ at N = 1000 is 0.0075 twisted, 0.064 bootstrap, 0.46 without the posterior's variance."""

    def spread(**given: Any) -> float:
        narrow = given.pop("narrow", False)
        twist = DataReward(lambda data, level: observed(data, level, not narrow), takes_level=True)
        return float(
            torch.tensor([drawn(Twisted(twist, **given), 250, seed, table=HALF).log_z for seed in range(7)]).std()
        )

    twisted, bootstrap, narrow = spread(), spread(shift=False), spread(narrow=True)
    assert twisted < 0.4 * bootstrap < bootstrap < 0.5 * narrow


def test_tempered_twists_keep_the_target() -> None:
    steps = len(SHORT.rows)
    temperatures = das_temperatures(steps, gamma=0.15)
    assert temperatures[0] == 0.0
    assert temperatures[1] == pytest.approx(0.15)
    assert temperatures[-2:] == [1.0, 1.0]
    assert das_temperatures(100)[86] < 1.0 == das_temperatures(100)[87]
    twist = Twisted(lambda x: 0.7 * first(x), temperatures=temperatures)
    values = [math.exp(drawn(twist, 300, seed, table=SHORT).log_z) for seed in range(10)]
    mean, error = mean_and_error(values)
    assert abs(mean - math.exp(0.245)) < 4 * error
    with pytest.raises(ValueError, match="13 are needed"):
        drawn(Twisted(first, temperatures=temperatures[1:]), 2, table=SHORT)


def test_adaptive_temperatures_rise_to_1_at_the_effective_size_asked_for() -> None:
    def twist(**given: Any) -> Twisted:
        return Twisted(DataReward(lambda x: 3.0 * first(x)), Policy(ess=0.8), **given)

    tempered = twist(temperatures="adaptive")
    found = [drawn(tempered, 400, seed, table=SHORT) for seed in range(6)]
    steep = Twisted(DataReward(lambda x: 300.0 * first(x)), Policy(ess=0.8), temperatures="adaptive")
    drawn(steep, 400, table=SHORT)
    factors = steep._factors
    assert factors[0] == 0.0 < factors[1] < factors[2] < 1.0 == factors[-1]
    assert factors == sorted(factors)
    mean, error = mean_and_error([float(r.mean(first)) for r in found])
    assert abs(mean - 3.0) < 4 * error + 0.1
    for wrong in ({"temperatures": "warm"}, {"temperatures": "adaptive", "policy": Policy(ess=0.0)}):
        with pytest.raises(ValueError, match="adaptive"):
            Twisted(first, **wrong)


@pytest.mark.parametrize("make", [lambda **k: Steering(first, Policy(ess=0.9), **k), lambda **k: Twisted(first, **k)])
def test_particles_on_several_processes_are_those_of_one(make: Any) -> None:
    alone = drawn(make(), 24, table=SHORT)
    parts = in_threads(3, lambda ranks: drawn(make(ranks=ranks), 24, table=SHORT))
    torch.testing.assert_close(torch.cat([p.sample for p in parts]), alone.sample, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.cat([p.rewards for p in parts]), alone.rewards, rtol=1e-12, atol=1e-12)
    assert all(p.log_z == pytest.approx(alone.log_z, abs=1e-12) for p in parts)


def test_chunks_and_guidance_inside_change_nothing() -> None:
    whole = drawn(Twisted(DataReward(first)), 7, table=ANCESTRAL)
    parts = drawn(Twisted(DataReward(first, chunk_size=2), chunk_size=3), 7, table=ANCESTRAL, chunk_size=5)
    torch.testing.assert_close(parts.sample, whole.sample, rtol=1e-12, atol=1e-12)
    assert parts.network_samples == whole.network_samples == 7 * 12
    assert parts.backward_passes == whole.backward_passes == 7 * 12

    def shifted(x: Tensor, t: Tensor, by: float = 0.3) -> Tensor:
        return standard_normal(x, t) + by

    inner = Twisted(first, inner=ClassifierFree(1.0, {"by": 0.0}))
    given: dict[str, Any] = {"method": ANCESTRAL, "dtype": torch.float64}
    found = steered_sample(shifted, inner, (1,), 4, **given)
    torch.testing.assert_close(found.sample, steered_sample(shifted, Twisted(first), (1,), 4, **given).sample)
    with pytest.raises(ValueError, match="inner guidance must see whole"):
        Twisted(first, inner=ClassifierFree(1.0, {}), chunk_size=2)


def test_history_moves_with_the_particles() -> None:
    """A multistep method's past outputs are gathered too: particles that descend from one go on as it would."""
    table = build_table("dpm++-sde", vp_nodes(10), order=2)
    keep = torch.zeros(4, dtype=torch.float64)
    keep[2] = 1000.0
    seen = [0]

    def reward(data: Tensor) -> Tensor:
        seen[0] += 1
        return keep if seen[0] == 5 else torch.zeros(4, dtype=torch.float64)

    def silent(row: int, slot: int, like: Tensor) -> Tensor:
        return torch.zeros_like(like)

    start = _start(4)
    steering = Steering(reward, potential="plain")
    steered = run(table, standard_normal, start, hooks=[steering], noise=silent)
    alone = run(table, standard_normal, start[2:3], noise=silent)
    torch.testing.assert_close(steered, alone.expand(4, 1), rtol=1e-12, atol=0.0)
    assert steering.population.genealogy.unique == 1


def test_forbidden_samples_nan_and_extinction() -> None:
    def positive(data: Tensor) -> Tensor:
        return torch.where(first(data) > 0.0, 0.0, -torch.inf)

    for potential in POTENTIALS:
        result = drawn(Steering(positive, potential=potential, checkpoints=3), 64, table=SHORT)
        assert bool((result.sample[result.weights > 0] > 0).all())
    result = drawn(Steering(positive, checkpoints=None), 64, table=SHORT)
    assert abs(result.log_z - math.log(0.5)) < 4 * math.sqrt(1 / 64)
    with pytest.warns(UserWarning, match="2 rewards are NaN"):
        drawn(Steering(lambda x: torch.tensor([0.0, math.nan, 0.0, math.nan]), checkpoints=None), 4, table=SHORT)
    never = Steering(lambda x: torch.full((len(x),), -math.inf), checkpoints=6)
    with pytest.warns(UserWarning, match="all 4 particles have weight 0"):
        dead = drawn(never, 4, table=SHORT)
    assert dead.log_z == -math.inf
    assert bool(torch.isfinite(dead.sample).all())
    with pytest.raises(ExtinctionError):
        drawn(Steering(never.reward, Policy(extinct="raise")), 4, table=SHORT)
    with pytest.warns(UserWarning, match="one particle"):
        assert len(drawn(Steering(first), 1, table=SHORT).sample) == 1
    with pytest.warns(UserWarning, match="draws no noise"):
        drawn(Steering(first), 2, table=build_table("ddim", vp_nodes(4)))


def test_what_cannot_be_is_refused() -> None:
    for wrong, message in (
        (lambda: Steering(first, potential="least"), "potential"),
        (lambda: Steering(first, scale=math.inf), "must be finite"),
        (lambda: drawn(Steering(first, checkpoints=0), 2), "checkpoints=0"),
        (lambda: drawn(Steering(first, checkpoints=[3, 99]), 2), r"checkpoints=\[99\]"),
        (lambda: drawn(Steering(lambda x: x), 2), "one number for each of 2"),
        (lambda: drawn(Twisted(first), 2, guidance=ClassifierFree(1.0, {})), "inner"),
        (lambda: drawn(Twisted(first), 2, table=build_table("heun", vp_nodes(4))), "draws no noise"),
        (lambda: drawn(Twisted(first), 2, table=build_table("dpm++-sde-single", vp_nodes(4))), "one whole step"),
        (lambda: drawn(Steering(first), 0), "count=0"),
        (lambda: DataReward(first, chunk_size=0), "chunk_size=0"),
        (lambda: das_temperatures(0), "steps=0"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()


def test_the_path_of_these_tests_is_the_cards() -> None:
    assert float(VP.signal(0.5)) == pytest.approx(0.2811829, abs=1e-7)


def test_a_window_weighs_only_the_rows_inside_and_the_end() -> None:
    """Path times of 12 equal steps of log-SNR; hooks and guidances given the wrong way round are refused."""
    clocks = [row.level.clock for row in ANCESTRAL.rows]
    low, high = 0.5 * (clocks[3] + clocks[4]), 0.5 * (clocks[7] + clocks[8])
    found = drawn(Steering(first, window=(low, high)), 8, table=ANCESTRAL)
    assert [here.row for here in found.trace] == [4, 5, 6, 7, 11]
    x = torch.zeros(2, 1)
    with pytest.raises(ValueError, match=r"pass it as guidance=Twisted"):
        run(ANCESTRAL, standard_normal, x, hooks=[Twisted(first)])
    with pytest.raises(ValueError, match=r"pass it as hooks=\[Steering"):
        run(ANCESTRAL, standard_normal, x, guidance=Steering(first))
    with pytest.raises(ValueError, match="second particle hook"):
        run(ANCESTRAL, standard_normal, x, hooks=[Steering(first), Steering(first)])
