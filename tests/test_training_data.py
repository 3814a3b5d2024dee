"""Data sets from every source, the split, and the order of batches; noises and times keyed by their place."""

import gzip
import json
import struct
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pathline.training import ArraySet, BatchPlan, FileSet, KeyedDraws, fetch_batches, load_data, readers, split_indices


def write_idx(path: Path, array: np.ndarray) -> None:
    header = b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    content = header + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for stem, count in (("train", 7), ("t10k", 3)):
        write_idx(tmp_path / f"{stem}-images-idx3-ubyte.gz", rng.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        write_idx(tmp_path / f"{stem}-labels-idx1-ubyte.gz", np.arange(count, dtype=np.uint8))
    return tmp_path


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for k in range(1, 6):
        sheet = rng.integers(0, 256, (2, 1024, 3), dtype=np.uint8)
        Image.fromarray(sheet).save(tmp_path / f"data_batch_{k}.png")
    Image.fromarray(rng.integers(0, 256, (4, 1024, 3), dtype=np.uint8)).save(tmp_path / "test_batch.png")
    (tmp_path / "train_lables.json").write_text(json.dumps(list(range(10))))
    (tmp_path / "test_lables.json").write_text(json.dumps([1, 0, 9, 3]))
    return tmp_path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    for kind in ("cat", "dog"):
        (tmp_path / kind).mkdir()
        for k in range(6):
            Image.fromarray(rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(tmp_path / kind / f"{k}.png")
    return tmp_path


def test_digits_are_the_default_and_split_alike_every_time() -> None:
    train, test, everything = load_data(), load_data(split="test"), load_data(split="all")
    assert (len(train), len(test), len(everything)) == (1501, 296, 1797)
    assert train.shape == (1, 8, 8)
    images = everything.tensor()
    assert (float(images.min()), float(images.max())) == (-1.0, 1.0)
    assert len(images.unique()) == 17
    first = {tuple(image.flatten().tolist()) for image in train.tensor()}
    assert not any(tuple(image.flatten().tolist()) in first for image in test.tensor())
    assert torch.equal(load_data().tensor(), train.tensor())
    assert train.classes == tuple("0123456789")
    # every class is held out in about the same share
    assert isinstance(test, ArraySet)
    assert test.targets is not None
    assert int(torch.bincount(test.targets).min()) >= 29


def test_resolution_resizes_smoothly_within_range() -> None:
    large = load_data("digits", resolution=16)
    assert large.shape == (1, 16, 16)
    small = torch.nn.functional.avg_pool2d(large.tensor(), 2)
    assert float((small - load_data("digits").tensor()).abs().mean()) < 0.1


def test_fashion_from_idx_files(fashion: Path) -> None:
    train, test = (
        load_data("fashion-mnist", data_dir=fashion),
        load_data("fashion-mnist", data_dir=fashion, split="test"),
    )
    assert (len(train), len(test), train.shape) == (7, 3, (1, 28, 28))
    assert len(load_data("fashion-mnist", data_dir=fashion, split="all")) == 10
    batch = train.__getitems__([2])
    assert batch.labels is not None
    assert train.classes[int(batch.labels[0])] == "Pullover"
    with gzip.open(fashion / "train-images-idx3-ubyte.gz") as stream:
        pixels = np.frombuffer(stream.read(), np.uint8, offset=16).reshape(7, 28, 28)
    np.testing.assert_allclose(batch.images[0, 0].numpy(), pixels[2] / 127.5 - 1, atol=1e-6)


def test_cifar_rows_are_images(cifar: Path) -> None:
    train, test = load_data("cifar10", data_dir=cifar), load_data("cifar10", data_dir=cifar, split="test")
    assert (len(train), len(test), train.shape) == (10, 4, (3, 32, 32))
    with Image.open(cifar / "data_batch_2.png") as sheet:
        row = np.asarray(sheet)[1]
    batch = train.__getitems__([3])
    np.testing.assert_allclose(batch.images[0].permute(1, 2, 0).reshape(1024, 3).numpy(), row / 127.5 - 1, atol=1e-6)
    assert batch.labels is not None
    assert int(batch.labels[0]) == 3


@pytest.mark.parametrize("in_memory", [True, False])
def test_folders_take_their_classes_from_sub_folders(
    tree: Path, in_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_memory:
        monkeypatch.setattr(readers, "_IN_MEMORY", 3)
    data = load_data(data_dir=tree, center_crop=True, resolution=8, split="all")
    assert isinstance(data, ArraySet if in_memory else FileSet)
    assert (len(data), data.shape, data.classes) == (12, (3, 8, 8), ("cat", "dog"))
    batch = data.__getitems__([0, 11])
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 1]
    train, test = load_data(data_dir=tree, center_crop=True), load_data(data_dir=tree, center_crop=True, split="test")
    assert (len(train), len(test)) == (10, 2)
    batches = [[0, 3], [5, 1], [2, 4]]
    for workers in (0, 2):
        fetched = [batch.images for batch in fetch_batches(data, batches, workers)]
        expected = [data.__getitems__(indices).images for indices in batches]
        assert all(torch.equal(a, b) for a, b in zip(fetched, expected, strict=True))


def test_a_folder_split_by_its_owner_is_left_so(tree: Path) -> None:
    (tree / "train").mkdir()
    (tree / "test").mkdir()
    (tree / "cat").rename(tree / "train" / "cat")
    (tree / "dog").rename(tree / "test" / "dog")
    assert load_data(data_dir=tree, center_crop=True).classes == ("cat",)
    assert load_data(data_dir=tree, center_crop=True, split="test").classes == ("dog",)


@pytest.mark.parametrize("channels", [1, 3])
def test_npz(tmp_path: Path, channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 6, 6, channels), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", arr_0=pixels, labels=np.arange(12) % 3)
    data = load_data(data_dir=tmp_path / "x.npz", split="all")
    assert (data.shape, data.classes) == ((channels, 6, 6), ("0", "1", "2"))
    np.testing.assert_allclose(data.tensor().permute(0, 2, 3, 1).numpy(), pixels / 127.5 - 1, atol=1e-6)
    np.savez(tmp_path / "y.npz", arr_0=pixels[..., 0])
    plain = load_data(data_dir=tmp_path / "y.npz")
    assert isinstance(plain, ArraySet)
    assert plain.targets is None


def test_hub_names_go_through_the_datasets_library(monkeypatch: pytest.MonkeyPatch) -> None:
    class Table(dict):
        column_names = ("img", "label")

        @property
        def features(self) -> dict:
            return {"label": types.SimpleNamespace(names=["a", "b"])}

    rows = [Image.fromarray(np.full((4, 4), k, np.uint8)) for k in range(3)]
    asked = []

    def load_dataset(name: str, split: str) -> Table:
        asked.append((name, split))
        return Table(img=rows, label=[0, 1, 1])

    library = types.SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", library)
    data = load_data("someone/images", split="test")
    assert asked == [("someone/images", "test")]
    assert (data.shape, data.classes, len(data)) == ((1, 4, 4), ("a", "b"), 3)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"unknown data set 'digit'; did you mean 'digits'.*pip install datasets"):
        load_data("digit")


def spoil_idx(folder: Path) -> None:
    write_idx(folder / "train-images-idx3-ubyte", np.zeros((2, 28, 28), np.uint8))
    whole = (folder / "train-images-idx3-ubyte").read_bytes()
    (folder / "train-images-idx3-ubyte").write_bytes(whole[:-5])


def spoil_gzip(folder: Path) -> None:
    (folder / "train-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8b\x08\x00garbage")


def spoil_image(folder: Path) -> None:
    for k in range(3):
        Image.new("RGB", (4, 4)).save(folder / f"{k}.png")
    (folder / "1.png").write_bytes(b"not an image")


def uneven_images(folder: Path) -> None:
    Image.new("RGB", (4, 4)).save(folder / "0.png")
    Image.new("RGB", (5, 5)).save(folder / "1.png")


def oblong(folder: Path) -> None:
    Image.new("RGB", (4, 6)).save(folder / "0.png")


def loose(folder: Path) -> None:
    (folder / "cat").mkdir()
    Image.new("RGB", (4, 4)).save(folder / "cat" / "0.png")
    Image.new("RGB", (4, 4)).save(folder / "stray.png")


def narrow_sheet(folder: Path) -> None:
    Image.new("RGB", (1000, 2)).save(folder / "data_batch_1.png")
    (folder / "train_lables.json").write_text("[0, 1]")


def bad_labels(folder: Path) -> None:
    (folder / "train_lables.json").write_text("{}")


@pytest.mark.parametrize(
    ("name", "spoil", "words"),
    [
        ("fashion-mnist", lambda folder: None, "train-images-idx3-ubyte cannot be read"),
        ("fashion-mnist", spoil_idx, r"damaged: its header says \(2, 28, 28\), 1563 bytes follow"),
        ("fashion-mnist", spoil_gzip, r"train-images-idx3-ubyte.gz cannot be read"),
        ("cifar10", lambda folder: None, "has no train_lables.json"),
        ("cifar10", narrow_sheet, "must be 1024 pixels wide"),
        ("cifar10", bad_labels, "train_lables.json is not a list of class numbers"),
        (None, lambda folder: None, "holds no images"),
        (None, spoil_image, r"1.png cannot be read"),
        (None, uneven_images, r"1.png is \(3, 5, 5\).*the first is \(3, 4, 4\); use --resolution"),
        (None, oblong, "6x4 pixels, not square; use --center_crop"),
        (None, loose, "stray.png lies beside class folders"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str | None, spoil: Callable[[Path], None], words: str) -> None:
    spoil(tmp_path)
    with pytest.raises(ValueError, match=words):
        load_data(name, data_dir=tmp_path)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"other": np.zeros(3)}, "cannot be read as an .npz with arr_0"),
        ({"arr_0": np.zeros((3, 4, 4, 3))}, "arr_0 of .* must be uint8"),
        ({"arr_0": np.zeros((3, 4, 4, 2), np.uint8)}, "1 or 3 channels"),
        ({"arr_0": np.zeros((0, 4, 4, 3), np.uint8)}, "holds no images"),
        ({"arr_0": np.zeros((6, 4, 4, 3), np.uint8), "labels": np.zeros(3)}, "6 images but labels of shape"),
        ({"arr_0": np.zeros((3, 4, 4, 3), np.uint8)}, "too few to hold out one in 6"),
    ],
)
def test_bad_arrays_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], words: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=words):
        load_data(data_dir=tmp_path / "x.npz")


