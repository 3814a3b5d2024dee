"""Couplings within a training run: which noise goes with which image."""

import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pathline.interpolants import coupling_by_name, squared_distance
from pathline.training import ArraySet, BatchPlan, KeyedDraws, load_data, resolve_options
from pathline.training.coupled_noise import CoupledNoise
from support.training_runs import fresh_accelerate, losses, resumed_equals_unbroken, run, same, weights


@pytest.fixture(autouse=True)
def accelerate_state() -> Iterator[None]:
    with fresh_accelerate():
        yield


def digits() -> ArraySet:
    data = load_data("digits")
    assert isinstance(data, ArraySet)
    return data


def coupled(name: str, block: int, split: tuple[int, int, int] = (16, 1, 1), **settings: Any) -> CoupledNoise:
    data = digits()
    plan = BatchPlan(len(data), *split, seed=3)
    make = partial(coupling_by_name, name, **settings)
    return CoupledNoise(data, plan, KeyedDraws(3, plan.global_batch), make, block=block)


def pairs(name: str, block: int, **settings: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, noises, labels and partners of one block."""
    found = coupled(name, block, **settings).partners(torch.arange(block))
    plan = BatchPlan(len(digits()), 16, 1, 1, seed=3)
    batch = digits().__getitems__(plan.indices_at(torch.arange(block)))
    noise = KeyedDraws(3, 16).noise_at(torch.arange(block), batch.images)
    assert batch.labels is not None
    return batch.images, noise, batch.labels, found


def test_noise_by_position_is_that_of_step_and_place() -> None:
    draws, like = KeyedDraws(5, 6), torch.empty(8, 1, 2, 2)
    found = draws.noise_at(torch.tensor([13, 0, 5, 6, 17, 12, 1, 2]), like)
    for entry, (step, place) in zip(
        found, [(2, 1), (0, 0), (0, 5), (1, 0), (2, 5), (2, 0), (0, 1), (0, 2)], strict=True
    ):
        assert torch.equal(entry, draws.noise(step, torch.tensor([place]), like[:1])[0])


@pytest.mark.parametrize("name", ["ot", "sinkhorn", "newton", "c2ot"])
def test_pairs_depend_on_the_position_alone(name: str) -> None:
    settings = {"each_data": True, "regularisation": 10.0} if name in ("sinkhorn", "newton") else {}
    positions = torch.arange(70)
    whole = coupled(name, 24, **settings).partners(positions)
    parts = coupled(name, 24, split=(2, 4, 2), **settings)
    order = [positions[start : start + 2] for start in range(0, 70, 2)]
    assert torch.equal(whole, torch.cat([parts.partners(part) for part in order]))
    assert torch.equal(whole[50:60], coupled(name, 24, **settings).partners(positions[50:60]))  # as after a resume
    assert torch.equal(whole // 24, positions // 24)


def test_transport_uses_each_noise_once_and_shortens_the_way() -> None:
    images, noise, _, found = pairs("ot", 64)
    assert torch.equal(found.sort().values, torch.arange(64))
    cost = squared_distance(noise, images)
    assert cost[found, torch.arange(64)].mean() < 0.95 * cost.diagonal().mean()
    small = torch.cat([coupled("ot", 8).partners(torch.arange(start, start + 8)) for start in range(0, 64, 8)])
    assert cost[found, torch.arange(64)].mean() < cost[small, torch.arange(64)].mean()  # a larger block does better


def test_conditional_transport_keeps_the_noise_independent_of_the_class() -> None:
    _, _, labels, found = pairs("c2ot", 64)
    assert torch.equal(labels[found], labels)
    assert not torch.equal(found, torch.arange(64))
    _, _, labels, plain = pairs("ot", 64)
    assert not torch.equal(labels[plain], labels)


def test_flips_are_coupled_as_they_are_trained() -> None:
    data = digits()
    plan = BatchPlan(len(data), 16, 1, 1, seed=0)
    draws = KeyedDraws(0, 16)
    seen: list[torch.Tensor] = []

    def spy(base: torch.Tensor, images: torch.Tensor, condition: Any = None, generator: Any = None) -> Any:
        seen.append(images)
        return coupling_by_name("independent")(base, images)

    CoupledNoise(data, plan, draws, lambda: spy, block=32, flipped=True).partners(torch.arange(1))
    plain = data.__getitems__(plan.indices_at(torch.arange(32))).images
    flips = torch.cat([draws.flips(step, torch.arange(16)) for step in (0, 1)])
    assert 0 < int(flips.sum()) < 32
    assert torch.equal(seen[0], torch.where(flips[:, None, None, None], plain.flip(-1), plain))


def test_blocks_are_made_ahead_while_the_network_runs_and_are_the_same() -> None:
    data, plan = digits(), BatchPlan(len(digits()), 16, 1, 1, seed=3)
    threads: list[str] = []
    begun = threading.Event()

    def make() -> Any:
        threads.append(threading.current_thread().name)
        if len(threads) == 2:
            begun.set()
        return coupling_by_name("ot")

    ahead = CoupledNoise(data, plan, KeyedDraws(3, 16), make, block=24, end=72)
    plain = coupled("ot", 24)
    first = ahead.partners(torch.arange(16))
    assert begun.wait(20)  # the second block is begun before anything asks for it
    parts = [first, *(ahead.partners(torch.arange(start, start + 16)) for start in (16, 32, 48))]
    assert torch.equal(torch.cat(parts), plain.partners(torch.arange(64)))
    assert len(threads) == 3  # nothing beyond the end, nothing twice
    assert threads[1].startswith("coupling")
    assert torch.equal(ahead.partners(torch.arange(200, 216)), plain.partners(torch.arange(200, 216)))

    def fails() -> Any:
        if threading.current_thread().name.startswith("coupling"):
            raise ValueError("no plan")
        return coupling_by_name("ot")

    broken = CoupledNoise(data, plan, KeyedDraws(3, 16), fails, block=24, end=72)
    broken.partners(torch.arange(16))
    with pytest.raises(ValueError, match="no plan"):
        broken.partners(torch.arange(24, 30))


@pytest.mark.parametrize(
    "options",
    [
        {"coupling": "ot", "coupling_batch": 20, "random_flip": True},
        {"coupling": "c2ot", "class_conditional": True, "coupling_batch": 40, "coupling_config": {"ratio": 0.1}},
        pytest.param({"coupling": "sinkhorn", "coupling_config": {"regularisation": 5.0}}, marks=pytest.mark.slow),
    ],
    ids=["ot", "c2ot", "sinkhorn"],
)
def test_coupled_runs_resume_bit_for_bit(tmp_path: Path, options: dict[str, Any]) -> None:
    again = resumed_equals_unbroken(tmp_path, **options)
    plain = run(tmp_path / "plain", class_conditional=options.get("class_conditional", False))
    assert not same(weights(again), weights(plain))


def test_coupled_micro_batches_equal_one_batch(tmp_path: Path) -> None:
    options = {"logging_steps": 1, "adam_epsilon": 1e-3, "coupling": "ot", "coupling_batch": 12}
    whole = run(tmp_path / "whole", **options)
    parts = run(tmp_path / "parts", **options, train_batch_size=2, gradient_accumulation_steps=4)
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"coupling": "ott"}, "unknown coupling 'ott'; did you mean 'ot'"),
        ({"coupling": "ot", "coupling_config": {"reg": 1}}, "unknown parameter of the coupling 'ot' 'reg'"),
        (
            {"coupling": "sinkhorn", "coupling_config": {"regularisation": -1}},
            "regularisation must be .* above 0, got -1",
        ),
        ({"coupling": "newton", "coupling_config": {"tolerance": 0}}, "tolerance must be .* above 0, got 0"),
        ({"coupling": "sinkhorn", "coupling_config": {"regularisation": "x"}}, "'x' .* must be a number"),
        ({"coupling": "c2ot", "coupling_config": {"ratio": 2.0}}, r"ratio=2\.0"),
        ({"coupling": "ot", "coupling_config": {"power": 1}}, "power=1"),
        ({"coupling": "ot", "coupling_config": {"power": float("inf")}}, "power=inf"),
        ({"coupling": "ot", "coupling_batch": 1}, "coupling_batch must be at least 2, got 1"),
        ({"coupling_batch": 8}, "coupling_batch=8 needs a coupling other than 'independent'"),
    ],
)
def test_bad_couplings_are_refused_before_any_work(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        run(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_conditional_transport_needs_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", arr_0=np.zeros((12, 8, 8, 1), np.uint8))
    with pytest.raises(ValueError, match=r"coupling 'c2ot' needs labels, and data set .* has none"):
        run(tmp_path / "out", train_data_dir=str(tmp_path / "x.npz"), coupling="c2ot")


def test_conditional_transport_of_a_network_without_labels_is_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = "the network is not told the class"
    run(tmp_path / "plain", coupling="c2ot", max_train_steps=1)
    assert told in capsys.readouterr().out
    run(tmp_path / "classes", coupling="c2ot", max_train_steps=1, class_conditional=True)
    assert told not in capsys.readouterr().out


def test_options_with_a_coupling_survive_json() -> None:
    options = resolve_options({"coupling": "ot", "coupling_config": {"power": 3}, "coupling_batch": 256})
    assert resolve_options(options.to_dict()) == options


@pytest.mark.parametrize(("coupling", "warned"), [("ot", True), ("c2ot", False)])
def test_plain_transport_with_classes_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], coupling: str, warned: bool
) -> None:
    run(tmp_path, class_conditional=True, coupling=coupling, max_train_steps=1)
    said = capsys.readouterr().out
    assert ("ties the noise to the condition" in said) == warned
    assert ("use --coupling c2ot" in said) == warned
