"""Feynman–Kac correctors: the weights against the master identity, the targets of the literature, degenerate cases."""

import math
import warnings

import pytest
import torch
from torch import Tensor

from pathline.interpolants import EDMPath, GaussianMixture, GaussianPath, LinearPath, VPPath
from pathline.samplers import Nodes, build_table, make_nodes, run, sample
from pathline.samplers.smc import (
    Branch,
    Chunked,
    Composition,
    CountedReward,
    FeynmanKac,
    HeavyTailWarning,
    Policy,
    annealed,
    guided,
    law,
    product,
    score_steps,
    smc_sample,
)

VP = VPPath(beta_min=0.1, beta_max=20.0)
FIRST = GaussianMixture([0.5, 0.5], [[-2.0], [2.0]], variances=[[0.25], [1.0]])  # diagonal: differentiable twice
SECOND = GaussianMixture([0.3, 0.7], [[-1.0], [1.5]], variances=[[0.81], [0.49]])


def gaussian(mean: float, variance: float, path: GaussianPath, prediction: str = "noise"):
    return GaussianMixture([1.0], [[mean]], std=[math.sqrt(variance)]).as_model(path, prediction)


def reward(x: Tensor) -> Tensor:
    return torch.sin(x).sum(1) + 0.3 * x.sum(1)


def compositions(path: GaussianPath, prediction: str) -> dict[str, tuple[Composition, tuple[float, float]]]:
    second = law(SECOND.as_model(path, prediction))
    plain = law()
    return {
        "anneal": (annealed(2.0), (2.0, 0.0)),
        "hot": (annealed(0.6), (0.6, 0.0)),
        "cfg": (Composition((Branch(2.5), Branch(-1.5, model=second.branches[0].model))), (2.5, -1.5)),
        "product": (product([plain, second]), (1.0, 1.0)),
        "annealed product": ((plain * second).annealed(1.7), (1.7, 1.7)),
        "reward": (plain.tilted(reward, lambda t: t**2), (1.0, 0.0)),
        "all": ((plain * second).tilted(reward, lambda t: t**2).annealed(0.8), (0.8, 0.8)),
    }


@pytest.mark.parametrize("name", list(compositions(VP, "data")))
@pytest.mark.parametrize(
    ("path", "prediction", "zeta"),
    [(VP, "data", 1.0), (LinearPath(), "velocity", 1.3), (EDMPath(), "score", 0.0), (VP, "v", 0.7)],
)
def test_drift_and_weight_of_a_step_satisfy_the_master_identity(name: str, path, prediction: str, zeta: float) -> None:
    target, (w1, w2) = compositions(path, prediction)[name]
    factor = 0.8 if name == "all" else 1.0
    t0, h = 0.6, 1e-7
    nodes = make_nodes(path, [t0, t0 + h])
    x = torch.linspace(-3, 3, 25, dtype=torch.float64)[:, None] * (3.0 if path == EDMPath() else 1.0)
    hook = FeynmanKac(target, Policy(ess=0.0), noise_scale=zeta)
    model = FIRST.as_model(path, prediction)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HeavyTailWarning)
        found = run(score_steps(nodes, zeta, target.total), model, x, prediction=prediction, guidance=hook, full=True,
                    noise=lambda row, slot, like: torch.zeros_like(like))  # fmt: skip

    def log_p(state: Tensor, t: Tensor) -> Tensor:
        signal, noise = path.signal(t), path.noise(t)
        total = w1 * FIRST.log_density(state, signal, noise) + w2 * SECOND.log_density(state, signal, noise)
        return total + factor * t**2 * reward(state) if target.reward is not None else total

    point = path.at(t0)
    stretch = float(point.signal_rate / point.signal)
    g2 = float(2 * point.noise * point.wronskian / point.signal)
    state = x.clone().requires_grad_(True)
    time = torch.tensor(t0, dtype=torch.float64, requires_grad=True)
    values = log_p(state, time)
    (slope,) = torch.autograd.grad(values.sum(), state, create_graph=True)
    rate = torch.stack([torch.autograd.grad(v, time, retain_graph=True)[0] for v in values])
    tilt = torch.autograd.grad(factor * t0**2 * reward(state).sum(), state, create_graph=True)[0]
    tilt = tilt if target.reward is not None else torch.zeros_like(state)
    drift = stretch * state + 0.5 * (1 + zeta**2) * g2 * (slope - tilt) + 0.5 * zeta**2 * g2 * tilt
    charged = drift - 0.5 * zeta**2 * g2 * slope
    (spread,) = torch.autograd.grad(charged.sum(), state, retain_graph=True)
    gain = rate + spread[:, 0] + (charged * slope)[:, 0]
    drift, gain = drift.detach(), gain.detach()
    first = factor * t0**2 * reward(x) if target.reward is not None else 0.0  # the tilt at the start
    moved, gained = (found.sample - x) / h, (found.log_weights - first) / h
    assert torch.allclose(moved, drift, rtol=2e-6, atol=2e-6 * float(drift.abs().max()))
    assert torch.allclose(gained, gain, rtol=1e-5, atol=1e-5 * float(gain.abs().max()))


