"""What users may do with the tensors of a run while it goes on: take, edit, copy, pickle, replace."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from pathline.samplers.schedulers import (
    DDIMScheduler,
    DPMSolverPPScheduler,
    HeunScheduler,
    PathlineScheduler,
    UniPCScheduler,
)
from support.schedulers import latents, make, network

METHODS = ("unipc", "dpm++", "ddim", "deis", "heun", "sa", "euler-ancestral")
LARGE = (1, 4, 128, 128)  # so that memory is written again


def run(scheduler: PathlineScheduler, x: Tensor, between: Any = None, steps: int = 6) -> Tensor:
    scheduler.set_timesteps(steps)
    for k, t in enumerate(scheduler.timesteps):
        out = scheduler.step(network(x, t), t, x, generator=torch.Generator().manual_seed(1))
        x = out.prev_sample
        if between is not None:
            between(k, scheduler, out)
    return x


@pytest.mark.parametrize("rule", [{}, {"clip_sample": True}])
@pytest.mark.parametrize("prediction", ["flow_prediction", "epsilon", "sample"])
@pytest.mark.parametrize("method", METHODS)
def test_a_data_prediction_has_memory_of_its_own(method: str, prediction: str, rule: dict[str, bool]) -> None:
    def halve(k: int, scheduler: PathlineScheduler, out: Any) -> None:
        del k, scheduler
        out.pred_original_sample.mul_(0.5)

    def scheduler() -> PathlineScheduler:
        return PathlineScheduler(prediction_type=prediction, **rule, pathline={"method": method, "seed": 0})

    x = latents(dtype=torch.float32)
    assert torch.equal(run(scheduler(), x), run(scheduler(), x, halve))


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), LARGE])
@pytest.mark.parametrize("method", METHODS)
def test_copies_and_pickles_in_mid_run_have_the_data_prediction(method: str, shape: tuple[int, ...]) -> None:
    scheduler = make("betas", method=method, seed=3)
    scheduler.set_timesteps(5)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for t in scheduler.timesteps[:3]:
            x = scheduler.step(network(x, t), t, x, return_dict=False)[0]
        others = copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))
        for other in others:
            assert torch.equal(other.pred_original_sample, scheduler.pred_original_sample)
        ends = []
        for each in (scheduler, *others):
            y = x
            for t in each.timesteps[3:]:
                y = each.step(network(y, t), t, y, return_dict=False)[0]
            ends.append(y)
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


def test_a_lost_prediction_raises_where_it_is_asked_for_and_nowhere_else() -> None:
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(4)
    buffer, x = torch.zeros(1, 4, 8, 8), latents(dtype=torch.float32)[:1]
    x = torch.cat([x, x[:, :1]], 1).repeat(1, 1, 2, 2)
    with torch.no_grad():
        for t in scheduler.timesteps[:2]:
            buffer.copy_(0.5 * x)
            pair = scheduler.step(buffer, t, x, return_dict=False)
            x = pair[0]
        buffer.zero_()
    with pytest.warns(UserWarning, match="changed in place"):
        assert scheduler.pred_original_sample is None
    assert "not taken in time" in repr(pair)
    with pytest.raises(RuntimeError, match="changed in place"):
        pair[1]
    copied = copy.deepcopy(scheduler)
    with pytest.warns(UserWarning, match="changed in place"):
        assert copied.pred_original_sample is None


@pytest.mark.parametrize("family", ["betas", "flow"])
@pytest.mark.parametrize("method", ["unipc", "dpm++", "deis"])
def test_the_history_obeys_every_kind_of_edit(method: str, family: str) -> None:
    def in_place(k: int, scheduler: PathlineScheduler, out: Any) -> None:
        del out
        if k == 2:
            for register in scheduler.model_outputs:
                register.mul_(0.9)  # type: ignore[union-attr]

    def by_slice(k: int, scheduler: PathlineScheduler, out: Any) -> None:
        del out
        if k == 2:
            shown = scheduler.model_outputs
            shown[:] = [0.9 * register for register in shown]  # type: ignore[operator]

    def assigned(k: int, scheduler: PathlineScheduler, out: Any) -> None:
        del out
        if k == 2:
            scheduler.model_outputs = [0.9 * register for register in scheduler.model_outputs]  # type: ignore[operator]

    ends = [run(make(family, method=method), latents(), edit) for edit in (None, in_place, by_slice, assigned)]
    assert not torch.allclose(ends[0], ends[1])
    for end in ends[2:]:
        torch.testing.assert_close(end, ends[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("place", [0, slice(None)])
def test_a_history_takes_tensors_only(place: int | slice) -> None:
    scheduler, x = make("betas", method="dpm++"), latents()
    scheduler.set_timesteps(4)
    for t in scheduler.timesteps[:2]:
        x = scheduler.step(network(x, t), t, x).prev_sample
    with pytest.raises(ValueError, match=r"takes 1 tensor\(s\) of the run"):
        scheduler.model_outputs[place] = None if place == 0 else [None]  # type: ignore[index,call-overload]


def test_shapes_are_compared_in_every_step() -> None:
    scheduler = UniPCScheduler()
    scheduler.set_timesteps(4)
    x = latents()
    for k, t in enumerate(scheduler.timesteps[:2]):
        output = network(x, t)
        if k == 1:
            with pytest.raises(ValueError, match="they must be the same"):
                scheduler.step(output[:1], t, x)
        x = scheduler.step(output, t, x).prev_sample


@pytest.mark.parametrize("shape", [(4, 2, 4, 4), (1, 8, 4, 4)])
def test_shapes_of_as_many_values_are_told_apart(shape: tuple[int, ...]) -> None:
    scheduler = UniPCScheduler()
    scheduler.set_timesteps(4)
    x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    t = scheduler.timesteps
    with pytest.raises(ValueError, match="they must be the same"):
        scheduler.step(torch.tanh(x).reshape(shape), t[0], x)
    for k in range(2):
        x = scheduler.step(torch.tanh(x), t[k], x).prev_sample
    other = x.reshape(shape)
    with pytest.raises(ValueError, match=r"do the same to scheduler\.model_outputs"):
        scheduler.step(torch.tanh(other), t[2], other)


def test_a_data_prediction_not_yet_taken_is_that_of_before_an_edit_of_the_history() -> None:
    found = []
    for taken_first in (True, False):
        scheduler, x = make("flow", method="unipc"), latents()
        scheduler.set_timesteps(5)
        for t in scheduler.timesteps[:3]:
            pair = scheduler.step(network(x, t), t, x, return_dict=False)
            x = pair[0]
        before = pair[1] if taken_first else None
        for register in scheduler.model_outputs:
            register.mul_(0.5)  # type: ignore[union-attr]
        found.append(before if taken_first else pair[1])
    assert torch.equal(*found)


def test_options_survive_a_change_of_class_and_a_file(tmp_path: Any) -> None:
    source = PathlineScheduler().config
    third = DPMSolverPPScheduler.from_config(source, pathline={"options": {"order": 3}})
    third.save_pretrained(tmp_path)
    for again in (DPMSolverPPScheduler.from_pretrained(tmp_path), DPMSolverPPScheduler.from_config(third.config)):
        again.set_timesteps(6)
        assert (again.table.method, again.table.options["order"]) == ("dpm++", 3)
    back = PathlineScheduler.from_config(HeunScheduler.from_config(source).config)
    back.set_timesteps(4)
    assert back.table.method == "heun"


def test_a_default_device_elsewhere_leaves_no_trace() -> None:
    ends = []
    for default in ("cpu", "meta"):
        scheduler = UniPCScheduler()
        scheduler.set_timesteps(6, device="cpu")
        scheduler.set_begin_index(0)
        x = latents()
        with torch.device(default):
            for t in scheduler.timesteps:
                x = scheduler.step(torch.tanh(x), t, x).prev_sample
        ends.append(x)
    assert torch.equal(*ends)


def test_forward_derivatives_of_large_states() -> None:
    schedulers = [make("flow", method="unipc") for _ in range(2)]
    for scheduler in schedulers:
        scheduler.set_timesteps(5)
        scheduler.set_begin_index(0)
    x = torch.randn(LARGE, generator=torch.Generator().manual_seed(0))
    times = list(schedulers[0].timesteps)

    def loop(y: Tensor) -> Tensor:
        scheduler = schedulers.pop()
        for t in times:
            y = scheduler.step(0.3 * y, t, y, return_dict=False)[0]
        return y

    with torch.no_grad():
        _, tangent = torch.func.jvp(loop, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, loop(torch.ones_like(x)), rtol=1e-5, atol=1e-5)  # the loop is linear


@pytest.mark.parametrize(
    ("method", "begin", "mode"),
    [("unipc", 0, torch.no_grad), ("euler", 1, torch.inference_mode), ("ddpm", 0, torch.enable_grad)],
)
def test_a_fresh_scheduler_compiles(method: str, begin: int, mode: Any) -> None:
    """Nothing of a run may be left to be made inside of the compiled loop."""
    scheduler = make("betas", method=method, seed=1)
    scheduler.set_timesteps(4)
    scheduler.set_begin_index(begin)
    times = list(scheduler.timesteps[begin:])

    def loop(x: Tensor) -> Tensor:
        for t in times:
            x = scheduler.step(torch.tanh(x), t, x, return_dict=False)[0]
        return x

    with mode():
        found = torch.compile(loop, fullgraph=True, backend="aot_eager")(latents(dtype=torch.float32))
    scheduler.set_timesteps(4)
    scheduler.set_begin_index(begin)
    torch.testing.assert_close(found, loop(latents(dtype=torch.float32)), rtol=1e-5, atol=1e-5)


def test_a_start_past_the_end_is_refused_by_the_step() -> None:
    scheduler = UniPCScheduler()
    scheduler.set_timesteps(4)
    scheduler.set_begin_index(4)  # an in-painting pipeline with too little strength goes on to say so itself
    with pytest.raises(ValueError, match="call 4 is not possible"):
        scheduler.step(latents(), scheduler.timesteps[-1], latents())
