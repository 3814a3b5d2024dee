"""The noise of stochastic methods in pipelines: its law at every level, its keys, and what it must not equal."""

import inspect
import math
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from pathline.samplers import method_info, run
from pathline.samplers.schedulers import PathlineScheduler
from support.schedulers import METHODS, latents, make, shared_out, steps_over

FAMILIES = ("betas", "flow")
COUNT = 16384
"""Independent numbers in a batch: the relative standard error of a variance is √(2/COUNT) = 1.1 %."""
STANDARD_ERROR = math.sqrt(2 / COUNT)
VARIANCE = 0.25


def draws(scheduler: PathlineScheduler) -> int:
    return sum(z >= 0 for row in scheduler.table.rows for z in row.noises)


def cases() -> list[tuple[str, dict[str, Any]]]:
    """Every declared case that draws noise."""
    found = []
    for name in METHODS:
        for case in method_info(name).cases:
            scheduler = make("flow", method=name, options=dict(case.options))
            if case.options.get("solver") == "heun":
                continue  # draws before its first call
            scheduler.set_timesteps(7)
            if draws(scheduler):
                found.append((name, dict(case.options)))
    return found


STOCHASTIC = cases()
NOISY = dict(reversed(STOCHASTIC))
"""One noisy configuration of each method."""


def levels(scheduler: PathlineScheduler, family: str) -> list[tuple[float, float]]:
    """(signal, noise) of each call."""
    sigmas = scheduler.sigmas.double().tolist()
    if family == "flow":
        return [(1 - s, s) for s in sigmas]
    return [((1 + s * s) ** -0.5, s * (1 + s * s) ** -0.5) for s in sigmas]


def output(family: str, x: Tensor, signal: float, noise: float, variance: float) -> Tensor:
    """What a network that knows Gaussian data of mean 0 says."""
    data = signal * variance / (signal**2 * variance + noise**2) * x
    eps = (x - signal * data) / noise
    return eps - data if family == "flow" else eps


def measured(scheduler: PathlineScheduler, family: str, steps: int, variance: float) -> list[float]:
    """Relative errors of the variance of the latents at every call, and of the result, against the marginals'."""
    scheduler.set_timesteps(steps)
    points = levels(scheduler, family)
    expected = [signal**2 * variance + noise**2 for signal, noise in points]
    x = torch.randn(4, 64, COUNT // 256, generator=torch.Generator().manual_seed(1)) * math.sqrt(expected[0])
    errors = []
    for (signal, noise), total, t in zip(points, expected, scheduler.timesteps, strict=False):
        errors.append(float(x.double().square().mean()) / total - 1.0)
        x = scheduler.step(output(family, x, signal, noise, variance), t, x, return_dict=False)[0]
    return [*errors, float(x.double().square().mean()) / expected[-1] - 1.0 if expected[-1] else 0.0]


def exact(scheduler: PathlineScheduler, family: str, steps: int) -> list[float]:
    """The same errors without sampling: every state is a sum of independent normals, whose weights are followed."""
    scheduler.set_timesteps(steps)
    points = levels(scheduler, family)
    expected = [signal**2 * VARIANCE + noise**2 for signal, noise in points]
    size, used, found = 1 + draws(scheduler), 0, list[float]()

    def fresh(row: int, slot: int, like: Tensor) -> Tensor:
        nonlocal used
        used += 1
        return torch.eye(size, dtype=torch.float64)[used : used + 1]

    def model(x: Tensor, t: Tensor) -> Tensor:
        signal, noise = points[len(found)]
        found.append(float(x.square().sum()) / expected[len(found)] - 1.0)
        return signal * VARIANCE / (signal**2 * VARIANCE + noise**2) * x

    start = math.sqrt(expected[0]) * torch.eye(size, dtype=torch.float64)[:1]
    end = run(scheduler.table, model, start, prediction="data", noise=fresh)
    assert used == size - 1
    assert len(found) == len(scheduler.timesteps)
    return [*found, float(end.square().sum()) / VARIANCE - 1.0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("method", "options"), STOCHASTIC, ids=str)
def test_variance_is_that_of_the_marginals_at_every_level(method: str, options: dict[str, Any], family: str) -> None:
    """Point masses: exact at any step for every method that claims it, within 4.5 standard errors of sampling."""
    scheduler = make(family, method=method, options=options, seed=12)
    scheduler.set_timesteps(8)
    if scheduler.table.law == "weak":
        return
    errors = measured(scheduler, family, 8, 0.0)
    assert max(map(abs, errors)) < 4.5 * STANDARD_ERROR


@pytest.mark.parametrize(("noisy", "family"), shared_out(STOCHASTIC, FAMILIES, every=2), ids=str)
def test_variance_on_gaussian_data_converges_at_every_level(noisy: tuple[str, dict[str, Any]], family: str) -> None:
    """What a pipeline samples is what the table says, and that has the right variance as the steps shrink."""
    method, options = noisy
    if method == "er-sde" and options.get("variant") == "ode":
        return
    scheduler = make(family, method=method, options=options, grid="logsnr", seed=9)
    for sampled, true in zip(measured(scheduler, family, 16, VARIANCE), exact(scheduler, family, 16), strict=True):
        assert abs(sampled - true) < 4.5 * STANDARD_ERROR * (1.0 + abs(true))
    coarse, fine = (exact(scheduler, family, steps) for steps in (40, 80))
    assert abs(fine[-1]) < 0.15
    if method != "restart":  # the steps within its jumps are a number of their own
        assert abs(fine[-1]) < 0.6 * abs(coarse[-1]) + 2e-3  # first order at least
        assert max(map(abs, fine)) < 0.6 * max(map(abs, coarse)) + 2e-3


def fresh_noise(scheduler: PathlineScheduler, shape: tuple[int, ...], generator: Any) -> list[Tensor]:
    """The noise of the first three steps of a run by itself: states and outputs are zero."""
    scheduler.set_timesteps(4)
    zero = torch.zeros(shape)
    found = [scheduler.step(zero, t, zero, generator, return_dict=False)[0] for t in scheduler.timesteps[:3]]
    return [z / z.std() for z in found]


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten().double(), b.flatten().double()]))[0, 1])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["ddim", "dpm++-sde", "sa", "euler-ancestral", "er-sde"])
def test_steps_images_and_the_start_share_no_noise(method: str, family: str) -> None:
    """The start is drawn as pipelines draw it, from a generator of the same seed, or from the very same generator."""
    shape, bound = (2, 4, 32, 32), 5 / math.sqrt(4 * 32 * 32)
    options = {"ddim": {"eta": 1.0}, "sa": {"window": None}}.get(method, {})
    for source in ("config", "generator", "same generator", "list"):
        generator = torch.Generator().manual_seed(7)
        start = torch.randn(shape, generator=generator)
        scheduler = make(family, method=method, options=options, seed=7)
        given = {
            "config": None,
            "generator": torch.Generator().manual_seed(7),
            "same generator": generator,
            "list": [torch.Generator().manual_seed(seed) for seed in (7, 8)],
        }[source]
        noises = fresh_noise(scheduler, shape, given)
        more = [torch.randn(shape, generator=generator) for _ in range(3)]  # what a stock scheduler would have added
        images = [image for z in (*noises, start, *more) for image in z]
        for i, first in enumerate(images[:6]):
            for second in images[i + 1 :]:
                assert abs(correlation(first, second)) < bound