def moments(result) -> tuple[float, float]:
    mean = float(result.mean())
    return mean, float(result.mean(lambda x: (x - mean) ** 2))


def test_guidance_of_two_gaussians_reaches_the_geometric_law_and_plain_guidance_does_not() -> None:
    target = Composition((Branch(2.0), Branch(-1.0, model=gaussian(0, 4, VP))))
    options = {"path": VP, "steps": 200, "prediction": "noise", "dtype": torch.float64}
    found = smc_sample(gaussian(1, 1, VP), target, (1,), 2000, seed=1, **options)
    mean, variance = moments(found)
    assert mean == pytest.approx(8 / 7, abs=0.05)
    assert variance == pytest.approx(4 / 7, abs=0.08)
    assert found.log_z == pytest.approx(0.556196, abs=4 * found.log_z_error + 0.03)
    assert found.branch_calls == 2 * found.evaluations == 400
    plain = smc_sample(gaussian(1, 1, VP), target, (1,), 2000, seed=1, weights="none", **options)
    mean, variance = moments(plain)
    assert mean == pytest.approx(1.252, abs=0.04)
    assert variance == pytest.approx(0.445, abs=0.04)
    assert math.isnan(plain.log_z)


def test_equal_covariances_give_equal_weights_whatever_the_scale() -> None:
    target = Composition((Branch(3.0), Branch(-2.0, model=gaussian(0, 1, VP))))
    found = smc_sample(
        gaussian(1, 1, VP), target, (1,), 500, path=VP, steps=50, prediction="noise", dtype=torch.float64
    )
    assert float(found.log_weights.max() - found.log_weights.min()) < 1e-9


def test_a_product_of_two_gaussians() -> None:
    options = {"path": VP, "steps": 200, "grid": "time", "prediction": "noise", "dtype": torch.float64}
    target = law() * law(gaussian(1, 0.25, VP))
    with pytest.warns(HeavyTailWarning, match="W = 2"):
        smc_sample(gaussian(-1, 1, VP), target, (1,), 4, **options)
    found = smc_sample(gaussian(-1, 1, VP), target, (1,), 2000, noise_scale=3**0.5, **{**options, "grid": "logsnr"})
    assert found.log_z == pytest.approx(-2.630510, abs=0.2)
    mean, variance = moments(found)
    assert mean == pytest.approx(0.6, abs=0.06)
    assert variance == pytest.approx(0.2, abs=0.03)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = smc_sample(gaussian(-1, 1, VP), target, (1,), 2000, weights="none", **options)
    assert moments(plain)[0] == pytest.approx(0.43, abs=0.04)


@pytest.mark.parametrize("method", [None, "ddpm", "ddim"])
def test_a_reward_moves_the_masses_of_two_modes(method: str | None) -> None:
    data = GaussianMixture([0.5, 0.5], [[-2.0], [2.0]], std=0.5)
    target = law().tilted(lambda x: x[:, 0] / 2)
    found = smc_sample(data.as_model(VP), target, (1,), 2500, path=VP, steps=80, grid="time", method=method,
                       dtype=torch.float64)  # fmt: skip
    assert moments(found)[0] == pytest.approx(1.648188, abs=0.09)
    assert found.log_z == pytest.approx(0.465031, abs=4 * found.log_z_error + 0.01)
    assert found.reward_calls == found.reward_gradients == 80 * 2500
    few = {"path": VP, "steps": 50, "weights": "none", "dtype": torch.float64}
    plain = smc_sample(data.as_model(VP), target, (1,), 1000, **few)
    assert abs(moments(plain)[0] - 1.648) > 0.6


