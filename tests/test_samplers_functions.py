"""Function-style samplers keep the conventions of k-diffusion and ComfyUI, and are the methods of the registry."""

import inspect
import pickle
import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pathline.interpolants import EDMPath, LinearPath
from pathline.samplers import (
    Nodes,
    build_table,
    functions,
    list_methods,
    method_info,
    sample,
)
from pathline.samplers.functions import function_name, function_sampler, sampler_functions
from support.denoisers import DATA, denoiser, levels, start
from support.goldens import (
    FOLDER,
    Parity,
    data_prediction,
    golden_nodes,
    index,
    mixture,
    parities,
    start_state,
)

FUNCTIONS = sampler_functions()
METHODS = {function_name(name): name for name in list_methods() if not method_info(name).requires}
PARITIES = [p for p in parities() if p.golden.startswith(("k_", "edm_heun_churn"))]


def nodes_of(sigmas: Tensor, flow: bool) -> Nodes:
    noise = sigmas.double().numpy()
    if flow:
        return Nodes(1.0 - noise, noise, noise, LinearPath())
    return Nodes(np.ones_like(noise), noise, noise, EDMPath(sigma_min=1e-3, sigma_max=float(noise[0]), rho=1.0))


# --- parity ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parity", PARITIES, ids=lambda p: p.golden)
def test_outputs_of_k_diffusion_are_reproduced(parity: Parity) -> None:
    case, g, m = index()[parity.golden], np.load(FOLDER / index()[parity.golden]["file"]), mixture()
    stored, nodes = list(g.get("noise_index", [])), golden_nodes(case, g)
    called = iter(g["eval_sigma"])

    def model(x: Tensor, sigma: Tensor, scale: float) -> Tensor:
        assert float(sigma[0]) == pytest.approx(next(called), rel=1e-12)
        plain = data_prediction(g, x, 1.0, float(sigma[0]), None)
        if case["guidance"] == "uncond":
            return plain
        return torch.lerp(plain, data_prediction(g, x, 1.0, float(sigma[0]), m["labels"]), scale)

    words = {"churn": "s_churn", "s_min": "s_tmin", "s_max": "s_tmax"} if parity.method == "edm" else {}
    options = {words.get(key, key): value for key, value in parity.options}

    def draw(sigma: Tensor, following: Tensor) -> Tensor:
        if parity.method == "edm":  # the official code draws at every step, whether it churns or not
            return m["noise_bank"][stored[int(np.argmin(np.abs(nodes.noise - float(sigma))))]]
        return m["noise_bank"][stored.pop(0)]

    if parity.options and stored:
        options["noise_sampler"] = draw
    ours = FUNCTIONS[function_name(parity.method)](
        model, start_state(g, nodes), torch.tensor(nodes.noise), {"scale": 7.5}, disable=True, **options
    )
    official = torch.tensor(g["sample"])
    assert float(((ours - official).abs() / official.abs().clamp_min(1)).max()) < 1e-9
    assert next(called, None) is None, "the official run made more calls"


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("flow", [False, True])
def test_a_function_is_the_method(name: str, flow: bool) -> None:
    sigmas = levels(flow, end=0.02 if name == "sample_heun" else 0.0)
    x, seen, told = start(sigmas), list[Tensor](), list[dict[str, Any]]()

    def model(x: Tensor, sigma: Tensor, seed: int) -> Tensor:
        assert sigma.shape == (2,)
        seen.append(sigma)
        return denoiser(x, sigma, flow)

    ours = FUNCTIONS[name](model, x, sigmas, {"seed": 7}, told.append, True, flow=flow)
    kwargs = {"seed": 7}
    expected = sample(model, x, method=METHODS[name], grid=nodes_of(sigmas, flow), model_kwargs=kwargs, seed=7)
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
    assert seen[0].is_contiguous()
    assert {float(s) for s in sigmas[:-1]} <= {float(s[0]) for s in seen}  # bit for bit
    assert [step["i"] for step in told] == list(range(6))
    for step, sigma in zip(told, sigmas, strict=False):
        assert set(step) == {"x", "i", "sigma", "sigma_hat", "denoised"}
        assert step["sigma"] == step["sigma_hat"] == sigma
        assert torch.equal(step["denoised"], denoiser(step["x"], sigma.expand(2), flow))
    assert torch.equal(told[0]["x"], x)