@pytest.mark.parametrize(("method", "family"), shared_out([*NOISY], FAMILIES, every=2), ids=str)
def test_same_seed_same_bits_in_any_split(method: str, family: str) -> None:
    """By config, by `set_seed` and by generators, in one batch or image by image."""
    x = latents(batch=3)

    def ended(scheduler: PathlineScheduler, x: Tensor, **options: Any) -> Tensor:
        scheduler.set_timesteps(12)
        return steps_over(scheduler, x, scheduler.timesteps, **options)

    def generators(count: int, first: int = 0) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(20 + first + k) for k in range(count)]

    scheduler = make(family, method=method, options=NOISY[method], seed=5)
    whole = ended(scheduler, x)
    assert torch.equal(whole, ended(scheduler, x))
    parts, listed = [], ended(scheduler, x, generator=generators(3))
    for k in range(3):
        scheduler.set_sample_offset(k)
        parts.append(ended(scheduler, x[k : k + 1]))
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-12, atol=1e-12)
    scheduler.set_sample_offset(0)
    alone = [ended(scheduler, x[k : k + 1], generator=generators(1, k)[0]) for k in range(3)]
    torch.testing.assert_close(torch.cat(alone), listed, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(listed, whole)
    scheduler.set_seed(6)
    assert not torch.allclose(ended(scheduler, x), whole)


@pytest.mark.parametrize("method", NOISY)
def test_no_brownian_tree_is_needed(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise is a function of its key: no library for it, and no recursion as steps grow short."""
    for name in ("torchsde", "trampoline"):
        monkeypatch.setitem(sys.modules, name, None)
    scheduler = make("betas", method=method, options=NOISY[method], seed=5)
    scheduler.set_timesteps(100)
    x = torch.zeros(1, 2)
    depth = len(inspect.stack(0))
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(depth + 60)
    try:
        for t in scheduler.timesteps:
            x = scheduler.step(0.5 * x, t, x, return_dict=False)[0]
    finally:
        sys.setrecursionlimit(limit)
    assert bool(torch.isfinite(x).all())


def test_a_seed_of_torch_fixes_runs_without_a_seed() -> None:
    scheduler = make("flow", method="dpm++-sde")
    ends = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        scheduler.set_timesteps(4)
        ends.append(steps_over(scheduler, latents(), scheduler.timesteps))
    assert torch.equal(ends[0], ends[2])
    assert not torch.allclose(ends[0], ends[1])


@pytest.mark.parametrize(
    ("method", "options"), [("ddim", {"eta": -0.5}), ("dpm++", {"eta": 1.0}), ("unipc", {"s_noise": 1.0})]
)
def test_settings_that_do_not_apply_to_a_method_are_refused(method: str, options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"eta|s_noise"):
        make("flow", method=method, options=options).set_timesteps(4)
