"""Objectives over log-SNR: the table of common ones, the monotonic weights, the schedule that follows the loss."""

import json
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pathline.interpolants import CosinePath, EDMPath, GaussianPath, LinearPath, VPPath, convert
from pathline.training import (
    AdaptiveSchedule,
    EDMMonotonic,
    EDMWeight,
    ELBOWeight,
    GaussianObjective,
    LevelHistogram,
    LogNormalSigma,
    Mode,
    SigmoidWeight,
    TimeDensity,
    UniformLogSNR,
    direction_error,
    elbo_entries,
    elbo_table,
    objective_from_config,
)
from pathline.training.elbo_view import BEGIN, END, ELBOEntry, update_page
from support.repository import ROOT

F64 = torch.float64
LEVELS = torch.linspace(-8, 8, 33, dtype=F64)
PAGE = ROOT / "docs" / "losses.md"


def edm(level: Tensor) -> Tensor:
    return torch.exp(-0.5 * ((level - 2.4) / 2.4) ** 2) * (torch.exp(-level) + 0.25)


def flow(level: Tensor) -> Tensor:
    return 1 + torch.exp(-level / 2)


FINE = torch.linspace(-12, 12, 240_001, dtype=F64)
CLOSED: dict[str, Callable[[Tensor], Tensor]] = {
    "ELBO": torch.ones_like,
    "noise, cosine": lambda x: 1 / torch.cosh(x / 2),
    "noise, VP": lambda x: torch.sigmoid(-x) / (0.01 + 39.8 * torch.log1p(torch.exp(-x))).sqrt(),
    "data, cosine": lambda x: torch.exp(-x) / torch.cosh(x / 2),
    "v, cosine": lambda x: torch.exp(-x / 2),
    "flow matching": lambda x: torch.exp(-x / 2),
    "flow, logit-normal(0, 1)": lambda x: torch.exp(-(x**2) / 8) * flow(x) ** 2,
    "flow, cosmap": lambda x: flow(x) ** 2 / torch.cosh(x / 2),
    "flow, shift 3": lambda x: flow(x) ** 2 / torch.cosh(x / 4 + math.log(3) / 2) ** 2,
    "flow, sigma_sqrt": lambda x: torch.exp(-x / 2) * (1 + torch.exp(x / 2)) ** 2,
    "InDI": lambda x: torch.exp(-x) / torch.cosh(x / 4) ** 2,
    "EDM": edm,
    "EDM, monotonic": lambda x: edm(torch.maximum(x, FINE[edm(FINE).argmax()])),
    "sigmoid, bias 2": lambda x: torch.sigmoid(2 - x),
    "P2, cosine": lambda x: 1 / torch.cosh(x / 2) / (1 + torch.exp(x)),
    "min-SNR-5, cosine": lambda x: torch.minimum(torch.ones_like(x), 5 * torch.exp(-x)) / torch.cosh(x / 2),
    "debiased, cosine": lambda x: torch.sigmoid(-x),
    'SiT noise, "velocity" weight': lambda x: torch.exp(-x / 2),
    'SiT score, "likelihood" weight': torch.ones_like,
}
FALLING = {
    "ELBO", "data, cosine", "v, cosine", "flow matching", "flow, cosmap", "flow, shift 3", "InDI", "EDM, monotonic",
    "sigmoid, bias 2", "debiased, cosine", 'SiT noise, "velocity" weight', 'SiT score, "likelihood" weight',
}  # fmt: skip


@pytest.mark.parametrize("entry", elbo_entries(), ids=lambda entry: entry.name)
def test_effective_weights_are_the_closed_forms(entry: ELBOEntry) -> None:
    if entry.name not in CLOSED:
        assert not entry.formula
        assert isinstance(entry.objective.density, Mode)
        return
    closed = CLOSED[entry.name](LEVELS) / CLOSED[entry.name](torch.zeros(1, dtype=F64))
    torch.testing.assert_close(entry.weight(LEVELS), closed, rtol=1e-6, atol=0)
    assert entry.monotonic == (entry.name in FALLING)
    assert objective_from_config(json.loads(json.dumps(entry.objective.config()))) == entry.objective


def test_the_page_holds_the_table_as_it_is_made(tmp_path) -> None:
    text = PAGE.read_text()
    inside = text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip()
    assert inside == elbo_table(), "run pathline.training.elbo_view.update_page on docs/losses.md"
    copy = tmp_path / "losses.md"
    copy.write_text(text.replace(inside, "old"))
    update_page(copy)
    assert copy.read_text() == text
    copy.write_text("# no marks")
    with pytest.raises(ValueError, match="no place for the table"):
        update_page(copy)


