"""The overhead benchmark: both schedulers do the same work, and every number is a time."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import pathline.evals.overhead as overhead
from pathline.samplers.schedulers import PathlineScheduler

# numpy says this of the arrays that stock schedulers make from tensors
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]


@pytest.mark.parametrize("rival", overhead.RIVALS, ids=lambda rival: rival.title)
def test_rivals_compute_the_same_thing(rival: overhead.Rival) -> None:
    import diffusers

    stock = getattr(diffusers, rival.stock)(**rival.settings)
    ours = PathlineScheduler.from_config(stock.config, pathline={"method": rival.method, "options": rival.options})
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    stock.set_timesteps(6)
    ours.set_timesteps(6)
    assert len(ours.timesteps) == len(stock.timesteps)
    if rival.stock in ("EulerDiscreteScheduler", "HeunDiscreteScheduler", "EulerAncestralDiscreteScheduler"):
        return  # their latents are scaled by sqrt(1 + sigma^2) against those of the variance-preserving convention
    if rival.stock == "DDPMScheduler":
        return  # draws other noise
    ends = []
    for scheduler in (stock, ours):
        state = x
        for t in scheduler.timesteps:
            state = scheduler.step(torch.tanh(state), t, state, return_dict=False)[0]
        ends.append(state)
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=2e-3 * float(ends[0].abs().max()))


def test_table_and_file_hold_every_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(overhead, "SHAPES", ((1, 4, 8, 8),))
    timings = overhead.run_overhead(repeats=3, steps=4, out=tmp_path / "bench.json", progress=False)
    assert [timing.title for timing in timings] == [rival.title for rival in overhead.RIVALS]
    assert all(min(t.ours, t.stock, t.floor, t.cold, t.warm, t.stock_setup) > 0 for t in timings)
    assert replace(timings[0], ours=3.0, stock=2.0).ratio == 1.5
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert len(rows) == len(timings)
    text = capsys.readouterr().out
    assert all(rival.title in text for rival in overhead.RIVALS)


def test_the_floor_counts_every_state_of_a_row_once() -> None:
    def touched(method: str, config: dict[str, Any], **options: Any) -> int:
        scheduler = PathlineScheduler(pathline={"method": method, "options": options}, **config)
        scheduler.set_timesteps(10)
        return overhead.states_touched(scheduler)

    epsilon = {"prediction_type": "epsilon"}
    assert touched("ddim", epsilon) == touched("euler", {}) == 3  # output, query -> next
    assert touched("dpm++", epsilon, order=2) == 5  # and the last data, the new data
    assert touched("deis", epsilon, order=3) == 6  # and two noises, the new one
    assert touched("ipndm", epsilon) == 7  # and three noises, the new one
