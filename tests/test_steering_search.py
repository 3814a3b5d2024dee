"""Selection, search over paths and Rollover Budget Forcing, and flow networks as stochastic samplers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pathline.interpolants import Gaussian, LinearPath, transfer_model
from pathline.samplers import Hook, build_table, run
from pathline.samplers.guidance.protocol import row_step
from pathline.samplers.nodes import points_at
from pathline.samplers.steering import (
    DIFFUSIONS,
    Chain,
    Child,
    DataReward,
    Selection,
    SteeredResult,
    as_diffusion,
    best_of_n_divergence,
    diffusion_epsilon,
    first_quota,
    noisy_flow_table,
    rollover_budget_forcing,
    rounded_grid,
    search_table,
    steered_sample,
)
from support.steering import VP, exact_chain, standard_normal, vp_nodes

MEAN, VARIANCE = 1.5, 0.25
FLOW = Gaussian([MEAN], [[VARIANCE]]).as_model(LinearPath(), "velocity")
CHAIN = exact_chain(12)
ANCESTRAL = build_table("ddim", vp_nodes(10), eta=1.0)


def first(x: Tensor) -> Tensor:
    return x[:, 0]


def chosen(selection: Selection, count: int, seed: int = 0, table: Any = CHAIN, **given: Any) -> SteeredResult:
    return steered_sample(
        standard_normal, selection, (1,), count, method=table, seed=seed, dtype=torch.float64, **given
    )


def test_best_of_n_is_the_largest_of_n_normals() -> None:
    """Card 3.6.4, and the divergence log N − (N − 1)/N."""
    for n, expected in ((2, 0.5642), (16, 1.7660)):
        found = chosen(Selection(first, n, checkpoints=None), 900)
        assert found.network_samples == 900 * n * 12
        assert found.reward_calls == 900 * n
        error = float(found.sample.std()) / math.sqrt(900)
        assert abs(float(found.sample.mean()) - expected) < 4 * error, n
        torch.testing.assert_close(found.rewards, first(found.sample))
    assert best_of_n_divergence(1) == 0.0
    assert best_of_n_divergence(4) == pytest.approx(math.log(4) - 0.75)


def test_one_candidate_is_the_method_itself_bit_by_bit() -> None:
    """Card 3.6.5."""
    found = chosen(Selection(first, 1, temperature=0.5), 6, table=ANCESTRAL)
    other = chosen(Selection(lambda x: -first(x), 1), 6, table=ANCESTRAL)
    assert torch.equal(found.sample, other.sample)


def test_svdd_at_each_step_beats_code_beats_the_method() -> None:
    greedy = chosen(Selection(first, 4), 300, shared_start=True)
    blocks = chosen(Selection(first, 4, checkpoints=4), 300, shared_start=True)
    loose = chosen(Selection(first, 4, temperature=1.0), 300, shared_start=True)
    best = chosen(Selection(first, 4, checkpoints=None), 300)
    means = [float(r.sample.mean()) for r in (loose, best, blocks, greedy)]
    assert means == sorted(means)
    assert means[0] > 0.3
    assert greedy.reward_calls == 1200 * 11
    assert blocks.reward_calls == 1200 * 3


def test_soft_choices_have_their_probabilities() -> None:
    values = torch.tensor([0.0, 1.0, 2.0, -torch.inf], dtype=torch.float64)
    kept = torch.zeros(4)

    class Marked(Hook):
        def before_model(self, state: Any, query: Tensor) -> None:
            state.extras["candidate"] = torch.arange(len(state.samples)) % 4

        def after_row(self, state: Any) -> None:
            if "final_reward" in state.extras:
                kept.add_(torch.bincount(state.extras["candidate"][::4], minlength=4))

    table = build_table("ddim", vp_nodes(1), eta=1.0)
    soft = Selection(lambda x: values.repeat(len(x) // 4), 4, checkpoints=None, temperature=2.0)
    start = torch.zeros(4 * 20000, 1)
    run(table, standard_normal, start, hooks=[Marked(), soft, Marked()])
    expected = torch.softmax(values / 2.0, 0)
    error = (expected * (1 - expected) / 20000).sqrt()
    assert bool(((kept / 20000 - expected).abs() <= 4 * error + 1e-12).all())


def test_hopeless_groups_go_on_and_survivors_are_copied_in_turn() -> None:
    def reward(data: Tensor) -> Tensor:
        return torch.tensor([-math.inf] * 3 + [0.0, 2.0, 1.0], dtype=torch.float64)

    plain = chosen(Selection(first, 1), 6, table=CHAIN).sample
    with pytest.warns(UserWarning, match="1 groups"):
        found = chosen(Selection(reward, 3, keep=2, checkpoints=None), 2)
    torch.testing.assert_close(found.sample, plain[[0, 1, 4, 5]])
    with pytest.raises(ValueError, match="groups of 4"):
        run(CHAIN, standard_normal, torch.zeros(6, 1), hooks=[Selection(first, 4)])
    for wrong in ({"candidates": 0}, {"candidates": 2, "keep": 3}, {"candidates": 2, "temperature": -1.0}):
        with pytest.raises(ValueError, match="is not possible"):
            Selection(first, **wrong)


def test_search_over_paths_walks_and_finds() -> None:
    """Card 3.5: from 120 of 1000, 780 up and 810 down are ⌈120/30⌉ = 4 rounds."""
    table, rows = search_table(vp_nodes(100), begin=88, back=78, forward=81)
    assert len(rows) == 4
    assert table.evaluations == 88 + 4 + 3 * 81 + 81
    levels = [row.level.noise for row in table.rows]
    assert all(levels[k + 1] > levels[k] for k in rows)
    short, places = search_table(vp_nodes(20), begin=14, back=10, forward=13)
    found = chosen(Selection(first, 8, keep=2, checkpoints=places), 60, table=short)
    assert found.sample.shape == (120, 1)
    best = found.rewards.reshape(60, 2).max(1).values
    alone = chosen(Selection(first, 8, checkpoints=None), 60, table=build_table("ddim", vp_nodes(20)))
    assert float(best.mean()) > float(alone.rewards.mean())
    for wrong in ({"begin": 20}, {"back": 15}, {"forward": 10}):
        with pytest.raises(ValueError, match="is not possible"):
            search_table(vp_nodes(20), **{"begin": 14, "back": 10, "forward": 13, **wrong})


def offered(chain: Chain, reward: float) -> bool:
    return chain.offer(Child(torch.zeros(1), torch.zeros(1), reward)) is not None


def test_rising_rewards_roll_the_whole_quota_over() -> None:
    """Card 4.4.4 (i)."""
    chain = Chain(quota0=5, last_step=8, best=0.0)
    quotas = []
    for k in range(8):
        assert offered(chain, 1.0 + k)
        quotas.append(chain.quota)
    assert chain.step == 8
    assert quotas == [5 + 4 * (k + 1) for k in range(8)]  # each step uses one proposal and hands on the rest
    assert not offered(chain, 99.0)
    assert chain.best == 99.0


def test_flat_rewards_use_the_quota_of_every_step() -> None:
    """Cards 4.4.4 (ii) and 4.4.5."""
    chain = Chain(quota0=22, last_step=8, best=0.0)
    moves = [offered(chain, 0.0) for _ in range(8 * 22)]
    assert [k + 1 for k, moved in enumerate(moves) if moved] == [22 * (k + 1) for k in range(8)]
    assert first_quota(500, 10, 2, 25) == 22
    chain = Chain(quota0=4, last_step=8, best=0.0)
    for reward, moved in ((-3.0, False), (-1.0, False), (-2.0, False), (-5.0, True), (1.0, True), (0.0, False)):
        assert offered(chain, reward) == moved
    assert chain.quota == 4 + 3
    assert chain.best == 1.0


@pytest.mark.parametrize("budget", [60, 131, 200])
def test_rollover_stays_below_its_budget_and_is_counted(budget: int) -> None:
    reward, calls = DataReward(lambda x: 0.0 * first(x)), [0]

    def counted(x: Tensor, t: Tensor) -> Tensor:
        calls[0] += len(x)
        return standard_normal(x, t)

    found = rollover_budget_forcing(ANCESTRAL, counted, reward, (1,), budget=budget, chains=2, candidates=5)
    quota = first_quota(budget, 10, 2, 5)
    assert budget - 2 <= found.evaluations <= budget - 1
    assert found.evaluations == calls[0] == reward.calls == found.reward_calls == 10 + 2 * found.rounds
    assert found.steps == [min(8, found.rounds // quota)] * 2
    assert found.accepted[:2] == [(quota - 1, 0, 1), (quota - 1, 1, 1)]


def test_rollover_finds_more_than_as_many_whole_runs_and_repeats_itself() -> None:
    def reward(data: Tensor) -> Tensor:
        return -(data - 2.0).square().sum(1)

    def best(seed: int) -> tuple[float, float]:
        forced = rollover_budget_forcing(ANCESTRAL, standard_normal, reward, (2,), budget=200, candidates=5, seed=seed)
        whole = steered_sample(
            standard_normal, Selection(reward, 20, checkpoints=None), (2,), 1, method=ANCESTRAL, seed=seed
        )
        assert forced.reward == pytest.approx(float(reward(forced.sample[None])), abs=1e-5)
        return forced.reward, float(whole.rewards[0])

    seen = []
    kept = DataReward(lambda data: seen.append(reward(data)) or seen[-1])
    forced = rollover_budget_forcing(ANCESTRAL, standard_normal, kept, (2,), budget=200, candidates=5, seed=1)
    assert forced.reward == float(torch.cat(seen).double().max())  # nothing better was seen and thrown away
    with pytest.raises(ValueError, match="is \\+inf at row"):
        steered_sample(standard_normal, Selection(lambda data: first(data) * torch.inf, 2), (1,), 4, method=ANCESTRAL)
    pairs = [best(seed) for seed in range(5)]
    assert np.mean([p[0] for p in pairs]) > np.mean([p[1] for p in pairs])
    again = best(3)
    assert again == pairs[3]
    for table, message in (
        (build_table("ddim", vp_nodes(10)), "draws no noise"),
        (build_table("dpm++-sde", vp_nodes(10), order=2), "earlier rows"),
    ):
        with pytest.raises(ValueError, match=message):
            rollover_budget_forcing(table, standard_normal, reward, (2,))
    with pytest.raises(ValueError, match="at least 70 are needed"):
        rollover_budget_forcing(ANCESTRAL, standard_normal, reward, (2,), budget=69)


def test_a_flow_network_on_the_variance_preserving_path() -> None:
    """Card 4.4.1; the card's time runs the other way, and so does its velocity."""
    signal, noise, signal_rate, noise_rate = (float(c[0]) for c in points_at(VP, np.array([0.5])))
    assert (signal, noise) == (pytest.approx(0.2811829, abs=1e-7), pytest.approx(0.9596542, abs=1e-7))
    assert signal + noise == pytest.approx(1.2408371, abs=1e-7)
    assert -(signal_rate + noise_rate) == pytest.approx(-0.9989452, abs=1e-7)
    x = torch.tensor([[0.7]], dtype=torch.float64)
    moved = transfer_model(FLOW, LinearPath(), VP, "velocity")
    assert float(moved(x, torch.tensor([0.5], dtype=torch.float64))) == pytest.approx(2.0312867, abs=1e-6)
    data = as_diffusion(FLOW, LinearPath(), "velocity")
    own = Gaussian([MEAN], [[VARIANCE]]).as_model(VP, "data")
    t = torch.tensor([0.31], dtype=torch.float64)
    torch.testing.assert_close(data(x, t), own(x, t), rtol=1e-9, atol=1e-9)
    assert data.path == VP or data.path.config() == VP.config()