def anneal_mixture(count: int, steps: int, square: float, seed: int = 0):
    path = EDMPath(sigma_min=0.002, sigma_max=10.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HeavyTailWarning)
        options = {"noise_scale": math.sqrt(square), "steps": steps, "grid": "karras", "policy": Policy(ess=0.9)}
        model = FIRST.as_model(path)
        return smc_sample(model, annealed(2.0), (1,), count, path=path, seed=seed, dtype=torch.float64, **options)


def negative(result) -> float:
    return float(result.mean(lambda x: (x < 0).double()))


def test_an_annealed_mixture_moves_its_mass() -> None:
    found = anneal_mixture(2500, 120, 3.0)
    assert negative(found) == pytest.approx(0.667906, abs=0.04)
    plain = smc_sample(FIRST.as_model(VP), annealed(2.0), (1,), 2000, path=VP, steps=100, weights="none",
                       dtype=torch.float64)  # fmt: skip
    assert negative(plain) < 0.61


@pytest.mark.slow
def test_an_annealed_mixture_at_full_length() -> None:
    errors = []
    for steps in (500, 2000):
        found = [anneal_mixture(10000, steps, 3.0, seed) for seed in range(2)]
        assert sum(map(negative, found)) / 2 == pytest.approx(0.667906, abs=0.02)
        errors.append(abs(sum(r.log_z for r in found) / 2 - math.log(0.2118675)))
    assert errors[1] < 0.6 * errors[0]


def test_weights_that_change_nothing_leave_a_run_as_it_is_bit_by_bit() -> None:
    model = FIRST.as_model(VP)
    x = VP.prior((50, 1), torch.Generator().manual_seed(0), dtype=torch.float64)
    nodes = make_nodes(VP, "logsnr", 12)
    other = {"labels": 3}
    two = lambda x, t, labels=None: model(x, t) if labels is None else 0.3 * model(x, t)  # noqa: E731
    for table in (score_steps(nodes), build_table("ddpm", nodes), build_table("unipc", nodes)):
        base = run(table, two, x, seed=4)
        cases = [annealed(1.0), guided(1.0, other), law().tilted(reward, 0.0)]
        for target in cases:
            found = run(table, two, x, seed=4, guidance=FeynmanKac(target, Policy(ess=1.0), noise_scale=1.0), full=True)
            assert torch.equal(found.sample, base)
            assert (found.log_weights == 0).all()
        free = run(table, two, x, seed=4, guidance=FeynmanKac(guided(0.0, other), noise_scale=1.0), full=True)
        assert torch.equal(free.sample, run(table, two, x, seed=4, model_kwargs=other))
        assert (free.log_weights == 0).all()


def test_flows_start_at_signal_zero_where_the_weights_allow_it() -> None:
    path = LinearPath()
    target = Composition((Branch(2.0), Branch(-1.0, model=gaussian(0, 4, path, "velocity"))))
    found = smc_sample(gaussian(1, 1, path, "velocity"), target, (1,), 2500, path=path, steps=120, grid="logsnr",
                       prediction="velocity", dtype=torch.float64)  # fmt: skip
    assert found.table.start.signal == 0.0
    assert moments(found)[0] == pytest.approx(8 / 7, abs=0.06)
    assert found.log_z == pytest.approx(0.556196, abs=4 * found.log_z_error + 0.03)
    with pytest.raises(ValueError, match="cannot start at signal 0"):
        smc_sample(gaussian(1, 1, path), annealed(2.0), (1,), 4, path=path, steps=5, prediction="velocity")
    tilted = law().tilted(reward, lambda t: 1.0)
    with pytest.raises(ValueError, match="scale must be 0 at signal 0"):
        smc_sample(gaussian(1, 1, path, "velocity"), tilted, (1,), 4, path=path, steps=5, prediction="velocity")