def test_examples_of_the_page_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        names: dict[str, Any] = {}
        exec(block, names)
        assert names["losses"].shape == (8,)


@pytest.mark.parametrize("parameters", [(-1.2, 1.2, 0.5), (-0.4, 1.0, 0.5), (0.3, 0.6, 1.0)])
def test_monotonic_edm_is_edm_from_its_peak_on(parameters: tuple[float, float, float]) -> None:
    mean, std, spread = parameters
    weight = EDMMonotonic(mean, std, spread)
    path = EDMPath(sigma_min=1e-3, sigma_max=1e3)
    plain = GaussianObjective(path, "data", weight=EDMWeight(spread), density=LogNormalSigma(mean, std))
    monotonic = GaussianObjective(path, "data", weight=weight, density=LogNormalSigma(mean, std))
    t = path.time_at(0.5 * LEVELS)
    level, original = plain.effective_weight(t)
    _, held = monotonic.effective_weight(t)
    largest = original.max()
    torch.testing.assert_close(held[level >= weight.peak], original[level >= weight.peak], rtol=1e-9, atol=0)
    assert bool((held[level < weight.peak] >= largest * (1 - 1e-9)).all())
    assert held[0] == pytest.approx(float(held[level < weight.peak][-1]), rel=1e-9)
    around = plain.effective_weight(path.time_at(0.5 * (weight.peak + torch.tensor([-1e-3, 0, 1e-3], dtype=F64))))[1]
    assert around.argmax() == 1
    # stated in log-SNR: the same on another path with another density
    other = GaussianObjective(CosinePath(), "v", weight=weight)
    torch.testing.assert_close(other.effective_weight(CosinePath().time_at(0.5 * LEVELS))[1], held, rtol=1e-6, atol=0)


@pytest.mark.parametrize("path", [LinearPath(), VPPath(), EDMPath()], ids=lambda path: path.name)
def test_histogram_of_levels_is_the_law_it_says(path: GaussianPath) -> None:
    density = LevelHistogram((1.0, 4.0, 0.5, 2.5), -6.0, 8.0)
    u = torch.linspace(0.02, 0.98, 41, dtype=F64)
    t = density.times(u, path)
    torch.testing.assert_close(density.cdf(t, path), u)
    level = 2 * path.lam(t)
    shares = torch.histc(level.float(), 4, -6.0, 8.0) / 41
    torch.testing.assert_close(shares, torch.tensor([0.125, 0.5, 0.0625, 0.3125]), atol=0.03, rtol=0)
    step = 1e-7
    slope = (density.cdf(t + step, path) - density.cdf(t - step, path)) / (2 * step)
    torch.testing.assert_close(density.density(t, path), slope, rtol=1e-4, atol=1e-6)
    assert TimeDensity.from_config(json.loads(json.dumps(density.config()))) == density
    assert float(density.density(path.time_at(torch.tensor([-3.5, 4.5], dtype=F64)), path).abs().max()) == 0.0


SCALE = 0.6  # data N(0, SCALE²): the least noise error is a² c² / (a² c² + s²)


def exact_noise(path: GaussianPath) -> Callable[[Tensor, Tensor], Tensor]:
    def model(x: Tensor, t: Tensor) -> Tensor:
        point = path.at(t)
        a, s = point.signal[:, None], point.noise[:, None]
        return convert(x, x * a * SCALE**2 / (a**2 * SCALE**2 + s**2), point, "data", "noise")

    return model


def least_loss(level: Tensor) -> Tensor:
    """Sigmoid(level + 2 log SCALE): the mean square of noise error at the optimum."""
    return torch.sigmoid(level + 2 * math.log(SCALE))


def adapted(decay: float = 0.98, steps: int = 400) -> tuple[AdaptiveSchedule, GaussianObjective]:
    path = CosinePath()
    start = GaussianObjective(path, "noise", weight=SigmoidWeight(1.0), density=UniformLogSNR())
    schedule = AdaptiveSchedule(path, bins=20, decay=decay)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        objective = schedule.applied_to(start)
        t = objective.times(torch.rand(256, dtype=F64, generator=generator))
        data, noise = torch.randn(2, 256, 4, dtype=F64, generator=generator)
        schedule.update(objective, t, objective(exact_noise(path), SCALE * data, noise, t))
    return schedule, start