def test_the_names_are_those_of_the_field_and_the_options_can_be_seen() -> None:
    assert set(METHODS.values()) == {name for name in list_methods() if "bridge" not in method_info(name).requires}
    assert {"sample_dpmpp_2s_ancestral", "sample_euler", "sample_unipc", "sample_dpmpp_sde"} <= set(FUNCTIONS)
    for name, function in FUNCTIONS.items():
        assert function is getattr(functions, name)
        assert pickle.loads(pickle.dumps(function)) is function
        assert function.__name__ == name
        parameters = list(inspect.signature(function).parameters.values())
        assert [p.name for p in parameters[:6]] == ["model", "x", "sigmas", "extra_args", "callback", "disable"]
        assert all(p.kind is p.KEYWORD_ONLY for p in parameters[6:])
        shown = {p.name: p.default for p in parameters[6:]}
        assert shown["flow"] is None
        options = method_info(METHODS[name]).options
        missing = {key for key in options if shown.get(key, "") != options[key]}
        assert missing == ({"churn", "s_min", "s_max"} if name == "sample_edm" else set())
        assert (function.__doc__ or "").startswith(method_info(METHODS[name]).summary)
        described = set(shown) - set(options) | ({"s_churn", "s_tmin", "s_tmax"} & set(shown))
        assert all(re.search(rf"^[\w, ]*\b{key}\b[\w, ]* : ", function.__doc__ or "", re.M) for key in described), name
        assert ("noise_sampler" in shown) >= build_table(METHODS[name], nodes_of(levels(False), False)).stochastic
    assert "sample_dbim" not in FUNCTIONS
    assert set(FUNCTIONS) <= set(dir(functions))


# --- levels ---------------------------------------------------------------------------------------------------


def test_a_flow_is_exact_from_its_very_first_level() -> None:
    point = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    sigmas = levels(True)
    for name, function in FUNCTIONS.items():
        exact = build_table(METHODS[name], nodes_of(sigmas, True)).law == "exact"
        x = function(lambda x, sigma: point.expand_as(x), start(sigmas), sigmas, disable=True, flow=True)
        torch.testing.assert_close(x, point.expand(2, 3), rtol=1e-10, atol=1e-10)
        stop = function(lambda x, sigma: point.expand_as(x), start(sigmas), sigmas[:-1], disable=True, flow=True)
        if exact and not build_table(METHODS[name], nodes_of(sigmas[:-1], True)).stochastic:
            torch.testing.assert_close(stop, 0.9 * point + 0.1 * start(sigmas), rtol=1e-6, atol=1e-6)


