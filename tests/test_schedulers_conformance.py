"""What any diffusers scheduler does: members, forms of `step`, configs and files, copies and second runs."""

import copy
import inspect
import json
import logging
import tomllib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.configuration_utils import FrozenDict

from pathline.samplers import schedulers as module
from pathline.samplers.schedulers import PathlineScheduler, UniPCScheduler
from support.repository import ROOT
from support.schedulers import BETAS, METHODS, latents, make, network, point_mass, steps_over

FAMILIES = ("betas", "flow")
CLASSES = [cls for cls in vars(module).values() if inspect.isclass(cls) and issubclass(cls, PathlineScheduler)]
CONFIGS: dict[str, dict[str, Any]] = {"betas": BETAS, "flow": {}}
STOCK = PathlineScheduler()._get_compatibles()[len(CLASSES) :]
# stock schedulers hand tensors to numpy in ways it deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")


# --- members ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cls", CLASSES)
def test_members_before_and_after_set_timesteps(cls: Any, family: str) -> None:
    scheduler = cls(**CONFIGS[family])
    assert isinstance(scheduler, diffusers.SchedulerMixin)
    assert isinstance(scheduler, diffusers.ConfigMixin)
    for steps in (None, 4):
        if steps is not None:
            scheduler.set_timesteps(steps)
        assert scheduler.num_inference_steps == steps
        assert isinstance(scheduler.timesteps, torch.Tensor)
        assert isinstance(scheduler.sigmas, torch.Tensor)
        assert scheduler.timesteps.dtype == scheduler.sigmas.dtype == torch.float32
        assert scheduler.timesteps.ndim == scheduler.sigmas.ndim == 1
        assert len(scheduler.sigmas) == len(scheduler.timesteps) + 1
        assert isinstance(scheduler.init_noise_sigma, float)
        assert scheduler.order == 1
        assert scheduler.step_index is None
        assert scheduler.begin_index is None
        assert scheduler._step_index is None
        assert isinstance(scheduler.shift, float)
        assert isinstance(scheduler.model_outputs, list)
        assert scheduler.last_sample is None
        assert len(scheduler) == 1000
        for name in ("scale_model_input", "add_noise", "scale_noise", "get_velocity", "set_begin_index", "set_shift"):
            assert callable(getattr(scheduler, name))
        for name in ("betas", "alphas_cumprod"):
            assert hasattr(scheduler, name) == (family == "betas")
    assert isinstance(cls.step_index, property)
    assert isinstance(cls.begin_index, property)
    scheduler.set_begin_index()
    assert scheduler.begin_index == 0


def test_arguments_have_the_names_and_the_order_of_diffusers() -> None:
    def names(function: Any) -> list[str]:
        return list(inspect.signature(function).parameters)[1:]

    stock = diffusers.FlowMatchEulerDiscreteScheduler
    assert names(PathlineScheduler.add_noise) == names(diffusers.DDPMScheduler.add_noise)
    assert names(PathlineScheduler.get_velocity) == names(diffusers.DDPMScheduler.get_velocity)
    assert names(PathlineScheduler.scale_noise) == names(stock.scale_noise)
    assert names(PathlineScheduler.set_begin_index) == names(stock.set_begin_index)
    assert names(PathlineScheduler.set_shift) == names(stock.set_shift)
    step = names(PathlineScheduler.step)
    assert step[:6] == ["model_output", "timestep", "sample", "generator", "return_dict", "per_token_timesteps"]
    assert not {"eta", "s_churn", "s_noise", "s_tmin", "s_tmax"} & set(step)


