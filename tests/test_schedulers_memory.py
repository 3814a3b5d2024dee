"""Memory that a run writes again: never what somebody holds; and predictions that are computed when looked at."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from pathline.samplers.schedulers import memory as memory_module
from pathline.samplers.schedulers.memory import Memory
from pathline.samplers.schedulers.output import StepPair
from support.schedulers import make, network

SHAPE = (2, 4, 64, 64)  # 128 KB
CASES = ["unipc", "heun", "deis", "ddpm", "edm", "er-sde", "dpm++"]


def start() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


def states(method: str, family: str) -> Iterator[tuple[Tensor, Tensor | None]]:
    scheduler = make(family, method=method, seed=3)
    scheduler.set_timesteps(6)
    x = start()
    for t in scheduler.timesteps:
        x, data = scheduler.step(network(x, t), t, x, return_dict=False)
        yield x, data


@pytest.mark.parametrize("family", ["betas", "flow"])
@pytest.mark.parametrize("method", CASES)
def test_states_that_the_caller_keeps_stay_as_they_were(
    method: str, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.inference_mode():
        last = None
        for last, _ in states(method, family):  # noqa: B007  (nothing is kept: memory goes round)
            pass
        kept = list(states(method, family))
        views = [x[0] for x, _ in states(method, family)]
        arrays = [x.numpy() for x, _ in states(method, family)]
    monkeypatch.setattr(memory_module, "_LARGE", 1 << 40)
    with torch.no_grad():
        fresh = list(states(method, family))
    assert last is not None
    assert torch.equal(last, fresh[-1][0])
    for (x, data), (expected, expected_data), view, array in zip(kept, fresh, views, arrays, strict=True):
        assert torch.equal(x, expected)
        assert torch.equal(view, expected[0])
        assert torch.equal(torch.from_numpy(array), expected)
        assert data is not None
        assert expected_data is not None
        assert torch.equal(data, expected_data)


def test_memory_goes_round_where_nobody_holds_it() -> None:
    scheduler = make("betas", method="deis", seed=3)
    scheduler.set_timesteps(30)
    x, places = start(), set()
    with torch.inference_mode():
        out = network(x, scheduler.timesteps[0])
        for t in scheduler.timesteps:
            x = scheduler.step(out, t, x, return_dict=False)[0]
            places.add(x.data_ptr())
    assert len(places) <= 6


def test_only_memory_that_nobody_holds_is_taken() -> None:
    like = start()
    with torch.no_grad():
        for hold in (lambda t: t, lambda t: t[0], lambda t: t.numpy(), lambda t: t.detach()):
            store, tensor = Memory(like), start()
            held = hold(tensor)
            store.give(tensor)
            del tensor
            assert store.take(like) is None
            del held
            assert store.take(like) is not None
            assert store.take(like) is None


def test_what_does_not_fit_is_not_taken() -> None:
    like = start()
    with torch.no_grad():
        for other in (
            like.double(),
            like[:1].clone(),
            like.transpose(2, 3).clone().transpose(2, 3),
            like.repeat(2, 1, 1, 1)[:2],
        ):
            store = Memory(like)
            store.give(other)
            del other
            assert store.take(like) is None
        with torch.inference_mode():
            store.give(start())
        assert store.take(like) is None
    store.give(start())
    assert store.take(like) is None  # gradients are recorded
    small = torch.zeros(4)
    store = Memory(small)
    store.give(torch.zeros(4))
    with torch.no_grad():
        assert store.take(small) is None


def test_gradients_pass_through_a_run_of_large_states() -> None:
    x = start().requires_grad_()
    scheduler = make("flow", method="unipc", seed=0)
    scheduler.set_timesteps(4)
    y = x
    for t in scheduler.timesteps:
        y = scheduler.step(network(y, t), t, y).prev_sample
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert float(gradient.abs().max()) > 0


def test_a_copy_in_mid_run_shares_no_memory() -> None:
    scheduler = make("flow", method="deis", seed=0)
    scheduler.set_timesteps(6)
    x = start()
    with torch.inference_mode():
        for t in scheduler.timesteps[:3]:
            x = scheduler.step(network(x, t), t, x, return_dict=False)[0]
        other, y = copy.deepcopy(scheduler), x.clone()
        for t in scheduler.timesteps[3:]:
            x = scheduler.step(network(x, t), t, x, return_dict=False)[0]
            y = other.step(network(y, t), t, y, return_dict=False)[0]
    assert torch.equal(x, y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pair_is_a_tuple_whose_prediction_is_computed_once(dtype: torch.dtype) -> None:
    scheduler, named = make("flow", method="euler"), make("flow", method="euler")
    x = start().to(dtype)
    for one in (scheduler, named):
        one.set_timesteps(3)
    t = scheduler.timesteps[0]
    output = network(x, t)
    pair, expected = scheduler.step(output, t, x, return_dict=False), named.step(output, t, x)
    assert isinstance(pair, StepPair)
    assert len(pair) == 2
    previous, data = pair
    assert torch.equal(previous, expected.prev_sample)
    assert torch.equal(data, expected.pred_original_sample)
    assert data.dtype == dtype
    assert data is pair[1] is pair[-1] is scheduler.pred_original_sample is tuple(pair)[1]
    assert pair[:1] == (previous,)
    assert pair[0] is previous
    with pytest.raises(IndexError):
        pair[2]
    before = data.clone()
    scheduler.step(network(previous, t), scheduler.timesteps[1], previous, return_dict=False)
    assert torch.equal(pair[1], before)