def test_runs_may_begin_late_end_early_or_have_no_step() -> None:
    sigmas = levels(False, 8)
    x = start(sigmas[3:])
    whole = FUNCTIONS["sample_heun"](denoiser, x, sigmas[3:], disable=True)
    half = FUNCTIONS["sample_heun"](denoiser, x, sigmas[3:6], disable=True)
    rest = FUNCTIONS["sample_heun"](denoiser, half, sigmas[5:], disable=True)
    torch.testing.assert_close(rest, whole, rtol=1e-12, atol=1e-12)
    assert FUNCTIONS["sample_heun"](denoiser, x, sigmas[-1:], disable=True) is x
    with torch.no_grad():
        exact = DATA.flow_map(x, (1.0, float(sigmas[3])), (1.0, 0.0))
    fine = torch.cat([torch.linspace(float(sigmas[3]) ** 0.2, 0.2, 200) ** 5, torch.zeros(1)]).double()
    torch.testing.assert_close(FUNCTIONS["sample_dpmpp"](denoiser, x, fine, disable=True), exact, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("sigmas", "flow", "message"),
    [
        ([1.0, 2.0, 0.0], False, "sigmas must fall, but go from 1 to 2 at entry 1"),
        ([1.0, 1.0, 0.0], False, "sigmas must fall"),
        ([14.6, 1.0, 0.0], True, r"lie in \[0, 1\], but begin with 14.6"),
        ([[1.0, 0.0]], False, "non-empty list of finite numbers"),
        ([1.0, float("nan")], False, "non-empty list of finite numbers"),
    ],
)
def test_levels_that_cannot_be_are_refused(sigmas: Any, flow: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FUNCTIONS["sample_euler"](denoiser, torch.ones(1, 3), torch.tensor(sigmas), flow=flow, disable=True)


def test_wrong_options_are_named() -> None:
    sigmas = levels(False)
    with pytest.raises(ValueError, match="did you mean 'order'"):
        FUNCTIONS["sample_unipc"](denoiser, start(sigmas), sigmas, ordr=2, disable=True)
    with pytest.raises(ValueError, match="option of sample_unipc"):
        FUNCTIONS["sample_unipc"](denoiser, start(sigmas), sigmas, noise_sampler=None, disable=True)
    with pytest.raises(ValueError, match="needs a bridge"):
        function_sampler("dbim")
    with pytest.raises(ValueError, match="did you mean 'unipc'"):
        function_sampler("unipcc")
    with pytest.raises(AttributeError, match="sample_unipcc"):
        functions.__getattr__("sample_unipcc")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    sigmas, kinds = levels(False), list[tuple[torch.dtype, torch.dtype]]()

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        kinds.append((x.dtype, sigma.dtype))
        return denoiser(x, sigma)

    out = FUNCTIONS["sample_dpmpp"](model, start(sigmas, dtype=dtype), sigmas, disable=True)
    assert out.dtype == dtype
    assert set(kinds) == {(dtype, torch.float64 if dtype == torch.float64 else torch.float32)}


class Reads(TorchDispatchMode):
    """Counts what makes the host wait for the device."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "is_nonzero")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_step_reads_from_the_device(name: str) -> None:
    counts = []
    for steps in (4, 8):
        sigmas = levels(False, steps)
        with Reads() as reads:
            FUNCTIONS[name](lambda x, sigma: 0.5 * x, start(sigmas), sigmas, {}, lambda step: None, True)
        counts.append(reads.count)
    assert counts[0] == counts[1]


# --- noise ----------------------------------------------------------------------------------------------------


def test_noise_is_keyed_and_never_that_of_the_start() -> None:
    sigmas = levels(False)
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * sigmas[0]
    plain = lambda x, sigma, seed=None: torch.zeros_like(x)  # noqa: E731
    ancestral = function_sampler("euler-ancestral")
    drawn = ancestral(plain, x, sigmas[:2], {"seed": 3}, disable=True)
    other = ancestral(plain, x, sigmas[:2], {"seed": 4}, disable=True)
    clean = ancestral(plain, x, sigmas[:2], {"seed": 3}, disable=True, s_noise=0.0)
    assert torch.equal(drawn, ancestral(plain, x, sigmas[:2], {"seed": 3}, disable=True))
    assert not torch.equal(drawn, other)
    z = drawn - clean
    assert abs(float(torch.corrcoef(torch.stack([z.flatten(), x.flatten()]))[0, 1])) < 0.2
    torch.testing.assert_close(ancestral(plain, x, sigmas[:2], {"seed": 3}, disable=True, s_noise=0.5), clean + 0.5 * z)
    alone = ancestral(plain, x[2:3], sigmas[:2], {"seed": 3}, disable=True, sample_offset=2)
    assert torch.equal(alone, drawn[2:3])


def test_without_a_seed_torch_has_the_say() -> None:
    sigmas = levels(False)
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(FUNCTIONS["sample_dpmpp_sde"](denoiser, start(sigmas), sigmas, disable=True))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    state = torch.random.get_rng_state()
    FUNCTIONS["sample_unipc"](denoiser, start(sigmas), sigmas, disable=True)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    "name", [name for name, f in FUNCTIONS.items() if "noise_sampler" in inspect.signature(f).parameters]
)
def test_a_noise_sampler_is_asked_for_parts_of_each_step(name: str) -> None:
    sigmas, asked = levels(False), list[tuple[float, float]]()

    def sampler(sigma: Tensor, following: Tensor) -> Tensor:
        assert isinstance(sigma, Tensor)
        asked.append((float(sigma), float(following)))
        return torch.ones(2, 3)

    options = {"s_churn": 3.0} if name == "sample_edm" else {"eta": 0.7} if name == "sample_ddim" else {}
    told: list[dict[str, Any]] = []
    FUNCTIONS[name](denoiser, start(sigmas), sigmas, {}, told.append, True, noise_sampler=sampler, **options)
    eta = method_info(METHODS[name]).options.get("eta", 1.0)
    if eta == 0.0 and not options:
        assert not asked
        return
    assert asked
    assert len(set(asked)) == len(asked)  # a Brownian path would repeat itself
    assert all(sigma > following for sigma, following in asked)
    assert all(b[0] <= a[1] + 1e-6 for a, b in pairwise(asked))
    pairs = {(float(a), float(b)) for a, b in pairwise(sigmas)}
    if METHODS[name] in ("euler-ancestral", "ddim", "dpm2", "dpm++-2s-ancestral", "dpm++-sde"):
        assert set(asked) <= pairs
    assert [step["i"] for step in told] == list(range(6))
    if name == "sample_edm":
        assert all(step["sigma_hat"] > step["sigma"] for step in told)


def test_noise_of_the_wrong_shape_is_refused() -> None:
    sigmas = levels(False)
    with pytest.raises(ValueError, match="noise_sampler returned shape"):
        FUNCTIONS["sample_dpmpp_sde"](denoiser, start(sigmas), sigmas, noise_sampler=lambda a, b: torch.ones(3))
