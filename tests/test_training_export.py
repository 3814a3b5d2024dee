"""Networks, conventions and results: stock diffusers opens and runs them, pathline reads the same function back."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pathline.interpolants import (
    CosinePath,
    CosineVPPath,
    DiscretePath,
    EDMPath,
    GaussianPath,
    LinearPath,
    SubVPPath,
    VPPath,
)
from pathline.samplers import sample
from pathline.training import (
    LabelledNetwork,
    WeightAverage,
    build_network,
    choose_convention,
    default_config,
    export_pipeline,
    load_pipeline,
    save_preview,
    stock_scheduler,
    wrap_network,
)
from pathline.training.conventions import training_betas
from pathline.training.networks import label_count

TINY = {"block_out_channels": [8, 16], "norm_num_groups": 4, "attention_head_dim": 8}
DISCRETE = DiscretePath.linear(steps=50)


def tiny_unet(classes: int | None = None) -> torch.nn.Module:
    torch.manual_seed(1)
    return build_network({**default_config("unet", (1, 8, 8), classes), **TINY})


def card(path: GaussianPath, prediction: str, preconditioned: bool = False, **more: object) -> dict:
    convention = choose_convention(path, prediction, preconditioned)
    return {"path": path.config(), "prediction": prediction, "convention": convention, "sigma_data": 0.5, **more}


STOCK = [
    (LinearPath(), "velocity", False, None, "DDPMPipeline"),
    (DISCRETE, "noise", False, None, "DDPMPipeline"),
    (DISCRETE, "v", False, None, "DDPMPipeline"),
    (VPPath(), "data", False, None, "DDPMPipeline"),
    (CosineVPPath(), "v", False, None, "DDPMPipeline"),
    (EDMPath(), "data", True, None, "ConsistencyModelPipeline"),
    (EDMPath(), "data", True, 3, "ConsistencyModelPipeline"),
    (LinearPath(), "velocity", False, 3, "ConsistencyModelPipeline"),
    (DISCRETE, "noise", False, 3, "ConsistencyModelPipeline"),
]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # inside diffusers
@pytest.mark.parametrize(("path", "prediction", "preconditioned", "classes", "name"), STOCK)
def test_stock_diffusers_opens_and_runs_the_result(
    tmp_path: Path, path: GaussianPath, prediction: str, preconditioned: bool, classes: int | None, name: str
) -> None:
    from diffusers import DiffusionPipeline

    assert export_pipeline(tiny_unet(classes), tmp_path, card(path, prediction, preconditioned)) == name
    files = {str(f.relative_to(tmp_path)) for f in tmp_path.rglob("*") if f.is_file()}
    expected = {"model_index.json", "pathline.json", "unet/config.json", "scheduler/scheduler_config.json"}
    assert files == expected | {"unet/diffusion_pytorch_model.safetensors"}
    pipeline = DiffusionPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    assert type(pipeline).__name__ == name
    labels = {} if classes is None else {"class_labels": [0, 2]}
    images = pipeline(batch_size=2, num_inference_steps=2, output_type="np", generator=torch.manual_seed(0), **labels)
    assert images.images.shape == (2, 8, 8, 1)


@pytest.mark.parametrize(("path", "prediction", "preconditioned", "classes", "name"), STOCK)
def test_the_loaded_model_is_the_exported_one(
    tmp_path: Path, path: GaussianPath, prediction: str, preconditioned: bool, classes: int | None, name: str
) -> None:
    network = tiny_unet(classes).eval()
    described = card(path, prediction, preconditioned, null_label=classes)
    export_pipeline(network, tmp_path, described)
    loaded = load_pipeline(tmp_path)
    assert (loaded.path, loaded.prediction, loaded.shape) == (path, prediction, (1, 8, 8))
    assert loaded.null_label == classes
    inner = LabelledNetwork(network, label_count(network))
    model = wrap_network(inner, path, prediction, described["convention"])
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([0.1, 0.5, 0.9])
    with torch.no_grad():
        for labels in ({}, {} if classes is None else {"class_labels": torch.tensor([0, 1, 2])}):
            assert torch.equal(loaded.model(x, t, **labels), model(x, t, **labels))


def raw(network: torch.nn.Module, x: Tensor, time: Tensor) -> Tensor:
    with torch.no_grad():
        return network(x, time).sample


def test_labels_and_signs_of_each_convention() -> None:
    network = tiny_unet().eval()
    inner = LabelledNetwork(network, None)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([0.3, 0.8])

    def output(path: GaussianPath, prediction: str, preconditioned: bool = False) -> Tensor:
        with torch.no_grad():
            return wrap_network(inner, path, prediction, choose_convention(path, prediction, preconditioned))(x, t)

    torch.testing.assert_close(output(LinearPath(), "velocity"), -raw(network, x, 1000 * (1 - t)))
    index = 50 * (1 - t) - 1  # 34 and 9 of the 50 training steps
    torch.testing.assert_close(output(DISCRETE, "noise"), raw(network, x, index.round()))
    torch.testing.assert_close(output(VPPath(), "v"), raw(network, x, 1000 * (1 - t) - 1))
    torch.testing.assert_close(output(LinearPath(), "noise"), raw(network, x, 1000 * (1 - t)))
    sigma = 80 * (1 - t) ** 7
    wide = sigma[:, None, None, None]
    total = wide**2 + 0.25
    residual = raw(network, x / total.sqrt(), sigma.log() / 4)
    expected = 0.25 / total * x + 0.5 * wide / total.sqrt() * residual
    torch.testing.assert_close(output(EDMPath(), "data", True), expected)


@pytest.mark.parametrize(("path", "prediction"), [(LinearPath(), "velocity"), (DISCRETE, "noise"), (DISCRETE, "v")])
def test_stock_sampling_and_pathline_sampling_agree(tmp_path: Path, path: GaussianPath, prediction: str) -> None:
    # The same deterministic sampler through the stock scheduler and through the loaded model.
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    network = tiny_unet().eval()
    export_pipeline(network, tmp_path, card(path, prediction))
    start = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    stock = (FlowMatchEulerDiscreteScheduler if prediction == "velocity" else DDIMScheduler).from_pretrained(
        tmp_path / "scheduler", **({} if prediction == "velocity" else {"set_alpha_to_one": True})
    )
    stock.set_timesteps(5)
    x = start.clone()
    for label in stock.timesteps:
        x = stock.step(raw(network, x, label), label, x).prev_sample
    loaded = load_pipeline(tmp_path)
    if prediction == "velocity":
        times = 1 - stock.sigmas.double()
    else:
        times = torch.cat([1 - (stock.timesteps.double() + 1) / 50, torch.ones(1, dtype=torch.float64)])
    mine = sample(loaded.model, start, method="ddim", grid=times.tolist())
    torch.testing.assert_close(mine, x, rtol=1e-3, atol=1e-4)


def test_betas_are_those_of_the_path() -> None:
    torch.testing.assert_close(
        torch.tensor(training_betas(DISCRETE)), torch.linspace(1e-4, 0.02, 50), rtol=1e-5, atol=0
    )
    for path in (VPPath(), CosinePath()):
        power = torch.cumprod(1 - torch.tensor(training_betas(path), dtype=torch.float64), 0)
        index = torch.arange(0, 999, dtype=torch.float64)
        torch.testing.assert_close(power[:-1], path.signal(1 - (index + 1) / 1000) ** 2, rtol=1e-6, atol=1e-9)
        assert 0 < float(power[-1]) < 1e-3  # a signal of 0 is kept above it


@pytest.mark.parametrize(
    ("path", "prediction"),
    [(LinearPath(), "noise"), (CosinePath(), "velocity"), (SubVPPath(), "noise"), (EDMPath(), "noise")],
)
def test_where_no_stock_scheduler_fits_none_is_named(tmp_path: Path, path: GaussianPath, prediction: str) -> None:
    described = card(path, prediction)
    assert stock_scheduler(path, prediction, described["convention"]) is None
    assert export_pipeline(tiny_unet(), tmp_path, described) is None
    assert not (tmp_path / "model_index.json").exists()
    assert load_pipeline(tmp_path).path == path


@pytest.mark.parametrize("classes", [None, 3])
def test_dit_opens_in_stock_diffusers_and_runs_in_pathline(tmp_path: Path, classes: int | None) -> None:
    from diffusers import DiTPipeline

    config = default_config("dit", (1, 8, 8), classes)
    network = build_network({**config, "num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 16})
    assert export_pipeline(network, tmp_path, card(LinearPath(), "velocity")) == "DiTPipeline"
    pipeline = DiTPipeline.from_pretrained(tmp_path, vae=None)
    assert type(pipeline.transformer).__name__ == "DiTTransformer2DModel"
    loaded = load_pipeline(tmp_path)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([0.2, 0.7])
    null = torch.full((2,), 1 if classes is None else classes)
    with torch.no_grad():
        expected = -pipeline.transformer.eval()(x, timestep=1000 * (1 - t), class_labels=null).sample
        torch.testing.assert_close(loaded.model(x, t), expected)
    # labels are dropped by the trainer alone: two forward passes in training mode agree
    network.train()
    labels = torch.zeros(64, dtype=torch.int64)
    x, t = torch.randn(64, 1, 8, 8), torch.full((64,), 500.0)
    assert torch.equal(network(x, t, class_labels=labels).sample, network(x, t, class_labels=labels).sample)


def test_a_foreign_pipeline_is_read_through_its_scheduler(tmp_path: Path) -> None:
    from diffusers import DDPMPipeline, DDPMScheduler

    network = tiny_unet().eval()
    DDPMPipeline(network, DDPMScheduler(prediction_type="v_prediction")).save_pretrained(tmp_path)
    loaded = load_pipeline(tmp_path)
    assert (loaded.prediction, loaded.metadata) == ("v", {})
    assert isinstance(loaded.path, DiscretePath)
    x = torch.randn(1, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(x, torch.tensor([0.5])), raw(network, x, torch.tensor([499.0])))


@pytest.mark.parametrize(
    ("network", "side"), [("unet", s) for s in (8, 12, 16, 28, 32, 64)] + [("dit", 28), ("dit", 32)]
)
def test_default_networks_fit_their_images(network: str, side: int) -> None:
    config = default_config(network, (3, side, side), 10)
    shrunk = (
        {"block_out_channels": [8] * len(config.get("block_out_channels", [])), "attention_head_dim": 8}
        if network == "unet"
        else {"num_layers": 1}
    )
    model = build_network({**config, **shrunk})
    x = torch.randn(1, 3, side, side)
    with torch.no_grad():
        output = LabelledNetwork(model, label_count(model))(x, torch.tensor([3.0]), torch.tensor([10]))
    assert output.shape == x.shape


@pytest.mark.parametrize("max_decay", [0.5, 0.9999])
def test_the_average_moves_towards_the_weights_and_survives_a_save(tmp_path: Path, max_decay: float) -> None:
    network = torch.nn.Linear(3, 2)
    average = WeightAverage(network, max_decay, inv_gamma=1.0, power=0.75)
    expected = network.weight.detach().clone()
    for k in range(1, 6):
        with torch.no_grad():
            network.weight.add_(1.0)
        average.update(network)
        decay = 0.0 if k == 1 else min(max_decay, 1 - k**-0.75)  # the first update copies
        expected = decay * expected + (1 - decay) * network.weight.detach()
        assert average.decay == pytest.approx(decay)
    own = network.weight.detach().clone()
    with average.applied(network):
        torch.testing.assert_close(network.weight, torch.nn.Parameter(expected))
        assert not network.training
    assert torch.equal(network.weight, own)
    assert network.training
    average.save(tmp_path)
    other = WeightAverage(torch.nn.Linear(3, 2), max_decay, 1.0, 0.75)
    other.load(tmp_path)
    assert (other.updates, other.decay) == (5, average.decay)
    target = torch.nn.Linear(3, 2)
    other.copy_to(target)
    torch.testing.assert_close(target.weight.detach(), expected)
    with pytest.raises(ValueError, match="belongs to another network"):
        WeightAverage(torch.nn.Linear(3, 2, bias=False)).load(tmp_path)


def test_previews_are_enlarged_and_framed(tmp_path: Path) -> None:
    from PIL import Image

    save_preview(tmp_path / "deep" / "grid.png", torch.linspace(-1, 1, 6 * 64).reshape(6, 1, 8, 8))
    with Image.open(tmp_path / "deep" / "grid.png") as image:
        assert image.size == (3 * 68 + 4, 2 * 68 + 4)


def test_bad_input_is_refused_with_words(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown network 'unett'; did you mean 'unet'"):
        default_config("unett", (1, 8, 8))
    with pytest.raises(ValueError, match="square images, got 8x9"):
        default_config("unet", (1, 8, 9))
    with pytest.raises(ValueError, match="unknown setting of UNet2DModel 'layers'; did you mean 'layers_per_block'"):
        build_network({"_class_name": "UNet2DModel", "layers": 2})
    with pytest.raises(ValueError, match="UNet2DModel cannot be built from"):
        build_network({**default_config("unet", (1, 8, 8)), "norm_num_groups": 7})
    with pytest.raises(ValueError, match="unknown network class 'UNet3D'"):
        build_network({"_class_name": "UNet3D"})
    with pytest.raises(ValueError, match="attention_head_dim=24 of UNet2DModel must be at most 16"):
        build_network({**default_config("unet", (1, 8, 8)), "block_out_channels": [8, 16], "norm_num_groups": 4})
    with pytest.raises(ValueError, match="attention_head_dim of DiTTransformer2DModel must be a whole number from 1"):
        build_network({**default_config("dit", (1, 8, 8)), "attention_head_dim": 0})
    with pytest.raises(ValueError, match="takes no class labels"):
        LabelledNetwork(tiny_unet(), None)(torch.zeros(1, 1, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match="EDM preconditioning makes a data prediction on the path 'edm'"):
        choose_convention(LinearPath(), "data", True)
    with pytest.raises(ValueError, match="and diffusers cannot open it"):
        load_pipeline(tmp_path)
    export_pipeline(tiny_unet(), tmp_path, card(LinearPath(), "velocity"))
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(ValueError, match="unet cannot be loaded"):
        load_pipeline(tmp_path)
    content = json.loads((tmp_path / "pathline.json").read_text())
    (tmp_path / "pathline.json").write_text(json.dumps({**content, "format": 99}))
    with pytest.raises(ValueError, match="has format 99; this version reads 1"):
        load_pipeline(tmp_path)
    (tmp_path / "pathline.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        load_pipeline(tmp_path)
