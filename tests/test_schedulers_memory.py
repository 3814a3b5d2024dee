"""Memory that a run writes again: never what somebody holds; and predictions that are computed when looked at."""

import copy
import operator
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.utils import send_to_device
from torch import Tensor

from pathline.samplers.schedulers import memory as memory_module
from pathline.samplers.schedulers.memory import Memory, memory_for
from support.schedulers import METHODS, make, network

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
            places.update(register.data_ptr() for register in registers(scheduler))
    assert len(places) <= 4


def registers(scheduler: Any) -> list[Tensor]:
    """Stored outputs, without telling the run that they were seen."""
    stepper = scheduler._stepper
    return [] if stepper is None else [stepper.values[v] for v in stepper.values if v in stepper._private]


@pytest.mark.parametrize("family", ["betas", "flow"])
@pytest.mark.parametrize("method", CASES)
def test_the_callers_own_memory_is_never_written(method: str, family: str) -> None:
    """Starts, edited states and network outputs that lie in arrays, storages or shared memory."""
    rng = np.random.default_rng(0)
    scheduler = make(family, method=method, seed=3)
    scheduler.set_timesteps(6)
    kept: list[tuple[Any, Any]] = []

    def held(array: np.ndarray[Any, Any]) -> Tensor:
        kept.append((array, array.copy()))
        return torch.from_numpy(array)

    def shared(tensor: Tensor) -> Tensor:
        tensor = tensor.clone().share_memory_()
        kept.append((tensor.untyped_storage(), tensor.clone()))
        return tensor

    with torch.no_grad():
        x = held(rng.standard_normal(SHAPE, dtype=np.float32))
        for k, t in enumerate(scheduler.timesteps):
            output = held(np.asarray(network(x, t)))
            x = scheduler.step(output, t, x, return_dict=False)[0]
            kept.append((x.untyped_storage(), x.clone()))
            x = (held(x.numpy() * np.float32(0.9)), shared(x), x)[k % 3]
    for now, before in kept:
        if isinstance(now, np.ndarray):
            assert np.array_equal(now, before)
        else:
            assert torch.equal(torch.empty(0).set_(now).reshape(SHAPE), before)


@pytest.mark.parametrize("family", ["betas", "flow"])
@pytest.mark.parametrize("method", METHODS)
def test_one_buffer_for_all_states(method: str, family: str) -> None:
    """A loop that copies every state into the same memory runs as one that does not."""
    one, other = (make(family, method=method, seed=3) for _ in range(2))
    with torch.no_grad():
        x = start()[:, :, :4, :4]
        buffer = x.clone()
        for scheduler in (one, other):
            scheduler.set_timesteps(5)
        for t in one.timesteps:
            x = one.step(network(x, t), t, x, return_dict=False)[0]
            buffer.copy_(other.step(network(buffer, t), t, buffer, return_dict=False)[0])
            torch.testing.assert_close(buffer, x, rtol=1e-5, atol=1e-5)
            found, expected = other.pred_original_sample, one.pred_original_sample
            assert found is not None
            assert expected is not None
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["heun", "dpm2", "plms", "res", "runge-kutta"])
def test_one_buffer_for_all_states_after_an_analytic_first_step(method: str) -> None:
    """The initial latents are read again after the first call, when the buffer holds another state."""
    one, other = (make("betas", method=method, options={"afs": True}) for _ in range(2))
    with torch.no_grad():
        x = start()[:, :, :4, :4]
        buffer = x.clone()
        for scheduler in (one, other):
            scheduler.set_timesteps(5)
        for t in one.timesteps:
            x = one.step(network(one.scale_model_input(x, t), t), t, x, return_dict=False)[0]
            output = network(other.scale_model_input(buffer, t), t)
            buffer.copy_(other.step(output, t, buffer, return_dict=False)[0])
            torch.testing.assert_close(buffer, x, rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_is_not_taken() -> None:
    like = start()
    with torch.no_grad():
        turned = like.transpose(2, 3).contiguous().transpose(2, 3)
        for other in (like.double(), like[:1].clone(), turned):
            store = Memory()
            store.give(other)
            assert store.take(like) is None
        with torch.inference_mode():
            store.give(start())
        assert store.take(like) is None
        store.give(start())
        assert store.take(like) is not None
        assert store.take(like) is None
    store.give(start())
    assert store.take(like) is None  # gradients are recorded


def test_small_states_are_left_to_the_allocator() -> None:
    assert memory_for(torch.zeros(4)) is None
    assert memory_for(start()) is not None


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
    assert isinstance(pair, tuple)
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
    assert copy.copy(pair)[1] is data
    assert torch.equal(pickle.loads(pickle.dumps(pair))[1], data)
    assert operator.add(pair, (1,)) == (previous, data, 1)
    assert operator.add((1,), pair) == (1, previous, data)
    assert (pair * 2)[3] is data
    assert repr(pair) == repr((previous, data))
    assert send_to_device(pair, "cpu")[1] is data
    before = data.clone()
    scheduler.step(network(previous, t), scheduler.timesteps[1], previous, return_dict=False)
    assert torch.equal(pair[1], before)


@pytest.mark.parametrize(("method", "kept"), [("euler", False), ("deis", False), ("dpm++", True), ("unipc", True)])
def test_a_prediction_whose_parts_were_changed_says_so(method: str, kept: bool) -> None:
    """In-place changes of what was handed in cannot reach what the run keeps, and are refused elsewhere."""
    scheduler, x = make("flow", method=method), start()
    scheduler.set_timesteps(4)
    with torch.no_grad():
        for t in scheduler.timesteps[:2]:
            output, state, before = network(x, t), x, copy.deepcopy(scheduler)
            x = scheduler.step(output, t, x, return_dict=False)[0]
        expected = before.step(output, t, state).pred_original_sample
        output.zero_()
        state.add_(1.0)
        if kept:
            assert torch.equal(scheduler.pred_original_sample, expected)
        else:
            with pytest.warns(UserWarning, match="changed in place"):
                assert scheduler.pred_original_sample is None


def test_a_prediction_under_gradients_has_its_graph() -> None:
    scheduler = make("flow", method="euler")
    scheduler.set_timesteps(3)
    x = start().requires_grad_()
    for t in scheduler.timesteps[:2]:
        pair = scheduler.step(network(x, t), t, x, return_dict=False)
        x = pair[0]
    with torch.no_grad():
        data = pair[1]
    assert data.requires_grad
