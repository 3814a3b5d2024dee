"""What a run refuses before any work: other data, images of other kinds, options that contradict each other."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pathline.samplers import plan
from pathline.training import TrainOptions, load_data, load_pipeline, resolve_options, train_recipe
from pathline.training.fingerprint import differences, fingerprint
from pathline.training.image_files import read_image
from pathline.training.options import merge_options
from pathline.training.previews import check_preview
from pathline.training.setup import make_task
from pathline.training.trainer import Trainer
from support.training_runs import TINY, fresh_accelerate, run, same, weights


@pytest.fixture(autouse=True)
def accelerate_state() -> Iterator[None]:
    with fresh_accelerate():
        yield


def write_images(folder: Path, seed: int = 0, kinds: str = "ab", channels: int = 1) -> Path:
    rng = np.random.default_rng(seed)
    for number in range(24):
        place = folder / kinds[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (8, 8, channels), np.uint8)
        Image.fromarray(pixels if channels > 1 else pixels[..., 0]).save(place / f"{number:02d}.png")
    return folder


def test_a_moved_folder_resumes_and_other_images_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, out = write_images(tmp_path / "images"), tmp_path / "out"
    options: dict[str, Any] = {"lr_scheduler": "constant", "resume_from_checkpoint": "latest"}
    whole = run(tmp_path / "whole", lr_scheduler="constant", max_train_steps=4, train_data_dir=str(images))
    run(out, lr_scheduler="constant", max_train_steps=2, train_data_dir=str(images))
    words = r"checkpoint-2 belongs to a run on other data: images are others \(16 of 16 looked at\); use the same"
    with pytest.raises(ValueError, match=words):
        run(out, **options, max_train_steps=4, train_data_dir=str(write_images(tmp_path / "other", seed=1)))
    with pytest.raises(ValueError, match=r"other data: classes was \['a', 'b'\], is \['c', 'd'\]"):
        run(out, **options, max_train_steps=4, train_data_dir=str(write_images(tmp_path / "named", kinds="cd")))
    with pytest.raises(ValueError, match=r"shape .* was \[1, 8, 8\], is \[3, 8, 8\]"):
        run(out, **options, max_train_steps=4, train_data_dir=str(write_images(tmp_path / "colour", channels=3)))
    shutil.move(images, tmp_path / "elsewhere")
    monkeypatch.setattr("pathline.training.readers._IN_MEMORY", 0)  # read from the disk now
    run(out, **options, max_train_steps=4, train_data_dir=str(tmp_path / "elsewhere"))
    assert same(weights(whole), weights(out))


def test_fingerprints_see_through_rounding_but_not_through_mirrors() -> None:
    data = load_data("digits")
    before = fingerprint(data)
    changed = data.subset(torch.arange(len(data)))
    rounded, mirrored = changed.tensor() + 0.9 / 255, changed.tensor().flip(-1)

    class Changed:
        name, shape, classes = data.name, data.shape, data.classes

        def __init__(self, images: torch.Tensor) -> None:
            self.images = images

        def __len__(self) -> int:
            return len(self.images)

        def __getitems__(self, indices: Any) -> Any:
            return data.__getitems__(indices)._replace(images=self.images[torch.as_tensor(indices)])

    assert differences(before, fingerprint(Changed(rounded))) == []
    assert differences(before, fingerprint(Changed(mirrored))) != []
    assert differences(before, {**before, "labels": [0] * 16}) == ["labels of the images are others"]
    assert differences(before, fingerprint(Changed(mirrored), look=False)) == []


def test_sixteen_bits_are_scaled_and_what_has_no_range_is_refused(tmp_path: Path) -> None:
    levels = np.array([[0, 257, 128 * 257], [65_535, 200 * 257 + 128, 200 * 257 + 129]], np.uint16)
    for name, pixels in (("a.png", levels), ("b.tif", levels.astype(np.int32))):
        Image.fromarray(pixels).save(tmp_path / name)
        assert read_image(str(tmp_path / name)).tolist() == [[[0, 1, 128], [255, 200, 201]]]
    Image.fromarray(levels.astype(np.int32) * 2).save(tmp_path / "c.tif")
    with pytest.raises(ValueError, match=r"c\.tif cannot be read: its pixels lie in 0 to 131070, beyond 16 bits"):
        read_image(str(tmp_path / "c.tif"))
    Image.fromarray(levels.astype(np.float32)).save(tmp_path / "d.tif")
    with pytest.raises(ValueError, match=r"d\.tif cannot be read: its pixels are fractions"):
        read_image(str(tmp_path / "d.tif"))


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
def test_an_opaque_alpha_channel_is_dropped_and_a_transparent_one_refused(tmp_path: Path, mode: str) -> None:
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 4) * 16
    image = Image.fromarray(pixels)
    image = image.quantize(16) if mode == "P" else image.convert(mode)
    for name, alpha in (("opaque", [255] * 16), ("clear", [255] * 12 + [128] * 4)):
        if mode == "P":
            image.save(tmp_path / f"{name}.png", transparency=bytes(alpha))
        else:
            image.putalpha(Image.fromarray(np.array(alpha, np.uint8).reshape(4, 4)))
            image.save(tmp_path / f"{name}.png")
    read = read_image(str(tmp_path / "opaque.png"))
    assert len(read) == (1 if mode == "LA" else 3)
    assert bool((read == torch.from_numpy(pixels)).all())
    with pytest.raises(ValueError, match=r"clear\.png cannot be read: it is transparent in 4 pixels"):
        read_image(str(tmp_path / "clear.png"))


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_folder_has_images_of_one_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: bool) -> None:
    folder = write_images(tmp_path / "images")
    if not in_memory:
        monkeypatch.setattr("pathline.training.readers._IN_MEMORY", 0)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "b" / "11.png")
    words = r"b/11\.png is in colour \(3 channels\), the first, .*a/00\.png, is grey \(1 channel\)"
    with pytest.raises(ValueError, match=words):
        load_data(data_dir=folder, split="all").__getitems__(range(24))


def test_a_set_of_the_hub_has_images_of_one_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    class Table:
        column_names = ("image",)

        def __getitem__(self, column: str) -> list[Image.Image]:
            deep = Image.fromarray(np.full((4, 4), 257 * 9, np.uint16))
            return [deep, Image.fromarray(np.zeros((4, 4, self.channels), np.uint8).squeeze())]

        channels = 3

    library = type("Library", (), {"load_dataset": staticmethod(lambda *_, **__: Table())})
    monkeypatch.setitem(__import__("sys").modules, "datasets", library)
    with pytest.raises(ValueError, match=r"image 1 of data set 'some/set' is \(4, 4, 3\) .*the first is \(4, 4, 1\)"):
        load_data("some/set")
    monkeypatch.setattr(Table, "channels", 1)
    assert load_data("some/set").tensor()[:, 0, 0, 0].tolist() == pytest.approx([9 / 127.5 - 1, -1.0])


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"network_config": {"in_channels": 3}}, r"in_channels=3, but images of digits are \(1, 8, 8\).* must be 1"),
    ({"network_config": {"sample_size": 16}}, "sample_size=16, but images of digits .* must be 8"),
    ({"num_epochs": 2, "max_train_steps": 5}, "num_epochs=2 and max_train_steps=5 both say"),
    ({"coupling": "sinkhorn", "coupling_config": {"each_data": False}}, "coupling_config has each_data=False"),
    (
        {"image_condition": "inpainting", "image_condition_config": {"tiles": 2.0}},
        r"tiles=2\.0 of 'inpainting' \(image_condition_config\) must be a whole number",
    ),
    (
        {"objective": "edm", "path_config": {"sigma_max": "x"}},
        "path_config has sigma_max='x' for path 'edm', which must",
    ),
    ({"time_density": "mode", "time_density_config": {"scale": "x"}}, "'mode' cannot be made of .*'scale': 'x'"),
    ({"objective": "v", "loss_weight": "sigmoid", "loss_weight_config": {"bias": "x"}}, "bias of a loss weight must"),
]


@pytest.mark.parametrize(("options", "words"), REFUSED, ids=[next(reversed(options)) for options, _ in REFUSED])
def test_options_that_do_not_fit_are_refused_by_name(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        run(tmp_path / "out", **{"max_train_steps": 2, **options})
    assert not (tmp_path / "out").exists()


def test_the_length_given_last_holds(tmp_path: Path) -> None:
    assert merge_options({"max_train_steps": 5, "seed": 1}, {"num_epochs": 2}) == {"seed": 1, "num_epochs": 2}
    assert merge_options({"num_epochs": 5, "seed": 1}, {"seed": 2}) == {"num_epochs": 5, "seed": 2}
    given = {**TINY, "output_dir": str(tmp_path), "num_epochs": 2, "train_batch_size": 1000}
    del given["max_train_steps"]
    options = resolve_options(given)
    before = options.to_dict()
    trainer = Trainer(options)
    assert options.to_dict() == before
    assert trainer.snapshots is None
    assert (trainer.options.max_train_steps, trainer.options.num_epochs) == (4, None)  # 1,501 images
    assert resolve_options(trainer.options.to_dict()) == trainer.options


def test_a_model_to_build_on_must_know_the_same_data(tmp_path: Path) -> None:
    given: dict[str, Any] = {**TINY, "max_train_steps": 1, "reflow_pairs": 8, "reflow_nfe": 2}
    images = str(write_images(tmp_path / "images"))
    first = run(tmp_path / "out" / "first", max_train_steps=1)
    words = "first was trained on other data than asked for: dataset_name None in place of 'digits'; train_data_dir '"
    with pytest.raises(ValueError, match=words):
        train_recipe("rectified-flow", {**given, "output_dir": str(tmp_path / "out"), "train_data_dir": images})
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["first"]
    with pytest.raises(ValueError, match=r"reflow_from .* other data .*dataset_name 'fashion-mnist' in place of 'dig"):
        run(tmp_path / "second", **given, reflow_from=str(first), dataset_name="fashion-mnist")
    with pytest.raises(ValueError, match="resolution 16 in place of None"):
        resolve_options({"reflow_from": str(first), "dataset_name": "digits", "resolution": 16})
    done = run(tmp_path / "third", **given, reflow_from=str(first), dataset_name="digits")
    assert load_pipeline(done).metadata["data"]["name"] == "digits"


def test_previews_from_an_image_follow_the_flow() -> None:
    given = {"image_condition": "super_resolution", "image_condition_config": {"factor": 2}, "image_start": True}
    options = resolve_options({**given, "preview_nfe": 6})
    task = make_task(options)
    assert task.sampling(None, 6) == {"method": "heun", "nfe": 6, "grid": "time"}
    assert task.sampling(None, 1)["method"] == "euler"
    assert plan(task.path, prediction=task.prediction, **task.sampling(None, 1)).method == "euler"
    assert task.sampling("dopri5", 30) == {"method": "dopri5", "nfe": 30}
    with pytest.raises(ValueError, match=r"preview_method 'dpm\+\+-sde' adds noise"):
        check_preview(resolve_options({**given, "preview_method": "dpm++-sde"}), task)
    assert make_task(resolve_options({})).sampling(None, 6) == {"method": None, "nfe": 6}
    assert isinstance(options, TrainOptions)
