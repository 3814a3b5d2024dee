"""What pipelines send to `set_timesteps`, in every form, and the levels and labels that they must find afterwards."""

import ast
import inspect
import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.stats import beta as beta_law

from pathline.samplers import AnalyticStart, from_diffusers, sample
from pathline.samplers.schedulers import HeunScheduler, PathlineScheduler, UniPCScheduler
from support.schedulers import BETAS, METHODS, latents, make, network, steps_over

Array = npt.NDArray[np.float64]
FAMILIES = ("betas", "flow")
DISTILLED = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875)


def helper_of(pipeline: str) -> Any:
    """`retrieve_timesteps` of a pipeline file, without importing the file."""
    folder = find_spec("diffusers").submodule_search_locations[0]
    name = f"pipeline_{pipeline}.py"
    tree = ast.parse((Path(folder) / "pipelines" / pipeline / name).read_text())
    wanted = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "retrieve_timesteps"]
    space: dict[str, Any] = {"torch": torch, "inspect": inspect}
    exec(compile(ast.Module(wanted, []), name, "exec"), space)
    return space["retrieve_timesteps"]


# --- call forms ---------------------------------------------------------------------------------------------------

FORMS: dict[str, Callable[[Array], Any]] = {
    "list": lambda values: values.tolist(),
    "numpy": lambda values: values,
    "float32 numpy": lambda values: values.astype(np.float32),
    "float32": lambda values: torch.tensor(values, dtype=torch.float32),
    "float64": torch.tensor,
    "bfloat16": lambda values: torch.tensor(values).to(torch.bfloat16),
    "trailing zero": lambda values: [*values.tolist(), 0.0],
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("helper", ["flux", "cogview4"])
def test_sigmas_arrive_in_every_form(helper: str, form: str, family: str) -> None:
    """Five numbers that bfloat16 holds exactly, so that every form says the same."""
    given = np.array([1.0, 0.75, 0.5, 0.25, 0.125]) * (1.0 if family == "flow" else 8.0)
    scheduler = make(family)
    shown, count = helper_of(helper)(scheduler, None, "cpu", sigmas=FORMS[form](given))
    assert count == scheduler.num_inference_steps == 5
    assert shown is scheduler.timesteps
    assert scheduler.sigmas.tolist() == [*given.tolist(), 0.0]
    assert scheduler.timesteps.dtype == scheduler.sigmas.dtype == torch.float32


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", [*FORMS, "int"])
def test_timesteps_arrive_in_every_form(form: str, family: str) -> None:
    given = np.array([896.0, 512.0, 256.0, 64.0])
    if form == "trailing zero" and family == "betas":
        given = given[:3]  # 0 is a level of its own there
    sent = torch.tensor(given).long() if form == "int" else FORMS[form](given)
    scheduler = make(family)
    shown, count = helper_of("flux")(scheduler, None, "cpu", timesteps=sent)
    expected = [*given.tolist(), 0.0] if form == "trailing zero" and family == "betas" else given.tolist()
    assert shown.tolist() == expected
    assert count == len(expected)
    if family == "flow":
        assert scheduler.sigmas.tolist() == [*(given / 1024).tolist(), 0.0]


@pytest.mark.parametrize("mu", [None, 0.7])
def test_numbers_and_lists_together_with_mu(mu: float | None) -> None:
    """n by position or by name, alone or beside lists, which count before it: pipelines send their default along."""
    scheduler = PathlineScheduler(use_dynamic_shifting=mu is not None)
    more = {} if mu is None else {"mu": mu}
    sigmas = np.linspace(1.0, 1 / 6, 6)
    scheduler.set_timesteps(sigmas=sigmas, **more)
    expected = scheduler.sigmas.clone()
    labels = (sigmas * 1000).round().tolist()
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((6, "cpu"), {"sigmas": sigmas}),
        ((6,), {"device": "cpu", "sigmas": sigmas, "timesteps": labels}),
        ((6, torch.device("cpu"), labels, sigmas), {}),
        ((50,), {"sigmas": sigmas}),
        ((None, "cpu", None, sigmas.tolist()), {}),
        ((), {"num_inference_steps": None, "sigmas": torch.tensor(sigmas), "device": None}),
    ]
    for positional, named in calls:
        scheduler.set_timesteps(*positional, **named, **more)
        assert torch.equal(scheduler.sigmas, expected)
        assert scheduler.num_inference_steps == len(scheduler.timesteps) == 6
    shown, count = helper_of("cogview4")(scheduler, 6, "cpu", timesteps=labels, sigmas=sigmas, **more)
    assert shown.tolist() == labels
    assert count == 6
    shown, count = helper_of("flux")(scheduler, 6, "cpu", **more)
    assert len(shown) == count == 6