def test_other_bad_input() -> None:
    with pytest.raises(ValueError, match="unknown split 'validation'"):
        load_data(split="validation")
    with pytest.raises(ValueError, match="resolution must be at least 1"):
        load_data(resolution=0)
    with pytest.raises(ValueError, match="CIFAR-10 needs --train_data_dir"):
        load_data("cifar10")
    with pytest.raises(ValueError, match="neither a folder of images nor an"):
        load_data(data_dir="nowhere.npz")
    with pytest.raises(ValueError, match="labels of 'x' run from 0 to 5, but there are 2 classes"):
        ArraySet("x", torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 5]), ("a", "b"))


def test_split_parts_are_disjoint_and_complete() -> None:
    train, test = split_indices(100, "train"), split_indices(100, "test")
    assert sorted(torch.cat([train, test]).tolist()) == list(range(100))
    assert len(test) == 16


def test_every_split_of_a_step_sees_the_same_global_batch() -> None:
    whole = BatchPlan(23, 12, 1, 1, seed=5)
    for processes, accumulation in ((2, 1), (1, 3), (2, 2), (3, 2)):
        part = BatchPlan(23, 12 // processes // accumulation, processes, accumulation, seed=5)
        for step in (0, 1, 2, 9):
            places = torch.cat([part.places(m, p) for m in range(accumulation) for p in range(processes)])
            assert places.tolist() == list(range(12))
            assert part.indices(step, places) == whole.indices(step, whole.places(0, 0))


def test_each_epoch_is_a_new_permutation() -> None:
    plan = BatchPlan(10, 5, 1, 1, seed=1)
    order = [i for indices in plan.index_batches(0, 6, 0) for i in indices]
    epochs = [order[k : k + 10] for k in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    other = BatchPlan(10, 5, 1, 1, seed=2)
    assert [i for indices in other.index_batches(0, 2, 0) for i in indices] not in epochs
    assert list(plan.index_batches(3, 6, 0)) == list(plan.index_batches(0, 6, 0))[3:]


def test_draws_depend_on_seed_step_and_place_only() -> None:
    draws = KeyedDraws(7, 16)
    like = torch.zeros(16, 1, 4, 4)
    places = torch.arange(16)
    noise, times = draws.noise(3, places, like), draws.stratified(3, places)
    part = torch.tensor([5, 11])
    assert torch.equal(draws.noise(3, part, like[:2]), noise[part])
    assert torch.equal(draws.stratified(3, part), times[part])
    assert not torch.equal(draws.noise(4, places, like), noise)
    assert not torch.equal(KeyedDraws(8, 16).noise(3, places, like), noise)
    assert sorted((times * 16).floor().long().tolist()) == list(range(16))  # one in each stratum


def test_draws_have_their_laws() -> None:
    draws = KeyedDraws(0, 4096)
    places = torch.arange(4096)
    noise = draws.noise(0, places, torch.zeros(4096, 16))
    assert abs(float(noise.mean())) < 0.02
    assert abs(float(noise.std()) - 1) < 0.02
    uniforms = torch.cat([draws.uniforms(0, places), draws.stratified(1, places)])
    assert float(uniforms.min()) > 0
    assert float(uniforms.max()) < 1
    assert abs(float(uniforms.mean()) - 0.5) < 0.01
    # a place's time is uniform over the steps, also when stratified within each
    small = KeyedDraws(0, 4)
    over_steps = torch.stack([small.stratified(step, torch.arange(4)) for step in range(500)])
    ranks = over_steps.sort(0).values[:, 0]
    grid = torch.linspace(0, 1, 500, dtype=ranks.dtype)
    assert float((ranks - grid).abs().max()) < 1.63 / 500**0.5  # Kolmogorov-Smirnov at 1 %