def test_no_package_bears_the_name_of_a_pipeline_folder() -> None:
    """Diffusers would record the folder instead of the module, and the saved pipeline could not be loaded."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    for package in listed:
        for part in package.split("."):
            assert not hasattr(diffusers.pipelines, part), package


# --- step ---------------------------------------------------------------------------------------------------------


def test_step_takes_its_arguments_by_name_and_by_place() -> None:
    x, ends = latents(), []
    calls: tuple[Callable[[Any, torch.Tensor], Any], ...] = (
        lambda s, t: s.step(network(x, t), t, x, return_dict=False)[0],
        lambda s, t: s.step(network(x, t), t, x, None, False)[0],
        lambda s, t: s.step(network(x, t), timestep=t, sample=x).prev_sample,
        lambda s, t: s.step(model_output=network(x, t), timestep=t, sample=x, generator=None, return_dict=True)[0],
        lambda s, t: s.step(sample=x, timestep=t, model_output=network(x, t), per_token_timesteps=None)["prev_sample"],
    )
    for call in calls:
        scheduler = UniPCScheduler(**BETAS)
        scheduler.set_timesteps(5)
        ends.append(call(scheduler, scheduler.timesteps[0]))
    assert all(torch.equal(end, ends[0]) for end in ends)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_tuple_and_dataclass_agree_and_keep_the_shape(method: str, family: str) -> None:
    results = []
    for return_dict in (True, False):
        scheduler = make(family, method=method, seed=2)
        scheduler.set_timesteps(4)
        x = latents()
        for k, t in enumerate(scheduler.timesteps):
            if k == 1 and len(scheduler.timesteps) > 2:
                assert scheduler.step_index == 1
            out = scheduler.step(network(x, t), t, x, return_dict=return_dict)
            assert isinstance(out, tuple) != return_dict
            x = out[0]
            assert x.shape == latents().shape
            data = out[1]
            assert data is None or data.shape == x.shape
        results.append((x, data))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_tokens_images_and_videos_are_the_same_numbers(method: str, family: str) -> None:
    flat = torch.randn(2, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ends = []
    for shape in ((2, 24), (2, 6, 4), (2, 2, 4, 3), (2, 2, 3, 2, 2)):
        scheduler = make(family, method=method, seed=4)
        scheduler.set_timesteps(3)
        x = steps_over(scheduler, flat.reshape(shape), scheduler.timesteps)
        assert x.shape == shape
        ends.append(x.reshape(2, 24))
    for end in ends:
        torch.testing.assert_close(end, ends[0], rtol=1e-12, atol=1e-12)


TIMES: dict[str, Callable[[torch.Tensor], Any]] = {
    "clone": lambda t: t.clone(),
    "float": float,
    "integer": lambda t: int(t.round()),
    "integer tensor": lambda t: t.round().long(),
    "float64": lambda t: t.double(),
    "float16": lambda t: t.half(),
    "bfloat16": lambda t: t.bfloat16(),
    "numpy": lambda t: np.float64(t),
    "one entry": lambda t: t.reshape(1),
    "a batch": lambda t: t.expand(2),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", TIMES)
def test_the_time_comes_in_any_form(form: str, family: str) -> None:
    """Looked at once, by value and to the nearest; from then on a counter holds whatever is passed."""
    scheduler = make(family, method="unipc")
    scheduler.set_timesteps(7)
    x = latents()
    expected = steps_over(scheduler, x, scheduler.timesteps[3:])
    scheduler.set_timesteps(7)
    for t in scheduler.timesteps[3:]:
        x = scheduler.step(network(x, t), TIMES[form](t), x, return_dict=False)[0]
    assert torch.equal(x, expected)


def test_only_the_first_time_is_looked_at() -> None:
    scheduler = make("flow", method="heun")  # two calls at the same time follow one another
    scheduler.set_timesteps(5)
    expected = steps_over(scheduler, latents(), scheduler.timesteps)
    scheduler.set_timesteps(5)
    x = latents()
    for k, t in enumerate(scheduler.timesteps):
        assert scheduler.step_index == (k or None)
        x = scheduler.step(network(x, t), t if k == 0 else float("nan"), x, return_dict=False)[0]
    assert torch.equal(x, expected)
    scheduler.set_timesteps(5)
    scheduler.set_begin_index(0)
    x = latents()
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), None, x, return_dict=False)[0]
    assert torch.equal(x, expected)


@pytest.mark.parametrize("key", ["s_noise", "s_churn", "s_tmin", "s_tmax", "variance_noise", "strength"])
def test_arguments_of_other_schedulers_are_not_swallowed(key: str) -> None:
    scheduler = UniPCScheduler()
    scheduler.set_timesteps(3)
    with pytest.raises(ValueError, match=key):
        scheduler.step(latents(), scheduler.timesteps[0], latents(), **{key: 1.0})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("method", METHODS)
def test_results_have_the_type_of_the_network_for_every_method(method: str, dtype: torch.dtype) -> None:
    scheduler = make("betas", method=method, seed=2)
    scheduler.set_timesteps(3)
    x = latents().float()  # pipelines keep latents wide and networks narrow, or the other way round
    for t in scheduler.timesteps:
        x, data = scheduler.step((x * 0.5).to(dtype), t, x, return_dict=False)
        assert x.dtype == dtype
        assert data is None or data.dtype == dtype
        assert torch.isfinite(x).all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_the_data_prediction_is_in_the_output_and_on_the_scheduler(method: str, family: str) -> None:
    scheduler, data = make(family, method=method, seed=1), latents(2)
    scheduler.set_timesteps(5)
    x = latents(3)
    for t in scheduler.timesteps:
        out = scheduler.step(point_mass(scheduler, data, x, t), t, x)
        x = out.prev_sample
        assert out.pred_original_sample is not None
        torch.testing.assert_close(out.pred_original_sample, data, rtol=0, atol=1e-3)
        assert torch.equal(scheduler.pred_original_sample, out.pred_original_sample)


# --- copies and second runs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_copies_in_mid_run_and_abandoned_runs(method: str, family: str) -> None:
    """A copy goes on as the original does; a run that was dropped half-way leaves nothing to the next one."""
    scheduler = make(family, method=method, seed=6)
    scheduler.set_timesteps(9)
    scheduler.set_begin_index(1)
    steps_over(scheduler, latents(8), scheduler.timesteps[1:4])
    scheduler.set_timesteps(4)
    assert scheduler.step_index is scheduler.begin_index is scheduler.pred_original_sample is None
    half = steps_over(scheduler, latents(), scheduler.timesteps[:2])
    twin = copy.deepcopy(scheduler)
    assert twin.step_index == scheduler.step_index == 2
    first, second = (steps_over(s, half, s.timesteps[2:]) for s in (scheduler, twin))
    assert torch.equal(first, second)
    fresh = make(family, method=method, seed=6)
    fresh.set_timesteps(4)
    assert torch.equal(first, steps_over(fresh, latents(), fresh.timesteps))


def test_two_pipelines_may_share_a_scheduler_or_its_config() -> None:
    """`from_pipe` hands the same object over; interleaved runs need a copy, one after the other they do not."""
    scheduler = make("flow", method="sa", seed=1)
    ends = []
    for _ in range(2):
        for steps in (3, 7):
            scheduler.set_timesteps(steps)
            ends.append(steps_over(scheduler, latents(), scheduler.timesteps))
    assert torch.equal(ends[0], ends[2])
    assert torch.equal(ends[1], ends[3])
    pair = [scheduler, PathlineScheduler.from_config(scheduler.config)]
    states = [latents(), latents()]
    for s in pair:
        s.set_timesteps(7)
    for k in range(7):
        states = [steps_over(s, x, s.timesteps[k : k + 1]) for s, x in zip(pair, states, strict=True)]
    assert torch.equal(states[0], ends[1])
    assert torch.equal(states[1], ends[1])


# --- configs and files --------------------------------------------------------------------------------------------


@contextmanager
def messages_of_diffusers() -> Iterator[list[str]]:
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("diffusers")
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stock", STOCK, ids=lambda cls: cls.__name__)
def test_stock_classes_take_the_config_with_one_message_and_give_it_back(stock: Any, family: str) -> None:
    settings = {"method": "ddim", "options": {"eta": 0.5}, "seed": 3}
    ours = PathlineScheduler(**CONFIGS[family], pathline=settings)
    with messages_of_diffusers() as messages, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        theirs = stock.from_config(ours.config)
    assert len(messages) <= 1, messages
    assert [w for w in caught if not issubclass(w.category, DeprecationWarning)] == []
    back = PathlineScheduler.from_config(theirs.config)
    for key, value in ours.config.items():
        assert key.startswith("_") or back.config[key] == value, key
    for scheduler in (ours, back):
        scheduler.set_timesteps(5)
    assert torch.equal(ours.sigmas, back.sigmas)
    assert torch.equal(ours.timesteps, back.timesteps)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cls", CLASSES)
def test_configs_are_json_with_one_dict_in_them(cls: Any, family: str) -> None:
    scheduler = cls(**CONFIGS[family], pathline={"grid": "karras", "grid_options": {"rho": 5.0}, "seed": 1})
    assert isinstance(scheduler.config, FrozenDict)
    assert [key for key, value in scheduler.config.items() if isinstance(value, dict)] == ["pathline"]
    assert json.loads(scheduler.to_json_string())["pathline"] == scheduler.config.pathline
    json.dumps(dict(scheduler.config))
    assert scheduler.config.get("shift") == scheduler.config["shift"] == scheduler.config.shift == 1.0
    assert not {"steps_offset", "skip_prk_steps"} & set(scheduler.config)
    assert scheduler.config.clip_sample is False


def test_attributes_that_belong_to_the_config_warn() -> None:
    scheduler = PathlineScheduler()
    scheduler.own = 3
    assert scheduler.own == 3
    with pytest.warns(FutureWarning, match="num_train_timesteps"):
        assert scheduler.num_train_timesteps == 1000
    with pytest.raises(AttributeError):
        scheduler.no_such_attribute  # noqa: B018


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cls", CLASSES)
def test_saved_and_loaded_schedulers_step_alike(cls: Any, family: str, tmp_path: Path) -> None:
    first = cls(**CONFIGS[family], pathline={"seed": 5}, num_train_timesteps=500)
    first.save_pretrained(tmp_path / "scheduler")
    second = cls.from_pretrained(tmp_path, subfolder="scheduler")
    third = cls.from_config(first.config, num_train_timesteps=500)
    fourth = cls.from_pretrained(str(tmp_path / "scheduler"), pathline={"seed": 6}, return_unused_kwargs=True)[0]
    assert fourth.config.pathline == {"seed": 6}
    ends = []
    for scheduler in (first, second, third):
        assert len(scheduler) == 500
        scheduler.set_timesteps(5)
        ends.append(steps_over(scheduler, latents(), scheduler.timesteps))
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


@pytest.mark.parametrize("family", FAMILIES)
def test_compatibles_can_be_built_from_the_config(family: str) -> None:
    scheduler = PathlineScheduler(**CONFIGS[family])
    assert set(CLASSES) < set(scheduler.compatibles)
    for cls in scheduler.compatibles:
        assert isinstance(cls.from_config(scheduler.config), cls)


def test_trained_betas_are_used_as_they_are() -> None:
    given = np.linspace(0.002, 0.3, 12).tolist()
    scheduler = PathlineScheduler(**BETAS, num_train_timesteps=12, trained_betas=given)
    assert torch.equal(scheduler.betas, torch.tensor(given))