def test_named_parameters_that_pipelines_look_for() -> None:
    parameters = inspect.signature(PathlineScheduler.set_timesteps).parameters
    assert list(parameters)[:6] == ["self", "num_inference_steps", "device", "timesteps", "sigmas", "mu"]
    assert all(parameters[name].default is None for name in list(parameters)[1:6])


@pytest.mark.parametrize(
    ("family", "arguments", "message"),
    [
        ("flow", {"num_inference_steps": 3.5}, "whole number"),
        ("flow", {"num_inference_steps": -2}, "at least 1 step"),
        ("flow", {"sigmas": []}, "non-empty"),
        ("flow", {"sigmas": [[1.0, 0.5]]}, "non-empty list"),
        ("flow", {"sigmas": [0.0]}, r"lie in \(0, 1\]"),
        ("flow", {"sigmas": [1.0, 1.0, 0.5]}, "must decrease"),
        ("flow", {"timesteps": [0.0]}, "holds no step"),
        ("flow", {"timesteps": [500.0, 750.0]}, "must decrease"),
        ("betas", {"timesteps": [-1]}, "levels 0 to 999"),
        ("betas", {"sigmas": [float("inf"), 1.0]}, "finite"),
        ("betas", {"num_inference_steps": 4, "mu": 0.7}, r"mu=0\.7 shifts flow schedules"),
    ],
)
def test_what_cannot_be_a_schedule_is_refused(family: str, arguments: dict[str, Any], message: str) -> None:
    scheduler = make(family)
    with pytest.raises(ValueError, match=message):
        scheduler.set_timesteps(**arguments)
    assert scheduler.num_inference_steps is None


# --- levels -------------------------------------------------------------------------------------------------------


def moved(sigmas: Array, shift: str, mu: float, terminal: float | None, levels: str | None) -> Array:
    """The rules written out: resolution shift, stretch to a terminal level, then other levels between the ends."""
    factor = {"static": 3.0, "exponential": math.exp(mu), "linear": mu}[shift]
    found = factor / (factor + (1.0 / sigmas - 1.0))
    if terminal is not None:
        kept = 1.0 - found
        found = 1.0 - kept / (kept[-1] / (1.0 - terminal))
    high, low, place = found[0], found[-1], np.linspace(0, 1, len(found))
    if levels == "karras":
        return np.asarray((high ** (1 / 7) + place * (low ** (1 / 7) - high ** (1 / 7))) ** 7)
    if levels == "exponential":
        return np.exp(np.linspace(math.log(high), math.log(low), len(found)))
    if levels == "beta":
        return np.asarray(low + (high - low) * beta_law.ppf(1.0 - place, 0.6, 0.6))
    return np.asarray(found)


@pytest.mark.parametrize("levels", [None, "karras", "exponential", "beta"])
@pytest.mark.parametrize("terminal", [None, 0.1])
@pytest.mark.parametrize("shift", ["static", "exponential", "linear"])
def test_unshifted_sigmas_are_shifted_stretched_and_spaced(
    shift: str, terminal: float | None, levels: str | None
) -> None:
    switches = {} if levels is None else {f"use_{levels}_sigmas": True}
    dynamic = {} if shift == "static" else {"use_dynamic_shifting": True, "time_shift_type": shift}
    scheduler = PathlineScheduler(shift=3.0, shift_terminal=terminal, **dynamic, **switches)
    for mu, steps in ((0.6, 4), (1.1, 13)):
        given = np.linspace(1.0, 1.0 / steps, steps)
        scheduler.set_timesteps(sigmas=given, mu=mu)
        expected = moved(given, shift, mu, terminal, levels)
        np.testing.assert_allclose(scheduler.sigmas.numpy(), [*expected, 0.0], rtol=3e-7)
        assert float(scheduler.sigmas[0]) == 1.0
        assert torch.equal(scheduler.timesteps, scheduler.sigmas[:-1] * 1000)


