"""Where a run begins, what it leaves behind, and what it reads on the host."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pathline.samplers import from_diffusers, sample
from pathline.samplers.schedulers import (
    DDIMScheduler,
    DPMSolverPPScheduler,
    HeunScheduler,
    PathlineScheduler,
    UniPCScheduler,
)
from support.schedulers import METHODS, latents, make, network, point_mass, steps_over


@pytest.mark.parametrize("family", ["betas", "flow"])
@pytest.mark.parametrize("method", METHODS)
def test_every_begin_index_reaches_the_data(family: str, method: str) -> None:
    """With a network that knows the data, a run begun anywhere at the right level ends in the data."""
    scheduler, data = make(family, method=method, seed=0), latents(2)
    for steps in (1, 4):
        scheduler.set_timesteps(steps)
        for begin in range(len(scheduler.timesteps)):
            scheduler.set_timesteps(steps)
            scheduler.set_begin_index(begin)
            times = scheduler.timesteps[begin:]
            x = scheduler.add_noise(data, latents(3), times[:1].repeat(len(data)))
            for t in times:
                x = scheduler.step(point_mass(scheduler, data, x, t), t, x).prev_sample
            torch.testing.assert_close(x, data, rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    "config", [{"prediction_type": "epsilon", "timestep_spacing": "leading"}, {}], ids=["betas", "flow"]
)
@pytest.mark.parametrize("method", METHODS)
def test_every_begin_index_runs_where_the_last_level_is_repeated(method: str, config: dict[str, Any]) -> None:
    """The last call of such a run has nothing to do."""
    scheduler = PathlineScheduler(final_sigmas_type="sigma_min", pathline={"method": method, "seed": 0}, **config)
    scheduler.set_timesteps(5)
    for begin in range(len(scheduler.timesteps)):
        scheduler.set_timesteps(5)
        scheduler.set_begin_index(begin)
        x = steps_over(scheduler, latents(), scheduler.timesteps[begin:])
        assert torch.isfinite(x).all()
        with pytest.raises(ValueError, match="call set_timesteps for a new run"):
            scheduler.step(x, scheduler.timesteps[-1], x)


@pytest.mark.parametrize("form", ["clone", "float"])
@pytest.mark.parametrize("method", ["heun", "edm", "runge-kutta", "langevin-pc", "dpm++"])
def test_a_run_that_begins_by_value_opens_a_step(method: str, form: str) -> None:
    """With the exact velocity of one data point; entries of two calls are equal."""
    scheduler, data = make("flow", method=method, seed=0), latents(2)
    scheduler.set_timesteps(5)
    for entry in scheduler.timesteps.unique():
        scheduler.set_timesteps(5)
        given = entry.clone() if form == "clone" else float(entry)
        x = scheduler.add_noise(data, latents(3), entry.repeat(len(data)))
        x = scheduler.step(point_mass(scheduler, data, x, entry), given, x).prev_sample
        for t in scheduler.timesteps[scheduler.step_index :]:
            x = scheduler.step(point_mass(scheduler, data, x, t), t, x).prev_sample
        torch.testing.assert_close(x, data, rtol=0, atol=2e-4)
        assert scheduler.step_index == len(scheduler.timesteps)


def test_a_compiled_loop_says_that_it_needs_a_begin_index() -> None:
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(3)
    times = list(scheduler.timesteps)
    with pytest.raises(Exception, match=r"call scheduler\.set_begin_index"):
        torch.compile(lambda x: scheduler.step(x, times[0], x, return_dict=False)[0], fullgraph=True)(latents())


@pytest.mark.parametrize("family", ["betas", "flow"])
@pytest.mark.parametrize("method", ["dpm++", "unipc", "heun", "ipndm"])
def test_a_late_start_is_a_fresh_run(family: str, method: str) -> None:
    scheduler = make(family, method=method)
    scheduler.set_timesteps(8)
    node = 3
    begin = int(np.argmin(np.abs(scheduler.timesteps.numpy() - labels_of_nodes(scheduler)[node])))
    begin += method == "heun"  # the first call at a node belongs to the step before
    for how in ("begin_index", "sliced"):
        scheduler.set_timesteps(8)
        if how == "begin_index":
            scheduler.set_begin_index(begin)
        ours = steps_over(scheduler, latents(), scheduler.timesteps[begin:])
        theirs = sample(from_diffusers(network, scheduler), latents(), method=method, grid=scheduler.nodes.part(node))
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6 * float(theirs.abs().max()))


def labels_of_nodes(scheduler: PathlineScheduler) -> np.ndarray:
    total, flow = scheduler.config.num_train_timesteps, scheduler.config.prediction_type == "flow_prediction"
    return total * (1 - scheduler.nodes.time) - (0 if flow else 1)


def test_begin_in_the_middle_of_a_heun_step_keeps_the_number_of_calls() -> None:
    scheduler = HeunScheduler()
    scheduler.set_timesteps(6)
    scheduler.set_begin_index(3)
    before = latents()
    first = scheduler.step(network(before, scheduler.timesteps[3]), scheduler.timesteps[3], before).prev_sample
    assert torch.equal(first, before)  # the next call is at the same level
    steps_over(scheduler, first, scheduler.timesteps[4:])
    assert scheduler.step_index == len(scheduler.timesteps)


def test_there_is_no_step_beyond_the_last_one() -> None:
    scheduler = UniPCScheduler()
    with pytest.raises(ValueError, match="set_timesteps"):
        scheduler.step(latents(), 1.0, latents())
    scheduler.set_timesteps(3)
    x = steps_over(scheduler, latents(), scheduler.timesteps)
    with pytest.raises(ValueError, match="3 calls"):
        scheduler.step(x, 1.0, x)
    scheduler.set_timesteps(3)
    scheduler.set_begin_index(3)
    with pytest.raises(ValueError, match="3 calls"):
        scheduler.step(x, 1.0, x)


def test_abandoned_runs_and_interleaved_copies_leave_nothing_behind() -> None:
    scheduler = UniPCScheduler(pathline={"options": {"order": 3}})
    scheduler.set_timesteps(7)
    whole = steps_over(scheduler, latents(), scheduler.timesteps)
    scheduler.set_timesteps(9)
    steps_over(scheduler, latents(5), scheduler.timesteps[:4])
    scheduler.set_timesteps(7)
    assert scheduler.step_index is None
    half = steps_over(scheduler, latents(), scheduler.timesteps[:3])
    other = copy.deepcopy(scheduler)
    ends = [steps_over(s, half, s.timesteps[3:]) for s in (scheduler, other)]
    for end in ends:
        assert torch.equal(end, whole)


def test_a_position_changed_from_outside_restarts_there() -> None:
    scheduler = DPMSolverPPScheduler()
    scheduler.set_timesteps(6)
    x = steps_over(scheduler, latents(), scheduler.timesteps[:2])
    again = scheduler.step(network(x, scheduler.timesteps[2]), scheduler.timesteps[2], x).prev_sample
    scheduler._step_index -= 1
    redone = scheduler.step(network(x, scheduler.timesteps[2]), scheduler.timesteps[2], x).prev_sample
    assert scheduler.step_index == 3
    assert not torch.equal(again, redone)  # history is gone: a fresh step
    assert torch.isfinite(steps_over(scheduler, redone, scheduler.timesteps[3:])).all()


@pytest.mark.parametrize("kind", ["entry", "clone", "float", "half"])
def test_the_first_timestep_may_come_in_any_form(kind: str) -> None:
    forms = {"entry": lambda t: t, "clone": lambda t: t.clone(), "float": float, "half": lambda t: t.to(torch.bfloat16)}
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(10)
    scheduler.step(latents(), forms[kind](scheduler.timesteps[4]), latents())
    assert scheduler.step_index == 5


def test_an_index_instead_of_a_time_is_refused() -> None:
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(5)
    with pytest.raises(ValueError, match="is an index, not a time"):
        scheduler.step(latents(), 2, latents())


class HostReads(TorchDispatchMode):
    """Collects the operations that would make a device wait for the host."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "item", "equal", "is_nonzero", "masked_select", "unique"):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", ["betas", "flow"])
@pytest.mark.parametrize("method", METHODS)
def test_steps_read_nothing_on_the_host(family: str, method: str) -> None:
    scheduler = make(family, method=method)
    scheduler.set_timesteps(5)
    x = latents().float()
    reads = HostReads()
    with reads:
        for t in scheduler.timesteps:
            x = scheduler.step(x * 0.9, t, x + 0.001, return_dict=False)[0]
    assert reads.seen == []
    assert float(reads.seen == []) == 1.0


@pytest.mark.parametrize("method", ["unipc", "ddim"])
def test_a_loop_of_steps_compiles_as_one_graph(method: str) -> None:
    scheduler = make("betas", method=method, seed=1, options={"eta": 1.0} if method == "ddim" else {})

    def loop(x: torch.Tensor) -> torch.Tensor:
        for t in times:
            x = scheduler.step(torch.tanh(x), t, x, return_dict=False)[0]
        return x

    results = []
    for run_loop in (loop, torch.compile(loop, fullgraph=True, backend="aot_eager")):
        scheduler.set_timesteps(4)
        scheduler.set_begin_index(0)
        times = list(scheduler.timesteps)
        results.append(run_loop(latents(dtype=torch.bfloat16)))
    assert torch.equal(*results)
