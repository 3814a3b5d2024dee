"""Interpolants, bridges and the adaptive density in the trainer: conventions, draws, refusals, whole runs."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pathline.interpolants import InpaintingBase, convert
from pathline.samplers import resshift_nodes, sample
from pathline.training import BatchPlan, NonFiniteLossError, load_data, load_pipeline, resolve_options
from pathline.training.bridge_task import TRAINED_BRIDGES, BridgeModel, BridgeSettings, BridgeTask
from pathline.training.degradation import Degradation, degradation_from_config
from pathline.training.interpolant_task import InterpolantTask
from pathline.training.samples import SampleMaker
from pathline.training.setup import make_task
from pathline.training.tasks import GaussianTask, Samples, Task
from pathline.training.trainer import Trainer
from support.training_runs import fresh_accelerate, losses, resumed_equals_unbroken, run, same, weights

SMALLER = {"image_condition": "super_resolution", "image_condition_config": {"factor": 2}}
HIDDEN = {"image_condition": "inpainting", "image_condition_config": {"tiles": 4, "hidden": 0.5}}
TWO_SIDED = {"objective": "interpolant", "path": "linear", "antithetic": True}
ADAPTIVE = {"objective": "v", "path": "cosine", "loss_weight": "sigmoid", "time_density": "adaptive"}
F64 = torch.float64


@pytest.fixture(autouse=True)
def accelerate_state() -> Iterator[None]:
    with fresh_accelerate():
        yield


def task_of(**options: Any) -> Task:
    return make_task(resolve_options(options))


def bridge_task(name: str, **options: Any) -> BridgeTask:
    task = task_of(objective="bridge", path=name, **SMALLER, **options)
    assert isinstance(task, BridgeTask)
    return task


def column(value: Tensor, like: Tensor) -> Tensor:
    return value.to(like).reshape(-1, *(1,) * (like.ndim - 1))


class ExactBridge:
    """A network in its own convention that knows the data of every source; its level comes from its label alone."""

    def __init__(self, settings: BridgeSettings) -> None:
        self.objective = settings.objective()
        self.labels: list[float] = []

    def __call__(self, x: Tensor, label: Tensor, condition: Tensor) -> Tensor:
        self.labels += label.tolist()
        levels = self.objective.bridge if hasattr(self.objective.bridge, "at_index") else None
        narrow = levels.at_index(label.to(F64)) if levels else self.objective.coefficients(1 - label.to(F64) / 1000)
        at = type(narrow)(*(column(entry, x) for entry in narrow))
        scale, on_data, on_source, on_state = self.objective.prediction.relation(at)
        state = x / self.objective.prediction.input_scale(at)
        return (on_data * condition.tanh() + on_source * condition + on_state * state) / scale


@pytest.mark.parametrize(
    ("name", "prediction"),
    [*((name, None) for name in TRAINED_BRIDGES), ("i2sb", "difference"), ("bbdm", "latent"), ("ddbm-vp", "data")],
)
def test_an_exact_bridge_network_has_no_loss_and_draws_its_data(name: str, prediction: str | None) -> None:
    task = bridge_task(name, prediction=prediction)
    network = ExactBridge(task.settings)
    model = task.wrap(network)
    generator = torch.Generator().manual_seed(0)
    source, latent = torch.randn(2, 64, 1, 2, 2, dtype=F64, generator=generator)
    conditions = {"condition": source, "source": source}
    times = task.times((torch.arange(64, dtype=F64) + 0.5) / 64)
    found = task.losses(model, Samples(source.tanh(), source, times, conditions, latent))
    assert float(found.max()) < 1e-9
    trained = set(network.labels)
    network.labels.clear()
    made = sample(model, model.begin(source, latent), **model.sampling(6), model_kwargs=conditions, full=True)
    assert made.evaluations <= 6  # type: ignore[union-attr]
    torch.testing.assert_close(made.sample, source.tanh(), rtol=1e-6, atol=1e-6)  # type: ignore[union-attr]
    if model.levels is not None:
        assert set(network.labels) <= set(range(len(model.levels)))
    else:  # at most one spacing of the 64 training times beyond them
        assert min(trained) - 1000 / 64 < min(network.labels) <= max(network.labels) <= 1000


def test_a_bridge_needs_its_source() -> None:
    task = bridge_task("brownian")
    model = task.wrap(ExactBridge(task.settings))
    with pytest.raises(ValueError, match="a bridge needs its source beside the state"):
        model(torch.zeros(1, 1, 2, 2), torch.tensor([0.5]), condition=torch.zeros(1, 1, 2, 2))


def test_all_steps_of_resshift_are_its_own_levels() -> None:
    nodes = BridgeModel(lambda x, t: x, BridgeSettings("resshift", {})).sampling(20)["grid"]
    expected = resshift_nodes(15)
    for name in ("time", "signal", "noise", "anchor"):
        assert getattr(nodes, name) == pytest.approx(getattr(expected, name))


def gaussian_velocity(task: InterpolantTask, spread: float, mean: float) -> Any:
    """The velocity of x = base·x0 + data·x1 + latent·z for x0 ~ N(0, 1), x1 ~ N(mean, spread²), as a network has it."""

    def network(x: Tensor, label: Tensor) -> Tensor:
        t = (1 - label.to(F64) / 1000).clamp(1e-9, 1 - 1e-9)
        point = task.objective.interpolant.at(t)
        base, data, latent, base_rate, data_rate, _, product = (column(entry, x) for entry in point)
        variance = base.square() + (data * spread).square() + latent.square()
        slope = (base * base_rate + data * data_rate * spread**2 + product) / variance
        return -(data_rate * mean + slope * (x - data * mean))  # networks of flows give noise - data

    return network


@pytest.mark.parametrize("path", ["linear", "trigonometric", "one_sided_linear"])
def test_a_two_sided_velocity_leads_from_base_to_data(path: str) -> None:
    latent = {"path_config": {"latent": "brownian", "diffusivity": 0.5}}
    task = task_of(objective="interpolant", path=path, antithetic=True, **latent)
    assert isinstance(task, InterpolantTask)
    assert task.takes_latent
    start = torch.randn(512, 1, dtype=F64, generator=torch.Generator().manual_seed(0))
    model = task.wrap(gaussian_velocity(task, 0.3, 1.5))
    made = sample(model, start, **task.sampling(None, 160))
    torch.testing.assert_close(made, 1.5 + 0.3 * start, rtol=0, atol=2e-3)


@pytest.mark.parametrize("prediction", ["velocity", "score", "base", "data"])
@pytest.mark.parametrize("path", ["one_sided_linear", "one_sided_trigonometric"])
def test_one_sided_predictions_are_those_of_gaussian_paths(path: str, prediction: str) -> None:
    task = task_of(objective="interpolant", path=path, prediction=prediction)
    data, start = torch.full((256, 1, 2, 2), 0.7, dtype=F64), torch.randn(256, 1, 2, 2, dtype=F64)

    def exact(x: Tensor, t: Tensor) -> Tensor:
        point = task.path.at(t.to(F64))
        return convert(x, torch.full_like(x, 0.7), point, "data", task.prediction)

    times = task.times((torch.arange(256, dtype=F64) + 0.5) / 256)
    assert float(task.losses(exact, Samples(data, start, times, {})).max()) < 1e-9
    made = sample(exact, start[:4], path=task.path, prediction=task.prediction, **task.sampling(None, 8))
    torch.testing.assert_close(made, data[:4])


def maker(**options: Any) -> SampleMaker:
    resolved = resolve_options({"train_batch_size": 8, **options})
    data = load_data("digits")
    return SampleMaker(resolved, data, BatchPlan(len(data), 8, 1, 1, 0), make_task(resolved), None)


@pytest.mark.parametrize(
    "options",
    [{**TWO_SIDED, **HIDDEN, "image_start": True}, {"objective": "bridge", "path": "bbdm", **SMALLER}],
    ids=["two-sided", "bridge"],
)
def test_draws_do_not_depend_on_the_split(options: dict[str, Any]) -> None:
    make = maker(**options)
    data, device = load_data("digits"), torch.device("cpu")

    def made(places: Tensor) -> Samples:
        return make(3, places, data.__getitems__(make.plan.indices(3, places)), device)

    whole, parts = made(torch.arange(8)), [made(torch.arange(0, 3)), made(torch.arange(3, 8))]
    for field in ("data", "start", "times", "latent"):
        assert torch.equal(getattr(whole, field), torch.cat([getattr(part, field) for part in parts])), field
    for key, value in whole.conditions.items():
        assert torch.equal(value, torch.cat([part.conditions[key] for part in parts]))
    assert whole.latent is not None
    moved = whole.latent != 0
    drawn = (whole.start - whole.conditions["condition"][:, :1])[moved]
    assert abs(float(torch.corrcoef(torch.stack([drawn, whole.latent[moved]]))[0, 1])) < 0.2  # two noises, not one
    if "free" in whole.conditions:  # what is kept does not move
        kept = whole.conditions["free"] == 0
        assert bool((whole.latent[kept] == 0).all())
        assert torch.equal(whole.start[kept], whole.data[kept])
    else:
        assert torch.equal(whole.conditions["source"], whole.start)


def test_the_source_of_a_bridge_is_stored_with_its_use() -> None:
    degrade = Degradation(InpaintingBase(2, 0.5), start=True, bridge=True)
    again = degradation_from_config(json.loads(json.dumps(degrade.config())))
    assert again == degrade
    _, conditions = again(torch.ones(1, 1, 4, 4), torch.zeros(1, 1, 4, 4), torch.rand(1, 2, 2))
    assert conditions.keys() == {"condition", "source"}


def adaptive_task() -> GaussianTask:
    task = task_of(**ADAPTIVE, time_density_config={"bins": 10, "decay": 0.9})
    assert isinstance(task, GaussianTask)
    return task


def test_the_adaptive_density_follows_the_loss_and_is_restored_exactly() -> None:
    task, uniforms = adaptive_task(), (torch.arange(500, dtype=F64) + 0.5) / 500
    before = task.times(uniforms)
    for _ in range(5):
        times = task.times(uniforms)
        noisy = 1.0 + 9.0 * (times < 0.5)
        task.learn(times, noisy / task.objective.level_density(times))
    after = task.times(uniforms)
    assert float((after < 0.5).double().mean()) > 0.8 > 0.6 > float((before < 0.5).double().mean())
    other = adaptive_task()
    assert not torch.equal(other.times(uniforms), after)
    other.load_state_dict(json.loads(json.dumps(task.state_dict())))
    assert torch.equal(other.times(uniforms), after)
    low, high = task.interval
    assert low <= float(after.min())
    assert float(after.max()) <= high
    with pytest.raises(ValueError, match="that this run has no use for"):
        task_of(objective="v").load_state_dict(task.state_dict())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"objective": "interpolant", "path": "vp"}, "unknown path of an interpolant 'vp'"),
        ({"objective": "interpolant", "path": "mirror"}, "unknown path of an interpolant 'mirror'"),
        ({"objective": "interpolant", "prediction": "noise"}, "unknown prediction of an interpolant 'noise'"),
        ({"objective": "interpolant", "antithetic": True}, "antithetic pairs differ in the sign"),
        ({**TWO_SIDED, "prediction": "score"}, "'score' alone makes no samples on a two-sided interpolant with latent"),
        ({**TWO_SIDED, "path_config": {"latent": "white"}}, "unknown latent of path_config 'white'"),
        ({**TWO_SIDED, "path_config": {"width": 1.0}}, "unknown parameter of latent 'brownian' 'width'"),
        ({**TWO_SIDED, "loss_target": "data"}, "loss_target='data' is for objectives on Gaussian paths"),
        ({**TWO_SIDED, "direction_weight": 1.0}, r"direction_weight=1\.0 is for objectives on Gaussian paths"),
        ({**TWO_SIDED, "loss_weight": "min_snr"}, "loss_weight 'min_snr' does not go with objective 'interpolant'"),
        ({**TWO_SIDED, "loss_weight_config": {"power": 1.0}}, "needs loss_weight 'latent_power'"),
        ({**TWO_SIDED, "time_density": "lognormal_sigma"}, "is stated in the log-SNR of a Gaussian path"),
        ({**TWO_SIDED, "time_density": "adaptive"}, "time_density 'adaptive' needs a loss_weight stated in log-SNR"),
        ({**TWO_SIDED, "preview_images": 4, "preview_method": "ddpm"}, "'ddpm' adds noise, which asks for a score"),
        ({"objective": "interpolant", **SMALLER, "image_start": True}, "image_start needs a two-sided path"),
        ({"objective": "bridge"}, "objective 'bridge' leads from a degraded image to the image"),
        ({"objective": "bridge", **SMALLER, "path": "consecutive"}, "unknown path of a bridge 'consecutive'"),
        ({"objective": "bridge", **SMALLER, "prediction": "velocity"}, "unknown prediction of a bridge 'velocity'"),
        ({"objective": "bridge", **SMALLER, "prediction": "latent"}, "does not give the data at the source"),
        ({"objective": "bridge", **SMALLER, "prediction": "score"}, "is not bounded at an end of the interval"),
        ({"objective": "bridge", **SMALLER, "path_config": {"beta_max": 1.0}}, "do not fit the bridge objective"),
        ({"objective": "bridge", **SMALLER, "coupling": "ot"}, "coupling='ot' does not go with a bridge"),
        ({"objective": "bridge", **SMALLER, "antithetic": True}, "antithetic pairs are for objective 'interpolant'"),
        ({"objective": "bridge", **SMALLER, "preview_images": 4, "preview_method": "dopri5"}, "chooses its own steps"),
        ({"objective": "bridge", **SMALLER, "preview_images": 4, "preview_nfe": 1}, "allowed: at least 2"),
        (
            {"objective": "bridge", "reflow_from": "somewhere", **SMALLER},
            "image_condition does not go with reflow_from",
        ),
        ({"objective": "flow", "antithetic": True}, "antithetic pairs are for objective 'interpolant'"),
        ({"objective": "flow", "time_density": "adaptive"}, "needs a loss_weight stated in log-SNR"),
        ({**ADAPTIVE, "direction_weight": 1.0}, r"direction_weight=1\.0 does not go with time_density 'adaptive'"),
        ({**ADAPTIVE, "time_density_config": {"bin": 3}}, "unknown parameter of time_density 'adaptive' 'bin'"),
        ({**ADAPTIVE, "time_density_config": {"bins": 0}}, "bins=0 is not possible"),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_work(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        run(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def restore(folder: Path) -> Tensor:
    """Samples of a trained folder from its own images, with the sampler that suits it."""
    loaded = load_pipeline(folder)
    degrade = degradation_from_config(loaded.metadata["image_condition"])
    data = load_data("digits").tensor()[:3]
    generator = torch.Generator().manual_seed(0)
    noise, uniforms = torch.randn(data.shape, generator=generator), torch.rand(3, 4, 4, generator=generator)
    start, conditions = degrade(data, noise, uniforms)
    if isinstance(loaded.model, BridgeModel):
        start, settings = loaded.model.begin(start, noise), loaded.model.sampling(4)
    else:
        settings = {"method": "heun", "grid": "time", "nfe": 4}
    made = sample(loaded.model, start, **settings, model_kwargs=conditions)
    assert isinstance(made, Tensor)
    return made


SHOWN = {"preview_images": 4, "preview_nfe": 4}
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({**TWO_SIDED, **HIDDEN, "image_start": True}, marks=SLOW),
        pytest.param(
            {"objective": "interpolant", "path": "encoder_decoder", **SMALLER, "image_start": True}, marks=SLOW
        ),
        {"objective": "bridge", "path": "i2sb", **SMALLER},
        *(
            pytest.param({"objective": "bridge", "path": name, **HIDDEN, "class_conditional": True}, marks=SLOW)
            for name in TRAINED_BRIDGES
        ),
    ],
    ids=lambda options: f"{options['objective']}-{options['path']}",
)
def test_restoring_runs_resume_and_load(tmp_path: Path, options: dict[str, Any]) -> None:
    folder = resumed_equals_unbroken(tmp_path, **SHOWN, **options)
    assert (folder / "previews" / "step-000006.png").is_file()
    assert not (folder / "model_index.json").exists()
    assert bool(torch.isfinite(restore(folder)).all())


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ADAPTIVE,
        {"objective": "edm", "loss_weight": "edm_monotonic", "time_density": "adaptive", "plots": True},
        {"objective": "interpolant", "path": "one_sided_trigonometric", "prediction": "score"},
        {**TWO_SIDED, "coupling": "ot", "path_config": {"latent": "quadratic"}},
        {**TWO_SIDED, "loss_weight": "latent_power", "loss_weight_config": {"power": 1.0}, "random_flip": True},
        {"objective": "bridge", "path": "brownian", **HIDDEN},
        {"objective": "bridge", "path": "ddbm-vp", **SMALLER, "prediction": "data", "plots": True},
    ],
    ids=["adaptive", "adaptive-edm", "one-sided", "two-sided-ot", "two-sided", "brownian", "ddbm-data"],
)
def test_twenty_steps_equal_ten_and_ten(tmp_path: Path, options: dict[str, Any]) -> None:
    settings = {"max_train_steps": 20, "checkpointing_steps": 10, "logging_steps": 1, **SHOWN, **options}
    whole, again = run(tmp_path / "whole", **settings), tmp_path / "again"
    shutil.copytree(whole, again)
    shutil.rmtree(again / "checkpoint-20")
    run(again, **settings, resume_from_checkpoint="latest")
    assert same(weights(whole), weights(again))
    assert losses(whole) == losses(again)
    states = [json.loads((f / "checkpoint-20" / "trainer_state.json").read_text())["task"] for f in (whole, again)]
    assert states[0] == states[1]
    assert bool(states[0]) == (options.get("time_density") == "adaptive")


def test_an_adaptive_run_resumes_with_its_density(tmp_path: Path) -> None:
    folder = resumed_equals_unbroken(tmp_path, **ADAPTIVE, ema="power", ema_snapshot_steps=2)
    state = json.loads((folder / "checkpoint-6" / "trainer_state.json").read_text())["task"]
    assert len(set(state["averages"])) > 5
    stored = json.loads((folder / "pathline.json").read_text())["training"]["objective"]["density"]
    assert stored["name"] == "level_histogram"
    assert load_pipeline(folder).prediction == "v"


@pytest.mark.slow
@pytest.mark.parametrize("options", [ADAPTIVE, TWO_SIDED, {"objective": "bridge", "path": "bbdm", **SMALLER}])
def test_accumulated_micro_batches_equal_one_batch(tmp_path: Path, options: dict[str, Any]) -> None:
    settings = {"logging_steps": 1, "adam_epsilon": 1e-3, **options}
    whole = run(tmp_path / "whole", **settings)
    parts = run(tmp_path / "parts", **settings, train_batch_size=2, gradient_accumulation_steps=4)
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (TWO_SIDED, r"time 0\.\d+ \(base .*, data .*, latent noise .*\), for 1 of 8"),
        ({"objective": "bridge", "path": "ddbm-vp", **SMALLER}, r"\(source .*, signal .*, noise .*\), for 1 of 8"),
    ],
    ids=["interpolant", "bridge"],
)
def test_a_loss_that_is_not_finite_is_placed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], words: str
) -> None:
    original = Trainer._losses

    def poisoned(self: Trainer, places: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        values, times = original(self, places, batch)
        return values * torch.where(torch.arange(8) == 3, torch.nan, 1.0), times

    monkeypatch.setattr(Trainer, "_losses", poisoned)
    with pytest.raises(NonFiniteLossError, match=words):
        run(tmp_path, **options)