def test_the_score_of_a_velocity() -> None:
    """Card 4.4.2: 2.4 at t = 0.4 (noise), x = 0.3; here as what one row of the SDE adds for ε."""
    from pathline.interpolants import coefficients

    x, t = torch.tensor([[0.3]], dtype=torch.float64), torch.tensor([0.6], dtype=torch.float64)
    on_x, on_velocity = coefficients(0.6, 0.4, 1.0, -1.0, "velocity", "score")
    assert float(on_x * x + on_velocity * FLOW(x, t)) == pytest.approx(2.4, abs=1e-9)


@pytest.mark.parametrize(("shape", "scale"), [("square", 0.0), ("linear", 1.0), ("square", 3.0)])
@pytest.mark.parametrize("converted", [False, True])
def test_every_noise_level_has_the_same_marginals(shape: str, scale: float, converted: bool) -> None:
    """Card 4.4.3: mean and variance within O(h), from the moments that a linear model propagates exactly."""
    path = VP if converted else LinearPath()
    errors = []
    for steps in (32, 128):
        grid = np.linspace(0.0, 1.0, steps + 1)
        table = noisy_flow_table(path, steps, shape=shape, scale=scale, grid=grid)
        model = Gaussian([MEAN], [[VARIANCE]]).as_model(path, "data")
        mean, variance = table.start.signal * MEAN, table.start.signal**2 * VARIANCE + table.start.noise**2
        for k, row in enumerate(table.rows[:-1]):
            t = torch.tensor([row.level.time] * 2, dtype=torch.float64)
            low, high = model(torch.tensor([[0.0], [1.0]], dtype=torch.float64), t).flatten().tolist()
            step = row_step(table, k)
            gain = step.carry + step.on_data * (high - low)
            mean, variance = gain * mean + step.on_data * low, gain**2 * variance + step.fresh**2
        end = table.rows[-1].level
        errors.append((abs(mean - end.signal * MEAN), abs(variance - end.signal**2 * VARIANCE - end.noise**2)))
    assert errors[-1][0] < 0.02
    assert errors[-1][1] < 0.02
    assert errors[1][1] < 0.4 * errors[0][1] + 2e-3


def test_grid_and_noise_shapes() -> None:
    grid = rounded_grid(10)
    assert (grid[0], grid[-1]) == (0.0, 1.0)
    assert (np.diff(np.diff(grid)) > 0).all()
    q = 0.3
    assert 1.0 - grid[3] == pytest.approx(math.sqrt(1.0 - (1.0 - (1.0 - q)) ** 2))
    for shape in DIFFUSIONS:
        epsilon = diffusion_epsilon(VP, shape, 3.0)
        assert epsilon(0.0) == pytest.approx(4.5, rel=1e-3)
        assert epsilon(0.999) < epsilon(0.0) or shape == "constant"
    assert diffusion_epsilon(LinearPath(), "square", 3.0)(0.5) == pytest.approx(0.5 * (3 * 0.25) ** 2)
    with pytest.raises(ValueError, match="shape"):
        diffusion_epsilon(VP, "cube")
    with pytest.raises(ValueError, match="scale"):
        diffusion_epsilon(VP, "square", -1.0)