def test_pipelines_that_send_a_number_only_get_a_shifted_schedule() -> None:
    """Wan sends n; multistep configs shift with flow_shift and leave the last training level out."""
    plain = np.linspace(1.0, 0.001, 8)
    scheduler = PathlineScheduler(shift=5.0)
    scheduler.set_timesteps(8)
    np.testing.assert_allclose(scheduler.sigmas.numpy(), [*(5 * plain / (1 + 4 * plain)), 0.0], rtol=3e-7)
    scheduler = UniPCScheduler(use_flow_sigmas=True, flow_shift=5.0, prediction_type="flow_prediction")
    scheduler.set_timesteps(8)
    plain = np.linspace(1.0, 0.001, 9)[:-1]
    np.testing.assert_allclose(scheduler.sigmas.numpy(), [*(5 * plain / (1 + 4 * plain)), 0.0], rtol=3e-7)


def test_the_shift_is_applied_once_however_often_it_is_asked_for() -> None:
    """The schedule is a function of the unshifted grid: neither runs nor copies of the config shift it again."""
    scheduler = PathlineScheduler(shift=3.0)
    given = np.linspace(1.0, 1 / 7, 7)
    expected = 3 * given / (1 + 2 * given)
    for _ in range(3):
        scheduler.set_timesteps(sigmas=given)
        np.testing.assert_allclose(scheduler.sigmas[:-1].numpy(), expected, rtol=3e-7)
        scheduler.set_timesteps(1000)  # all training levels are those shown at first, the smallest one too
        torch.testing.assert_close(scheduler.sigmas, PathlineScheduler(shift=3.0).sigmas, rtol=1e-6, atol=0)
        assert float(scheduler.sigmas[-2]) == pytest.approx(0.003 / 1.002, rel=1e-6)
        scheduler = PathlineScheduler.from_config(scheduler.config)


def test_shift_and_mu_change_from_call_to_call() -> None:
    given = np.linspace(1.0, 0.2, 5)
    scheduler = PathlineScheduler(use_dynamic_shifting=True)
    for mu in (0.5, 1.15, 0.5):
        scheduler.set_timesteps(sigmas=given, mu=mu)
        np.testing.assert_allclose(
            scheduler.sigmas[:-1].numpy(), moved(given, "exponential", mu, None, None), rtol=3e-7
        )
    static = PathlineScheduler(shift=2.0)
    for shift in (2.0, 6.0, 2.0):
        static.set_shift(shift)
        static.set_timesteps(sigmas=given)
        assert static.shift == shift
        np.testing.assert_allclose(static.sigmas[:-1].numpy(), shift * given / (1 + (shift - 1) * given), rtol=3e-7)
    assert static.config.shift == 2.0
    with pytest.raises(ValueError, match="must be positive"):
        static.set_shift(0.0)
    with pytest.raises(ValueError, match="this schedule has betas"):
        PathlineScheduler(prediction_type="epsilon").set_shift(3.0)


@pytest.mark.parametrize("method", METHODS)
def test_exact_sigmas_are_untouched_for_every_method(method: str) -> None:
    """Distilled models were trained on these levels: not a bit may change, nor may a shift be applied."""
    scheduler = PathlineScheduler(
        shift=4.0, shift_terminal=0.1, use_karras_sigmas=True, pathline={"method": method, "exact_sigmas": True}
    )
    given = torch.tensor(DISTILLED)
    for sent in (given, [*given.tolist(), 0.0]):
        scheduler.set_timesteps(sigmas=sent)
        assert set(given.tolist()) <= set(scheduler.sigmas.tolist())
        assert torch.equal(scheduler.timesteps, scheduler.sigmas[:-1] * 1000)
        assert float(scheduler.sigmas[-1]) == 0.0
        assert float(scheduler.sigmas[0]) == 1.0
        if len(scheduler.timesteps) == len(given):
            assert torch.equal(scheduler.sigmas[:-1], given)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_labels_follow_from_the_sigmas(method: str, family: str) -> None:
    """Timesteps are N·σ to the last bit with flow models, and neither cut nor rounded with betas."""
    scheduler = make(family, method=method)
    knots = None if family == "flow" else ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).double().sqrt()
    for steps in (1, 7, 13):
        scheduler.set_timesteps(steps)
        sigmas, times = scheduler.sigmas, scheduler.timesteps
        assert len(sigmas) == len(times) + 1
        assert scheduler.num_inference_steps == steps
        assert times.dtype == sigmas.dtype == torch.float32
        if knots is None:
            assert torch.equal(times, sigmas[:-1] * 1024)
        else:
            index = np.interp(sigmas[:-1].double().log(), knots.log(), np.arange(1000))
            np.testing.assert_allclose(times.numpy(), index, rtol=0, atol=2e-3)


