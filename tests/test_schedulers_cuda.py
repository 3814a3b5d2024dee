"""What only an accelerator shows: no synchronisation, few kernels, a captured graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from support.schedulers import METHODS, make

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)


def start() -> torch.Tensor:
    return torch.randn(2, 4, 32, 32, device="cuda", generator=torch.Generator("cuda").manual_seed(0))


def run(scheduler: Any, x: torch.Tensor) -> torch.Tensor:
    for t in scheduler.timesteps:
        x = scheduler.step(0.7 * x, t, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("family", ["betas", "flow"])
@pytest.mark.parametrize("method", METHODS)
def test_steps_never_wait_for_the_device(method: str, family: str, fused: bool) -> None:
    scheduler = make(family, method=method, seed=1, fused=fused)
    x = start()
    scheduler.set_timesteps(6, device="cuda")
    run(scheduler, x)  # compiles, and copies coefficients
    scheduler.set_timesteps(6, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(scheduler, x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("method", ["unipc", "dpm++", "ddim", "euler", "heun", "sa"])
def test_compiled_rows_launch_at_most_two_kernels(method: str) -> None:
    scheduler = make("betas", method=method, seed=1, fused=True)
    x = start()
    for _ in range(2):
        scheduler.set_timesteps(8, device="cuda")
        run(scheduler, x)
    scheduler.set_timesteps(8, device="cuda")
    outputs = [0.7 * x for _ in scheduler.timesteps]
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        for output, t in zip(outputs, scheduler.timesteps, strict=True):
            x = scheduler.step(output, t, x, return_dict=False)[0]
        torch.cuda.synchronize()
    launches = sum(event.count for event in trace.key_averages() if "LaunchKernel" in event.key)
    keys = 40 if scheduler.table.stochastic else 0  # of the noise, once a run
    assert launches <= 2 * len(outputs) + keys


@pytest.mark.parametrize("method", ["unipc", "ddim", "heun"])
def test_a_whole_run_is_captured_as_a_graph(method: str) -> None:
    scheduler = make("betas", method=method, seed=1)
    x = start()
    scheduler.set_timesteps(6, device="cuda")
    expected = run(scheduler, x)
    scheduler.set_timesteps(6, device="cuda")
    scheduler.set_begin_index(0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run(scheduler, x)
    graph.replay()
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)