def test_chunks_and_places_given_twice_change_nothing() -> None:
    model = gaussian(1, 1, VP)
    target = Composition((Branch(2.0), Branch(-1.0, model=gaussian(0, 4, VP))))
    options = {"path": VP, "steps": 20, "prediction": "noise", "policy": Policy(ess=1.0), "dtype": torch.float64}
    whole = smc_sample(model, target, (1,), 30, **options)
    parts = smc_sample(model, target, (1,), 30, chunk_size=7, **options)
    assert torch.equal(whole.sample, parts.sample)
    assert len(whole.genealogy.parents) == 19  # never after the last step
    x = VP.prior((30, 1), torch.Generator().manual_seed(0))
    hook = FeynmanKac(target, Policy(ess=1.0))
    once = sample(model, x, path=VP, method="ddpm", steps=9, prediction="noise", guidance=hook)
    twice = sample(model, x, path=VP, method="ddpm", steps=9, prediction="noise", guidance=hook, hooks=[hook])
    assert torch.equal(once, twice)
    with pytest.raises(ValueError, match="chunk_size"):
        sample(model, x, path=VP, method="ddpm", steps=9, prediction="noise", guidance=hook, chunk_size=8)
    assert Chunked(model, 4).path is VP
    given = torch.arange(10.0)[:, None]
    seen = Chunked(lambda x, t, shift: x + shift + t[:, None], 4)(given, torch.zeros(10), shift=given)
    assert torch.equal(seen, 2 * given)


def test_copies_part_ways_and_conditions_follow_their_particle() -> None:
    seen = []

    def model(x: Tensor, t: Tensor, tag: Tensor) -> Tensor:
        seen.append((x.clone(), tag.clone()))
        return 0.5 * x + tag

    nodes = make_nodes(VP, "logsnr", 6)
    tag = torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None]
    x = torch.randn(8, 1, dtype=torch.float64)
    hook = FeynmanKac(law().tilted(lambda x: 2 * x[:, 0]), Policy(ess=1.0))
    run(build_table("ddpm", nodes), model, x, guidance=hook, model_kwargs={"tag": tag})
    assert hook.population.genealogy.unique < 8
    assert len(hook.population.genealogy.parents) == 5
    for k, parents in enumerate(hook.population.genealogy.parents):
        assert torch.equal(seen[k + 1][1], seen[k][1][torch.from_numpy(parents)])
        assert len(seen[k + 1][0].unique()) == len(set(parents.tolist()))  # those of the last copies have parted


def test_the_heavy_tail_is_warned_of_where_it_is_proven_and_nowhere_else() -> None:
    def warned(target: Composition, zeta: float) -> bool:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            smc_sample(FIRST.as_model(VP), target, (1,), 4, path=VP, steps=4, noise_scale=zeta)
        return any(issubclass(w.category, HeavyTailWarning) for w in caught)

    assert warned(annealed(2.0), 1.0)
    assert warned(annealed(2.0), math.sqrt(0.5))
    assert not warned(annealed(2.0), math.sqrt(3.0))
    assert not warned(annealed(2.0), 0.0)
    assert not warned(annealed(0.5), 1.0)
    assert not warned(law().tilted(reward), 1.0)


def test_rewards_that_fail_are_warned_of_and_bad_requests_are_refused() -> None:
    model = FIRST.as_model(VP)
    options = {"path": VP, "steps": 6, "dtype": torch.float64}
    spoilt = law().tilted(lambda x: torch.where(x[:, 0] > 1e-3, torch.nan, x[:, 0]))
    with pytest.warns(UserWarning, match="rewards are NaN"):
        found = smc_sample(model, spoilt, (1,), 20, **options)
    assert torch.isfinite(found.sample).all()
    dead = law().tilted(lambda x: x[:, 0] * 0 - torch.inf)
    with pytest.warns(UserWarning, match="all 20 particles have weight 0"):
        found = smc_sample(model, dead, (1,), 20, **options)
    assert found.log_z == -math.inf
    assert math.isnan(found.log_z_error)
    assert found.weights.tolist() == [0.05] * 20
    with pytest.raises(ValueError, match="one number for each"):
        smc_sample(model, law().tilted(lambda x: x), (1,), 4, **options)
    with pytest.raises(ValueError, match="no gradient"):
        smc_sample(model, law().tilted(lambda x: x[:, 0].round().detach()), (1,), 4, **options)
    with pytest.raises(ValueError, match="sum to"):
        Composition((Branch(1.0), Branch(-1.0)))
    with pytest.raises(ValueError, match="weight=nan"):
        Branch(math.nan)
    with pytest.raises(ValueError, match="window"):
        FeynmanKac(annealed(2.0), window=(0.5, 0.5))
    with pytest.raises(ValueError, match="not possible with a reward"):
        FeynmanKac(law().tilted(reward), window=(0.2, 1.0))
    x = torch.zeros(2, 1)
    with pytest.raises(ValueError, match=r"pass it as guidance=FeynmanKac"):
        run(score_steps(make_nodes(VP, "logsnr", 3)), model, x, hooks=[FeynmanKac(annealed(0.5))])
    with pytest.raises(ValueError, match="second particle hook"):
        run(score_steps(make_nodes(VP, "logsnr", 3)), model, x, guidance=FeynmanKac(guided(1.0, {})),
            hooks=[FeynmanKac(guided(1.0, {}))])  # fmt: skip
    with pytest.raises(ValueError, match="goes back"):
        run(build_table("restart", make_nodes(EDMPath(), "karras", 18)), FIRST.as_model(EDMPath()), torch.randn(2, 1),
            guidance=FeynmanKac(guided(1.0, {})))  # fmt: skip
    with pytest.raises(ValueError, match="not one whole step"):
        run(build_table("seeds", make_nodes(VP, "logsnr", 6)), model, torch.randn(2, 1),
            guidance=FeynmanKac(law().tilted(reward)))  # fmt: skip
    with pytest.raises(ValueError, match="level it acts at"):
        FeynmanKac(annealed(2.0))(model, torch.zeros(2, 1), torch.zeros(2), {})