@pytest.mark.parametrize("kind", ["float64", "bfloat16"])
def test_labels_do_not_follow_the_default_type(kind: str) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, kind))
    try:
        scheduler = HeunScheduler()
        scheduler.set_timesteps(9)
        assert scheduler.timesteps.dtype == scheduler.sigmas.dtype == torch.float32
        shown = scheduler.timesteps.tolist()
    finally:
        torch.set_default_dtype(before)
    scheduler.set_timesteps(9)
    assert scheduler.timesteps.tolist() == shown


def test_timesteps_fall_and_start_on_the_device_asked_for() -> None:
    for family in FAMILIES:
        scheduler = make(family, method="heun")
        scheduler.set_timesteps(6, device="meta")
        assert scheduler.timesteps.device.type == scheduler.sigmas.device.type == "meta"
        scheduler.set_timesteps(6)
        assert scheduler.timesteps.device.type == "cpu"
        assert bool((scheduler.timesteps.diff() <= 0).all())
        assert scheduler.order == 1


# --- what cannot be combined --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_noise_network_at_signal_zero_is_refused_before_the_run(method: str) -> None:
    """It says nothing of the data there: flow levels that start at σ = 1, and schedules rescaled to signal 0."""
    flow = PathlineScheduler(prediction_type="epsilon", use_flow_sigmas=True, pathline={"method": method})
    with pytest.raises(ValueError, match="signal 0"):
        flow.set_timesteps(4)
    flow.set_timesteps(sigmas=[0.9, 0.6, 0.3])  # begun below it, the same network serves
    rescaled = {"rescale_betas_zero_snr": True, "prediction_type": "epsilon"}
    betas = PathlineScheduler(**rescaled, timestep_spacing="trailing", pathline={"method": method})
    with pytest.raises(ValueError, match="signal 0"):
        betas.set_timesteps(4)
    with pytest.raises(ValueError, match="signal 0"):
        betas.set_timesteps(timesteps=[999, 500])
    betas.set_timesteps(timesteps=[998, 500])
    PathlineScheduler(**rescaled, timestep_spacing="leading", pathline={"method": method}).set_timesteps(4)
    gridded = PathlineScheduler(**rescaled, pathline={"method": method, "grid": "time"})
    with pytest.raises(ValueError, match="signal 0"):
        gridded.set_timesteps(4)
    for prediction in ("v_prediction", "sample"):
        told = {"prediction_type": prediction, "pathline": {"method": method}}
        PathlineScheduler(**told, use_flow_sigmas=True).set_timesteps(4)
        PathlineScheduler(**told, rescale_betas_zero_snr=True, timestep_spacing="trailing").set_timesteps(4)


def test_betas_that_end_at_signal_zero_are_seen_without_the_switch() -> None:
    scheduler = PathlineScheduler(
        prediction_type="epsilon",
        trained_betas=[0.1, 0.2, 0.5, 1.0],
        num_train_timesteps=4,
        timestep_spacing="trailing",
    )
    with pytest.raises(ValueError, match="signal 0"):
        scheduler.set_timesteps(2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pathline": {"options": {"afs": {"mean": 0.0, "varianz": 1.0}}}}, "did you mean 'variance'"),
        ({"pathline": {"options": {"afs": {"variance": -1.0}}}}, "not negative"),
        ({"pathline": {"method": "sa", "options": {"tau": lambda t: 1.0}}}, "cannot be saved in a config file"),
        ({"pathline": {"grid": np.linspace(0, 1, 4)}}, "cannot be saved in a config file"),
        ({"pathline": {"seed": torch.tensor(3)}}, "cannot be saved in a config file"),
    ],
)
def test_settings_that_a_config_cannot_hold_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PathlineScheduler(**arguments)


def test_an_analytic_start_is_written_as_numbers() -> None:
    settings = {"method": "dpm++", "options": {"afs": {"variance": 0.25}}}
    scheduler = PathlineScheduler(**BETAS, pathline=settings)
    scheduler.set_timesteps(5)
    assert len(scheduler.timesteps) == 4
    assert scheduler.table.options["afs"] == {"mean": 0.0, "variance": 0.25}
    grid = scheduler.nodes
    theirs = sample(
        from_diffusers(network, scheduler), latents(), method="dpm++", grid=grid, afs=AnalyticStart(0.0, 0.25)
    )
    ours = steps_over(scheduler, latents(), scheduler.timesteps)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    assert PathlineScheduler.from_config(scheduler.config).config.pathline == settings
