"""Fewer passes over the memory, and rows as compiled functions."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pathline.samplers.schedulers.fused as fused
from pathline.samplers.combine import Combiner
from pathline.samplers.schedulers.passes import RAW, inlined, passes, without
from pathline.samplers.table import Update
from support.schedulers import latents, make, steps_over

INPUTS = (0, 1, 2)


@st.composite
def straight_line(draw: st.DrawFn) -> list[Update]:
    """Updates of fresh targets, each from anything before it."""
    known, updates = list(INPUTS), []
    for target in range(3, 3 + draw(st.integers(1, 6))):
        chosen = draw(st.lists(st.sampled_from(known), min_size=1, max_size=3, unique=True))
        terms = tuple((v, draw(st.sampled_from([1.0, 0.5, -0.25, 2.0]))) for v in chosen)
        updates.append(Update(target, terms))
        known.append(target)
    return updates


def outcome(updates: Any, **more: torch.Tensor) -> dict[int, torch.Tensor]:
    values = {v: torch.randn(5, generator=torch.Generator().manual_seed(v), dtype=torch.float64) for v in INPUTS}
    values |= {RAW: torch.linspace(-1, 1, 5, dtype=torch.float64)} | {int(k): v for k, v in more.items()}
    combine = Combiner(torch.device("cpu"))
    for target, terms in updates:
        values[target] = combine(terms, values)
    return values


@given(straight_line(), st.data())
@settings(max_examples=200, deadline=None)
def test_inlined_updates_compute_the_same_with_no_more_passes(updates: list[Update], data: st.DataObject) -> None:
    targets = [u.target for u in updates]
    dying = data.draw(st.sets(st.sampled_from([*INPUTS, *targets[:-1]])))
    short = inlined(updates, dying)
    assert passes(short) <= passes(updates)
    before, after = outcome(updates), outcome(short)
    for target in set(targets) - dying:
        torch.testing.assert_close(after[target], before[target], rtol=1e-12, atol=1e-12)


def test_a_chain_of_updates_that_die_becomes_one() -> None:
    chain = (Update(6, ((1, 0.5), (2, 0.5))), Update(4, ((0, 0.05), (6, 0.97))), Update(5, ((4, 0.7), (2, 0.3))))
    (only,) = inlined(chain, {0, 1, 2, 4, 6})
    assert only.target == 5
    assert dict(only.terms) == pytest.approx({0: 0.035, 1: 0.7 * 0.97 * 0.5, 2: 0.3 + 0.7 * 0.97 * 0.5})


def test_an_output_used_once_is_replaced_by_what_it_is_made_of() -> None:
    (spared,) = without([Update(3, ((0, 1.0), (2, 0.5)))], 2, 0, (0.25, -2.0))
    assert dict(spared.terms) == {0: 1.125, RAW: -1.0}
    (bare,) = without([Update(3, ((0, 1.0), (2, 0.5)))], 2, 0, (0.0, 1.0))
    assert dict(bare.terms) == {0: 1.0, RAW: 0.5}


def test_passes_of_a_step() -> None:
    """The counts that the overhead beside the network comes from, conversion to the data prediction included."""

    def of(method: str, family: str) -> list[int]:
        scheduler = make(family, method=method)
        scheduler.set_timesteps(10)
        calls = scheduler._ready().plan(0).calls
        costs = []
        for call in calls:
            convert = ((call.convert[0] != 0) + (call.convert[1] != 1)) if call.stored else 0
            if call.stored and call.convert[0] == 1.0:
                convert = 1
            data = ((call.data[0] not in (0.0, 1.0)) + 1) if call.data else 0
            costs.append(convert + data + passes(call.updates))
        return costs[4:7]

    assert of("euler", "flow") == [2, 2, 2]
    assert of("dpm++", "betas") == [4, 4, 4]
    assert of("unipc", "betas") == [6, 6, 6]


def test_an_output_that_is_kept_is_not_the_memory_of_the_network() -> None:
    """A network compiled with CUDA graphs writes its next output over the last one."""
    scheduler = make("betas", method="ipndm")
    ends = []
    for fresh in (True, False):
        scheduler.set_timesteps(6)
        x, memory = latents(), torch.empty_like(latents())
        for t in scheduler.timesteps:
            output = torch.tanh(x) if fresh else torch.tanh(x, out=memory)
            x = scheduler.step(output, t, x, return_dict=False)[0]
        ends.append(x)
    assert torch.equal(*ends)


# --- compiled rows ------------------------------------------------------------------------------------------


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compilation without a backend that needs a C compiler."""
    monkeypatch.setattr(fused.torch, "compile", partial(torch.compile, backend="aot_eager"))
    fused._compiled.cache_clear()
    yield
    fused._compiled.cache_clear()


def pair(family: str, method: str, **pathline: Any) -> tuple[Any, Any]:
    schedulers = [make(family, method=method, seed=3, fused=on, **pathline) for on in (False, True)]
    for scheduler in schedulers:
        scheduler.set_timesteps(5)
    return schedulers[0], schedulers[1]


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(
    ("family", "method", "options"),
    [
        ("betas", "unipc", {}),
        ("betas", "ddim", {"eta": 1.0}),
        ("betas", "heun", {}),
        ("betas", "sa", {}),
        ("flow", "euler", {}),
        ("flow", "dpm++", {}),
        ("flow", "seeds", {}),
    ],
)
def test_compiled_rows_give_the_same_run(family: str, method: str, options: dict[str, Any]) -> None:
    plain, compiled = pair(family, method, options=options)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.bfloat16, 0.02)):
        ends = []
        for scheduler in (plain, compiled):
            scheduler.set_timesteps(5)
            ends.append(steps_over(scheduler, latents(dtype=dtype), scheduler.timesteps))
            assert ends[-1].dtype == dtype
        torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=tolerance)
    assert compiled._ready().fused(0) is not None
    assert plain._ready().fused(0) is None


@pytest.mark.usefixtures("traced")
def test_compiled_rows_take_edits_generators_copies_and_late_starts() -> None:
    plain, compiled = pair("betas", "ddim", options={"eta": 1.0})
    ends = []
    for scheduler in (plain, compiled):
        scheduler.set_timesteps(6)
        scheduler.set_begin_index(1)
        x = latents()
        for k, t in enumerate(scheduler.timesteps[1:]):
            if k == 2:
                x.mul_(0.9)  # in place, as some callbacks do
                scheduler = copy.deepcopy(scheduler)
            if k == 3:
                x = x + 0.1
            generators = [torch.Generator().manual_seed(i) for i in range(2)]
            x = scheduler.step(torch.tanh(x), t, x, generator=generators, return_dict=False)[0]
        ends.append(x)
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=1e-12)


def test_rules_on_the_data_are_executed_as_ever() -> None:
    scheduler = make("betas", method="ddim", fused=True)
    scheduler.register_to_config(clip_sample=True)
    scheduler.set_timesteps(3)
    assert scheduler._ready().fused(0) is None
    assert torch.isfinite(steps_over(scheduler, latents(), scheduler.timesteps)).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["unipc", "sa", "edm", "seeds", "heun", "ipndm", "er-sde", "restart", "plms", "ghvb"]
)
def test_methods_compile_to_kernels(method: str) -> None:
    plain, compiled = pair("betas", method)
    ends = [steps_over(s, latents(dtype=torch.float32), s.timesteps) for s in (plain, compiled)]
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=2e-4 * float(ends[0].abs().max()))