def test_a_window_weighs_inside_only() -> None:
    target = Composition((Branch(2.0), Branch(-1.0, model=gaussian(0, 4, VP))))
    nodes: Nodes = make_nodes(VP, "time", 10)
    for window, rows in (((0.0, 1.0), 11), ((0.35, 0.75), 5)):
        hook = FeynmanKac(target, Policy(), window=window)
        run(score_steps(nodes), gaussian(1, 1, VP), torch.randn(5, 1), prediction="noise", guidance=hook)
        assert len(hook.population.trace) in (rows, rows - 1)


@pytest.mark.parametrize("steps", [20, 50])
def test_coarse_steps_of_a_cold_law_stay_stable(steps: int) -> None:
    """Held whole, the score made log Z 7.5e7 at 20 steps and 34 at 50; exactly it is -1.5518."""
    found = smc_sample(FIRST.as_model(VP), annealed(2.0), (1,), 500, path=VP, steps=steps, noise_scale=3**0.5,
                       dtype=torch.float64)  # fmt: skip
    assert float(found.sample.abs().max()) < 8.0
    assert found.log_z == pytest.approx(-1.5518, abs=3.5 if steps == 20 else 0.5)


def test_the_first_row_from_pure_noise_weighs_half_the_squared_signal_to_noise_ratio() -> None:
    """Weights 2 and -1 of constant data 3 and 1: spread 2·(3 - 5)² - (1 - 5)² = -8, times minus half the ratio."""
    constant = lambda value: lambda x, t: torch.full_like(x, value)  # noqa: E731
    target = Composition((Branch(2.0), Branch(-1.0, model=constant(1.0))))
    nodes = make_nodes(LinearPath(), [0.0, 0.2, 0.3])
    hook = FeynmanKac(target, Policy(ess=0.0))
    seen = []
    run(score_steps(nodes), constant(3.0), torch.zeros(2, 1, dtype=torch.float64), guidance=hook,
        callback=lambda info: seen.append(hook._run.log_weights.clone()))  # fmt: skip
    assert torch.allclose(seen[0], torch.full((2,), 0.5 * (0.2 / 0.8) ** 2 * 8.0, dtype=torch.float64))


def test_networks_of_branches_come_in_chunks_too() -> None:
    sizes = []

    def other(x: Tensor, t: Tensor) -> Tensor:
        sizes.append(len(x))
        return 0.5 * x

    target = Composition((Branch(2.0), Branch(-1.0, model=other)))
    smc_sample(FIRST.as_model(VP), target, (1,), 10, path=VP, steps=2, chunk_size=4)
    assert set(sizes) == {4, 2}


def test_what_accelerators_only_count_is_reported_once() -> None:
    counted = CountedReward(lambda x: x[:, 0])
    counted._odd["rewards are NaN"] = torch.tensor(3)
    with pytest.warns(UserWarning, match="3 rewards are NaN"):
        counted.report()
    counted.report()
    with pytest.warns(UserWarning, match="gradients of the reward are not finite"):
        CountedReward(lambda x: x[:, 0].sqrt()).with_gradient(torch.zeros(2, 1))
