"""Reflow: pairs drawn from a model, paths that become straight; flows restricted to one convex cost."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pathline.interpolants import LinearPath
from pathline.training import load_pipeline, per_sample_loss
from pathline.training.convex_flow import PowerCost, convex_flow_loss, potential_velocity
from pathline.training.reflow import PairSet, simulate, straightness
from support.training_runs import fresh_accelerate, resumed_equals_unbroken, run, same, weights


@pytest.fixture(autouse=True)
def accelerate_state() -> Iterator[None]:
    with fresh_accelerate():
        yield


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with fresh_accelerate():
        return run(tmp_path_factory.mktemp("teacher") / "run", max_train_steps=3, class_conditional=True)


class Field(nn.Module):
    """A small velocity in the plane."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.body(torch.cat([x, t[:, None]], 1))


def fitted(base: Tensor, data: Tensor, independent: bool, steps: int) -> Field:
    """A velocity fitted to pairs, or to all pairings of their parts."""
    torch.manual_seed(0)
    field = Field()
    optimizer = torch.optim.Adam(field.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        where = torch.randint(len(base), (2, 256), generator=generator)
        x0, x1 = base[where[0]], data[where[1] if independent else where[0]]
        loss = per_sample_loss(field, LinearPath(), x1, x0, torch.rand(256, generator=generator)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return field


def test_reflow_straightens_the_paths_and_keeps_the_law() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4096, 2, generator=generator)
    sides = torch.randint(2, (4096, 1), generator=generator) * 2.0 - 1.0
    data = torch.cat([2.5 * sides, torch.zeros(4096, 1)], 1) + 0.3 * torch.randn(4096, 2, generator=generator)
    path, fresh = LinearPath(), torch.randn(2048, 2, generator=generator)
    first = fitted(noise, data, independent=True, steps=500)
    pairs = simulate(first, noise, path, prediction="velocity", method="heun", nfe=60)
    second = fitted(noise, pairs, independent=False, steps=500)
    before, after = (straightness(field, fresh, path) for field in (first, second))
    assert after < 0.2 * before
    ends = [simulate(field, fresh, path, prediction="velocity", method="heun", nfe=60) for field in (first, second)]
    for field, end, bound in zip((first, second), ends, (1.0, 0.5), strict=True):
        one = simulate(field, fresh, path, prediction="velocity", method="euler", nfe=1)
        error = float((one - end).square().mean().sqrt())
        assert (error > bound) if field is first else (error < bound)  # of a single step
    for end in ends:
        assert float((end.mean(0) - data.mean(0)).abs().max()) < 0.15
        torch.testing.assert_close(end.T.cov(), data.T.cov(), atol=0.4, rtol=0.1)


def test_straightness_of_a_turning_flow() -> None:
    """Along dx/dt = ω·Jx a point turns by ω, and ∫|X_1 − X_0 − dX/dt|² = |x|²·(ω² − 2 + 2cos ω)."""
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    start = torch.tensor([[1.0, 0.0], [0.0, -2.0]], dtype=torch.float64)
    for omega in (0.5, 1.3):
        expected = 2.5 / 2 * (omega**2 - 2 + 2 * math.cos(omega))
        found = straightness(lambda x, t, w=omega: w * x @ turn.T, start, LinearPath(), steps=400)
        assert found == pytest.approx(expected, rel=1e-4)
    assert straightness(lambda x, t: torch.ones_like(x), start, LinearPath()) == pytest.approx(0.0, abs=1e-20)


def test_straightness_takes_any_prediction() -> None:
    path, start = LinearPath(), torch.randn(5, 2, dtype=torch.float64)

    def data_of(x: Tensor, t: Tensor) -> Tensor:
        return x + (1 - t[:, None]) * (0.3 * x)  # velocity 0.3·x

    expected = straightness(lambda x, t: 0.3 * x, start, path)
    assert straightness(data_of, start, path, prediction="data") == pytest.approx(expected, rel=1e-3)


# --- pairs in a run -----------------------------------------------------------------------------------------------


def test_a_run_on_pairs_resumes_bit_for_bit(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathline.training.reflow._PART", 16)
    options = {"reflow_from": str(teacher), "reflow_pairs": 40, "reflow_nfe": 4, "init_from": str(teacher)}
    again = resumed_equals_unbroken(tmp_path, class_conditional=True, **options)
    names = [f"pairs-00000{start:02d}.safetensors" for start in (0, 16, 32)]
    assert [path.name for path in sorted((again / "pairs").iterdir())] == names
    assert load_pipeline(again).metadata["data"]["name"] == "digits"
    data = PairSet(str(teacher), 40, nfe=4)
    (again / "pairs" / names[1]).unlink()  # as if stopped before it
    data.draw(again / "pairs")
    batch = data.__getitems__([39, 17, 0])
    assert batch.noise is not None
    assert batch.labels is not None
    loaded = load_pipeline(teacher)
    made = simulate(loaded.model, batch.noise, loaded.path, nfe=4, model_kwargs={"class_labels": batch.labels})
    torch.testing.assert_close(made, batch.images)
    assert batch.labels.tolist() == [9, 7, 0]


def test_shares_of_processes_make_the_same_pairs(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pathline.training.reflow._PART", 8)
    one, two = PairSet(str(teacher), 20, nfe=2), PairSet(str(teacher), 20, nfe=2)
    one.draw(tmp_path / "one")
    two.draw(tmp_path / "two", share=(1, 2), wait=lambda: PairSet(str(teacher), 20, nfe=2).draw(tmp_path / "two"))
    first, second = (data.__getitems__(range(20)) for data in (one, two))
    assert torch.equal(first.images, second.images)
    assert first.noise is not None
    assert abs(float(first.noise.std()) - 1.0) < 0.1


def test_a_run_starts_from_the_weights_it_is_given(teacher: Path, tmp_path: Path) -> None:
    options = {"init_from": str(teacher), "class_conditional": True, "use_ema": False}
    found = run(tmp_path / "run", learning_rate=1e-12, max_train_steps=1, **options)
    for name, value in weights(teacher).items():
        torch.testing.assert_close(weights(found)[name], value, atol=1e-8, rtol=0)
    assert not same(weights(found), weights(run(tmp_path / "plain", **{**options, "init_from": None})))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"reflow_from": "nowhere"}, "nowhere has no pathline.json"),
        ({"coupling": "ot"}, "coupling='ot' does not go with reflow_from"),
        ({"random_flip": True}, "random_flip=True does not go with reflow_from"),
        ({"reflow_method": "ddpm"}, "reflow_method 'ddpm' adds noise"),
        ({"reflow_method": "sde-heun"}, "reflow_method 'sde-heun' adds noise"),
        ({"reflow_method": "dpmm"}, "unknown method 'dpmm'"),
        ({"reflow_pairs": 0}, "reflow_pairs must be at least 1, got 0"),
        ({"init_from": "teacher", "class_conditional": False}, "is another network: class_embedding.weight differ"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(
    teacher: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    given = {key: str(teacher) if value == "teacher" else value for key, value in options.items()}
    with pytest.raises(ValueError, match=words):
        run(tmp_path / "out", **{"reflow_from": str(teacher), **given})
    assert not (tmp_path / "out").exists()


def test_pairs_of_another_model_are_refused(teacher: Path, tmp_path: Path) -> None:
    PairSet(str(teacher), 4, nfe=2).draw(tmp_path)
    with pytest.raises(ValueError, match="was drawn from another model or under other settings"):
        PairSet(str(teacher), 4, nfe=3).draw(tmp_path)


# --- one convex cost ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [1.5, 2.0, 3.0])
def test_conjugates(power: float) -> None:
    cost = PowerCost(power)
    x, y = torch.randn(2, 50, 3, dtype=torch.float64)
    assert bool((cost.value(x) + cost.conjugate(y) >= (x * y).sum(1)).all())
    best = cost.velocity(y)
    torch.testing.assert_close(cost.value(best) + cost.conjugate(y), (best * y).sum(1))
    with pytest.raises(ValueError, match=r"power=1\.0"):
        PowerCost(1.0)


@pytest.mark.parametrize("power", [1.5, 2.0, 3.0])
def test_the_loss_is_the_gap_to_the_optimal_velocity(power: float) -> None:
    cost = PowerCost(power)
    base, data = torch.randn(2, 40, 2, dtype=torch.float64)
    t = torch.rand(40, dtype=torch.float64)
    slope = torch.tensor([0.7, -1.2], dtype=torch.float64)
    loss = convex_flow_loss(lambda x, t: x @ slope, cost, base, data, t)
    assert bool((loss >= 0).all())
    exact = convex_flow_loss(lambda x, t: x @ slope, cost, base, base + cost.velocity(slope), t)
    torch.testing.assert_close(exact, torch.zeros_like(exact), atol=1e-12, rtol=0)
    if power == 2.0:
        torch.testing.assert_close(loss, 0.5 * (data - base - slope).square().sum(1))


def test_a_rotation_is_straight_already_and_optimal_after_one_step() -> None:
    """x_1 = R·x_0 is a fixed point of reflow; its projection on gradients flows along the identity, the optimum."""
    angle, path = 1.0, LinearPath()
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    base = torch.randn(4000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    data = base @ turn.T

    def rates(t: Tensor) -> Tensor:  # of the linear velocity of the pairs, (R − 1)((1 − t) + tR)⁻¹
        eye = torch.eye(2, dtype=torch.float64)
        return (turn - eye) @ torch.linalg.inv((1 - t)[:, None, None] * eye + t[:, None, None] * turn)

    def plain(x: Tensor, t: Tensor) -> Tensor:
        return torch.einsum("bij,bj->bi", rates(t), x)

    assert straightness(plain, base, path, steps=200) < 1e-6
    coefficients = torch.zeros(6, dtype=torch.float64, requires_grad=True)

    def potential(x: Tensor, t: Tensor) -> Tensor:  # ½·s(t)·|x|² with a polynomial s, odd about ½ by symmetry
        powers = torch.stack([(2 * t - 1) ** k for k in range(6)], 1)
        return 0.5 * (powers @ coefficients) * x.square().sum(1)

    optimizer = torch.optim.LBFGS([coefficients], max_iter=60, line_search_fn="strong_wolfe")
    t = torch.linspace(0, 1, len(base), dtype=torch.float64)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = convex_flow_loss(potential, PowerCost(2.0), base, data, t).mean()
        value.backward()
        return value

    optimizer.step(loss)
    times = torch.tensor([0.0, 0.25, 0.5, 0.9], dtype=torch.float64)
    gap = 1 - math.cos(angle)
    expected = (2 * times - 1) * gap / (1 - 2 * times * (1 - times) * gap)
    ones = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(4, 2)
    with torch.no_grad():
        found = 2 * potential(ones, times)
    torch.testing.assert_close(found, expected, atol=0.03, rtol=0.03)
    model = potential_velocity(potential, PowerCost(2.0))
    end = simulate(model, base[:200], path, prediction="velocity", method="heun", nfe=80)
    cost = float((end - base[:200]).square().sum(1).mean())
    assert cost < 0.01 * float((data - base)[:200].square().sum(1).mean())
