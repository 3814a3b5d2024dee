"""Images to restore, latents, scaled skips, and the direction of the velocity, in runs and by themselves."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pathline.interpolants import LinearPath
from pathline.samplers import sample
from pathline.training import GaussianObjective, build_network, default_config, load_data, load_pipeline
from pathline.training.degradation import degradation_from_config
from pathline.training.direction import loss_with_direction
from pathline.training.networks import scale_skips
from support.training_runs import fresh_accelerate, resumed_equals_unbroken, run

INPAINTING = {"image_condition": "inpainting", "image_condition_config": {"tiles": 4, "hidden": 0.5}}
SMALLER = {"image_condition": "super_resolution", "image_condition_config": {"factor": 2, "noise": 0.2}}


@pytest.fixture(autouse=True)
def accelerate_state() -> Iterator[None]:
    with fresh_accelerate():
        yield


@pytest.mark.parametrize(
    ("settings", "start"),
    [
        (INPAINTING, True),
        (SMALLER, False),
        pytest.param(INPAINTING, False, marks=pytest.mark.slow),
        pytest.param(SMALLER, True, marks=pytest.mark.slow),
    ],
    ids=["inpainting-image", "super-resolution-noise", "inpainting-noise", "super-resolution-image"],
)
def test_restoring_runs_resume_and_load(tmp_path: Path, settings: dict[str, Any], start: bool) -> None:
    options = {**settings, "image_start": start, "preview_images": 4, "preview_nfe": 2, "class_conditional": start}
    folder = resumed_equals_unbroken(tmp_path, **options)
    assert (folder / "previews" / "step-000006.png").is_file()
    assert not (folder / "model_index.json").exists()  # no stock pipeline hands on an image
    loaded = load_pipeline(folder)
    assert loaded.shape == (1, 8, 8)
    degrade = degradation_from_config(loaded.metadata["image_condition"])
    data = load_data("digits").tensor()[:3]
    generator = torch.Generator().manual_seed(0)
    noise, uniforms = torch.randn(data.shape, generator=generator), torch.rand(3, 4, 4, generator=generator)
    begin, conditions = degrade(data, noise, uniforms)
    made = sample(loaded.model, begin, method="heun", grid="time", nfe=4, model_kwargs=conditions)
    assert isinstance(made, Tensor)
    assert bool(torch.isfinite(made).all())
    if start and settings is INPAINTING:  # what is kept does not move
        kept = conditions["free"] == 0
        assert bool(kept.any())
        torch.testing.assert_close(made[kept], data[kept])
    with pytest.raises(ValueError, match="this network needs an image beside the state"):
        loaded.model(noise, torch.full((3,), 0.5))


@pytest.mark.slow
def test_restoring_learns_from_what_it_sees(tmp_path: Path) -> None:
    """The loss of a network that sees half of the image is lower than that of one that sees nothing."""
    options = {"max_train_steps": 40, "train_batch_size": 16, "learning_rate": 5e-3, "logging_steps": 20}
    found = []
    for name, extra in (("plain", {}), ("seen", SMALLER), ("start", {**SMALLER, "image_start": True})):
        lines = (run(tmp_path / name, **options, **extra) / "log.jsonl").read_text().splitlines()
        found.append(json.loads(lines[-1])["loss"])
    assert found[1] < 0.9 * found[0]
    assert found[2] < 0.5 * found[0]


def test_latents_are_scaled_and_learned(tmp_path: Path) -> None:
    values = 3.0 + 5.0 * np.random.default_rng(0).standard_normal((48, 4, 8, 8)).astype(np.float16)
    np.savez(tmp_path / "x.npz", latents=values, labels=np.arange(48) % 3)
    options = {"latents": str(tmp_path / "x.npz"), "latent_scale": 0.2, "latent_shift": 3.0}
    folder = resumed_equals_unbroken(tmp_path, **options, class_conditional=True, preview_images=4)
    loaded = load_pipeline(folder)
    assert loaded.shape == (4, 8, 8)
    assert loaded.metadata["latents"] == {"scale": 0.2, "shift": 3.0}
    assert loaded.metadata["data"]["images"] == 42  # one in six is held out, of each class alike
    assert not (folder / "previews").exists()
    from pathline.training.latents import read_latents

    batch = read_latents(str(tmp_path / "x.npz"), "all", 0.2, 3.0).__getitems__(range(48))
    assert abs(float(batch.images.mean())) < 0.1
    assert float(batch.images.std()) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"latents": np.zeros((4, 4, 8, 8), np.uint8)}, "must be floats"),
        ({"latents": np.full((12, 4, 8, 8), np.nan, np.float32)}, "not finite: 12 of 12, first 0"),
        ({"other": np.zeros(3)}, "cannot be read as an .npz with latents"),
        ({"latents": np.zeros((12, 4, 8, 8), np.float32), "labels": np.zeros(3)}, "must be 12 class numbers"),
    ],
)
def test_bad_latents_are_named(tmp_path: Path, content: dict[str, Any], words: str) -> None:
    np.savez(tmp_path / "x.npz", **content)
    with pytest.raises(ValueError, match=words):
        run(tmp_path / "out", latents=str(tmp_path / "x.npz"))


def unet() -> torch.nn.Module:
    torch.manual_seed(0)
    config = default_config("unet", (1, 8, 8))
    return build_network({**config, "block_out_channels": [8, 16], "norm_num_groups": 4, "attention_head_dim": 8})


def test_skips_are_scaled_outermost_least() -> None:
    x, t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([0.2, 0.7])
    plain, scaled = unet(), unet()
    seen: list[Tensor] = []
    for network in (plain, scaled):
        if network is scaled:
            scale_skips(network, 0.5)
        for block in network.up_blocks:  # type: ignore[union-attr]
            # hooks run in order of their registration: this one sees what the block sees
            block.register_forward_pre_hook(lambda block, arguments: seen.extend(reversed(arguments[1])))
        with torch.no_grad():
            network(x, t)
    half = len(seen) // 2
    inner_first = zip(seen[:half], seen[half:], strict=True)
    for exponent, (before, after) in zip(reversed(range(half)), inner_first, strict=True):
        assert float(after.norm() / before.norm()) == pytest.approx(0.5**exponent, rel=1e-5)


def test_a_scale_of_one_changes_nothing_and_others_are_loaded_again(tmp_path: Path) -> None:
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([0.2, 0.7])
    plain, one = unet(), unet()
    scale_skips(one, 1.0)
    with torch.no_grad():
        assert torch.equal(plain(x, t).sample, one(x, t).sample)
    folder = resumed_equals_unbroken(tmp_path, skip_scale=0.7)
    assert not (folder / "model_index.json").exists()
    loaded = load_pipeline(folder)
    hooked = [len(block._forward_pre_hooks) for block in loaded.network.up_blocks]  # type: ignore[union-attr]
    assert hooked == [1, 1]


def test_direction_is_added_to_the_loss() -> None:
    path = LinearPath()
    data, noise = torch.randn(2, 6, 3, 4, 4, dtype=torch.float64)
    t = torch.rand(6, dtype=torch.float64) * 0.8 + 0.1
    exact = GaussianObjective(path, "velocity")
    right = loss_with_direction(exact, 2.0, lambda x, t: 3.0 * (data - noise), data, noise, t)
    torch.testing.assert_close(right, 4.0 * (data - noise).square().flatten(1).mean(1))  # any length points right
    wrong = loss_with_direction(exact, 2.0, lambda x, t: noise - data, data, noise, t)
    torch.testing.assert_close(wrong, 4.0 * (data - noise).square().flatten(1).mean(1) + 4.0)
    of_data = GaussianObjective(path, "data")
    torch.testing.assert_close(
        loss_with_direction(of_data, 1.0, lambda x, t: data, data, noise, t), torch.zeros(6, dtype=torch.float64)
    )


def test_a_run_with_direction_has_a_larger_loss(tmp_path: Path) -> None:
    first = {"logging_steps": 1, "max_train_steps": 1}
    plain, more = (run(tmp_path / str(w), direction_weight=w, **first) for w in (0.0, 1.0))
    values = [json.loads((folder / "log.jsonl").read_text())["loss"] for folder in (plain, more)]
    assert 0.5 < values[1] - values[0] < 1.5  # an untrained network points anywhere


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_condition": "inpaint"}, "unknown image_condition 'inpaint'"),
        ({**SMALLER, "image_condition_config": {"factor": 3}}, "sides divisible by 3"),
        ({**SMALLER, "image_condition_config": {"scale": 3}}, "unknown parameter of 'super_resolution'.* 'scale'"),
        ({**SMALLER, "image_condition_config": {"factor": 1}}, "factor=1"),
        ({"image_start": True}, "image_start and image_condition_config need image_condition"),
        ({**SMALLER, "image_start": True, "objective": "noise"}, "image_start needs path 'linear'"),
        ({**SMALLER, "coupling": "ot"}, "coupling='ot' does not go with image_condition"),
        ({"latents": "x.npz", "dataset_name": "digits"}, "latents are a data set of their own; leave out dataset_name"),
        ({"latents": "x.npz", "random_flip": True}, "random_flip is for images"),
        ({"latents": "nowhere.npz"}, "nowhere.npz cannot be read"),
        ({"skip_scale": 1.5}, r"skip_scale must be in \(0, 1\], got 1\.5"),
        (
            {"skip_scale": 0.5, "network": "dit", "network_config": {}},
            r"needs a network with skip connections \(unet\)",
        ),
        ({"direction_weight": -1.0}, "direction_weight must be a finite number of at least 0"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        run(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
