"""Sampler functions of stored tables, in hosts, and on their page."""

import inspect
import re
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pathline.interpolants import EDMPath, LinearPath, VPPath
from pathline.samplers import build_table, make_nodes, run
from pathline.samplers.functions import function_sampler, register_into, sampler_functions
from support.denoisers import DATA, denoiser, levels, start
from support.repository import ROOT

FUNCTIONS = sampler_functions()


# --- tables, hosts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [VPPath(), LinearPath(), EDMPath()], ids=lambda p: p.name)
@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("method", ["unipc", "heun", "dpm2"])
def test_a_table_of_any_path_runs_on_its_levels(path: Any, flow: bool, method: str) -> None:
    if isinstance(path, LinearPath) and not flow:
        nodes = make_nodes(path, "time", 6).part(1)  # noise/signal is infinite at its start
    else:
        nodes = make_nodes(path, "logsnr", 6)
    table = build_table(method, nodes)
    sigmas = torch.tensor(nodes.noise / (nodes.signal + nodes.noise if flow else nodes.signal)).float()
    x, told = start(sigmas), list[dict[str, Any]]()
    ours = function_sampler(table)(
        lambda x, sigma: denoiser(x, sigma, flow), x, sigmas, {}, told.append, disable=True, flow=flow
    )
    scale = (nodes.signal + nodes.noise)[0] if flow else nodes.signal[0]
    expected = run(table, lambda y, t: at_time(path, y, t), x * float(scale))
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    assert [float(step["sigma"]) for step in told] == sigmas[:-1].tolist()
    with pytest.raises(ValueError, match="and on no others"):
        function_sampler(table)(denoiser, x, 0.9 * sigmas, disable=True, flow=flow)


def at_time(path: Any, x: Tensor, t: Tensor) -> Tensor:
    signal, noise = (float(c) for c in path.at(t[0].double())[:2])
    if noise == 0.0:
        return x / signal
    ratio = signal * 0.25 / (signal**2 * 0.25 + noise**2)
    return DATA.mean + ratio * (x - signal * DATA.mean)


class CONST:
    pass


class EPS:
    pass


def comfy_model(kind: type) -> Callable[..., Tensor]:
    """Wrapped as a ComfyUI denoiser: mask wrapper, guider, model with a `model_sampling` made of two bases."""
    sampling = type("ModelSampling", (type("Discrete", (), {}), kind), {})()
    flow = kind is CONST

    class Wrapped:
        inner_model = SimpleNamespace(inner_model=SimpleNamespace(model_sampling=sampling))

        def __call__(self, x: Tensor, sigma: Tensor, denoise_mask: Any = None, **kwargs: Any) -> Tensor:
            return denoiser(x, sigma, flow)

    return Wrapped()


@pytest.mark.parametrize("kind", [CONST, EPS])
def test_a_host_registers_and_calls_the_functions(kind: type) -> None:
    host = ModuleType("sampling")
    own = host.sample_euler = lambda *args: None  # type: ignore[attr-defined]
    names = ["euler", "heun"]
    added = register_into(host, names)
    assert names == ["euler", "heun", *added]
    assert len(added) == len(FUNCTIONS)
    assert register_into(host, names) == added
    assert names == ["euler", "heun", *added]
    assert host.sample_euler is own  # type: ignore[attr-defined]
    flow = kind is CONST
    sigmas = levels(flow)
    for name in ("pathline_unipc", "pathline_euler_ancestral", "pathline_dpmpp_sde"):
        function = getattr(host, f"sample_{name}")
        sent = {"denoise_mask": None, "model_options": {}, "seed": 1}
        ours = function(comfy_model(kind), start(sigmas), sigmas, extra_args=sent, callback=None, disable=True)
        plain = lambda x, sigma, **kwargs: denoiser(x, sigma, flow)  # noqa: E731
        assert torch.equal(ours, function(plain, start(sigmas), sigmas, sent, disable=True, flow=flow))
    with pytest.raises(ValueError, match="its own sample_euler"):
        register_into(host, names, functions=["unipc", "euler"], prefix="")
    assert not hasattr(host, "sample_unipc")
    mine = function_sampler("unipc", order=2)
    assert register_into(host, functions={"two": mine}) == ["pathline_two"]
    assert host.sample_pathline_two is mine  # type: ignore[attr-defined]
    assert inspect.signature(mine).parameters["order"].default == 2


def test_the_progress_bar_counts_steps(capsys: pytest.CaptureFixture[str]) -> None:
    sigmas = levels(False)
    FUNCTIONS["sample_heun"](denoiser, start(sigmas), sigmas, disable=True)
    assert not capsys.readouterr().err
    FUNCTIONS["sample_heun"](denoiser, start(sigmas), sigmas, disable=False)
    assert "6/6" in capsys.readouterr().err


def test_gradients_are_off_and_a_host_may_interrupt() -> None:
    sigmas = levels(False)
    x = start(sigmas).requires_grad_()

    def stop(step: dict[str, Any]) -> None:
        if step["i"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FUNCTIONS["sample_unipc"](denoiser, x, sigmas, callback=stop, disable=True)
    assert not FUNCTIONS["sample_unipc"](denoiser, x, sigmas, disable=True).requires_grad


# --- the page -------------------------------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "functions.md").read_text()


def test_the_snippets_of_the_page_run(monkeypatch: pytest.MonkeyPatch) -> None:
    comfy, diffusion, sampling, samplers = (ModuleType(n) for n in ("comfy", "k_diffusion", "sampling", "samplers"))
    comfy.k_diffusion, diffusion.sampling = diffusion, sampling  # type: ignore[attr-defined]
    samplers.KSampler = SimpleNamespace(SAMPLERS=["euler"])  # type: ignore[attr-defined]
    for name, module in (
        ("comfy", comfy),
        ("comfy.k_diffusion", diffusion),
        ("comfy.k_diffusion.sampling", sampling),
        ("comfy.samplers", samplers),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    snippets = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(snippets) == 4
    for snippet in snippets:
        names: dict[str, Any] = {}
        exec(snippet, names)
        assert "x" not in names or torch.isfinite(names["x"]).all()
    assert {"pathline_unipc", "pathline_unipc2"} <= set(samplers.KSampler.SAMPLERS)  # type: ignore[attr-defined]


def test_the_page_lists_every_function() -> None:
    common, rows = {"heavy_ball", "flow", "noise_sampler", "sample_offset"}, []
    for name, function in FUNCTIONS.items():
        parameters = list(inspect.signature(function).parameters.values())[6:]
        options = ", ".join(f"{p.name}={p.default}" for p in parameters if p.name not in common)
        shown = f"`{options}`" if options else ""
        rows.append(f"| `{name}` | {(function.__doc__ or '').splitlines()[0]} | {shown} |")
    table = PAGE[PAGE.index("| function | what it is |") :].splitlines()[2:]
    assert table == rows, "put this into docs/functions.md:\n" + "\n".join(rows)