def test_the_adaptive_schedule_visits_levels_by_their_share_of_the_loss() -> None:
    schedule, start = adapted()
    edges = torch.linspace(schedule.low, schedule.high, 20 * 50 + 1, dtype=F64)
    middle = 0.5 * (edges[1:] + edges[:-1])
    share = (torch.sigmoid(1.0 - middle) * least_loss(middle)).reshape(20, 50).mean(1)
    expected = 0.99 * share / share.sum() + 0.01 / 20
    found = torch.tensor(schedule.density().masses, dtype=F64)
    torch.testing.assert_close(found, expected, rtol=0.3, atol=1e-3)
    # the objective is the same, and its estimate steadier
    u = (torch.arange(100_000, dtype=F64) + 0.5) / 100_000
    data, noise = torch.randn(2, 100_000, 4, dtype=F64, generator=torch.Generator().manual_seed(1))
    means, spreads = [], []
    for objective in (start, schedule.applied_to(start)):
        t = objective.times(u)
        losses = objective(exact_noise(objective.path), SCALE * data, noise, t)
        means.append(float(losses.mean()))
        spreads.append(float(losses.std()))
    assert means[1] == pytest.approx(means[0], rel=0.01)
    assert spreads[1] < 0.75 * spreads[0]
    assert means[0] == pytest.approx(float(share.sum()) / 20 * (schedule.high - schedule.low), rel=0.02)


def test_the_adaptive_schedule_is_deterministic_and_resumes() -> None:
    (first, start), (second, _) = adapted(steps=5), adapted(steps=5)
    assert first.density() == second.density()
    resumed = AdaptiveSchedule(CosinePath(), bins=20, decay=0.98)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    t = torch.linspace(0.1, 0.9, 9, dtype=F64)
    losses = t.cos()
    order = torch.tensor([3, 1, 8, 0, 2, 7, 6, 4, 5])
    objective = first.applied_to(start)
    first.update(objective, t, losses)
    resumed.update(objective, t[order], losses[order])
    torch.testing.assert_close(first.averages, resumed.averages, rtol=1e-13, atol=0)
    one = AdaptiveSchedule(CosinePath(), bins=20)
    one.update(objective, t, losses)
    assert float(one.averages.max() / one.averages.min()) < 1.1  # the first step sets the scale of all bins


def test_direction_error_looks_at_the_angle_over_the_channels_only() -> None:
    target = torch.randn(3, 4, 2, 2, dtype=F64)
    torch.testing.assert_close(direction_error(2.5 * target, target), torch.zeros(3, dtype=F64), atol=1e-12, rtol=0)
    torch.testing.assert_close(direction_error(-target, target), torch.full((3,), 2.0, dtype=F64))
    sizes = torch.rand(3, 1, 2, 2, dtype=F64) + 0.1
    torch.testing.assert_close(direction_error(sizes * target, target), torch.zeros(3, dtype=F64), atol=1e-12, rtol=0)
    assert bool((direction_error(target.roll(1, 1), target) > 0.05).all())
    assert bool(direction_error(target, torch.zeros_like(target)).isfinite().all())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: EDMMonotonic(std=0.0), "std of a loss weight"),
        (lambda: EDMMonotonic(mean=math.inf), "mean of a loss weight"),
        (lambda: EDMMonotonic()(LinearPath().at(0.5), "noise"), "needs level_density"),
        (lambda: LevelHistogram((1.0, 0.0)), "masses of a time density"),
        (lambda: LevelHistogram((1.0,), 2.0, 1.0), "must be finite and increase"),
        (lambda: LevelHistogram().times(torch.tensor([0.5])), "stated in the log-SNR of a Gaussian path"),
        (lambda: AdaptiveSchedule(LinearPath(), bins=0), "bins=0 is not possible"),
        (lambda: AdaptiveSchedule(LinearPath(), decay=1.0), "decay=1.0 is not possible"),
        (lambda: AdaptiveSchedule(LinearPath()).applied_to(GaussianObjective(LinearPath(), "v")), "got 'none'"),
        (
            lambda: AdaptiveSchedule(LinearPath()).update(
                GaussianObjective(LinearPath(), "v", weight=ELBOWeight()), torch.ones(2), torch.ones(3)
            ),
            "one shape",
        ),
        (
            lambda: AdaptiveSchedule(LinearPath()).update(
                GaussianObjective(LinearPath(), "v", weight=ELBOWeight()),
                torch.tensor([0.5]),
                torch.tensor([math.nan]),
            ),
            "finite losses only",
        ),
        (
            lambda: AdaptiveSchedule(LinearPath()).load_state_dict({"averages": [1.0], "visited": True}),
            "the state has 1 bins",
        ),
        (lambda: direction_error(torch.zeros(1, 2), torch.zeros(1, 3)), "the model returned shape"),
    ],
)
def test_bad_input_is_refused_with_words(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()
