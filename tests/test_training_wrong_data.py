"""Wrong labels and biased data in the trainer: guides, losses, data made wrong on purpose, refusals, resumes."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pathline.interpolants import EDMPath
from pathline.training import ArraySet, load_data, resolve_options, symmetric_noise
from pathline.training.guides import GUIDE_FILE, Guide, fit_guide, load_guide, new_guide
from pathline.training.robust_data import JoinedSet, transition_matrix, with_bias, with_wrong_labels
from pathline.training.robust_tasks import BiasedDataTask, NoisyLabelTask
from pathline.training.setup import make_data, make_task
from pathline.training.tasks import GaussianTask, Preparation, Samples
from support.training_runs import fresh_accelerate, losses, resumed_equals_unbroken, run, same, weights

NOISY = {"class_conditional": True, "label_noise": "0.4", "corrupt_labels": True, "guide_steps": 3}
BIAS = {"classes": [5, 6, 7, 8, 9], "kept": 0.1, "reference": 200}
BIASED = {"objective": "edm", "simulated_bias": BIAS, "guide_steps": 3}
F64 = torch.float64


@pytest.fixture(autouse=True)
def accelerate_state() -> Iterator[None]:
    with fresh_accelerate():
        yield


def prepared(folder: Path, **options: Any) -> Any:
    resolved = resolve_options(options)
    task, data = make_task(resolved), make_data(resolved)
    said: list[str] = []
    task.prepare(Preparation(folder, data, torch.device("cpu"), 0, True, lambda: None, said.append))
    return task, data, said


def network(x: Tensor, label: Tensor, class_labels: Tensor | None = None) -> Tensor:
    kind = torch.zeros(len(x)) if class_labels is None else class_labels.to(x)
    return torch.tanh(x + 0.1 * kind[:, None, None, None] + 1e-3 * label.to(x)[:, None, None, None])


def samples(labels: Tensor) -> Samples:
    generator = torch.Generator().manual_seed(0)
    data, start = torch.randn(2, len(labels), 1, 8, 8, generator=generator)
    times = (torch.arange(len(labels), dtype=F64) + 0.5) / len(labels)
    return Samples(data, start, times, {"class_labels": labels})


def test_dropped_labels_have_the_plain_loss_and_others_that_of_the_mixture(tmp_path: Path) -> None:
    task, _, said = prepared(tmp_path, **NOISY)
    assert isinstance(task, NoisyLabelTask)
    assert [sentence.split(" ")[0] for sentence in said] == ["training", "classifier"]
    plain = make_task(resolve_options({"class_conditional": True}))
    made = samples(torch.tensor([10, 3, 10, 7]))
    model = task.wrap(network)
    robust, usual = task.losses(model, made), plain.losses(plain.wrap(network), made)
    assert torch.equal(robust[::2], usual[::2])
    assert not bool(torch.isclose(robust[1::2], usual[1::2], rtol=1e-4).any())
    logits = task.guide(torch.zeros(1, 1, 8, 8), torch.zeros(1))
    with torch.no_grad():  # a guide that knows the class leaves nothing to mix
        task.guide.prior.copy_(1e4 * torch.nn.functional.one_hot(torch.tensor(3), 10))  # type: ignore[union-attr]
    assert logits.shape == (1, 10)
    sure = samples(torch.tensor([3, 3, 10, 3]))
    torch.testing.assert_close(task.losses(model, sure), plain.losses(plain.wrap(network), sure))


def test_a_guide_says_nothing_in_pure_noise_and_its_gradient_is_the_signal() -> None:
    path = EDMPath(sigma_max=1e4)
    guide = new_guide(path, (1, 8, 8), 1, prior=False, sigma_data=0.5, seed=0).double()
    x = torch.randn(4, 1, 8, 8, dtype=F64) * 1e4
    assert float(guide(x, torch.zeros(4, dtype=F64)).detach().abs().max()) < 1e-3
    with_prior = new_guide(path, (1, 8, 8), 3, prior=True, sigma_data=0.5, seed=0).double()
    assert with_prior.prior is not None
    torch.nn.init.constant_(with_prior.prior, 0.7)
    torch.testing.assert_close(
        with_prior(x, torch.zeros(4, dtype=F64)), torch.full((4, 3), 0.7, dtype=F64), atol=1e-3, rtol=0
    )


def test_a_discriminator_finds_the_ratio_of_two_laws(tmp_path: Path) -> None:
    """N(m, 1) against N(−m, 1) in each of 4 pixels: the logit at noise level s is 2m·Σx/(1 + s²)."""
    path, mean = EDMPath(sigma_min=0.5, sigma_max=2.0), 0.3
    guide = new_guide(path, (1, 2, 2), 1, prior=False, sigma_data=1.0, seed=0)

    def draw(generator: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
        first = torch.arange(count) % 2 == 0
        centre = torch.where(first, mean, -mean)[:, None, None, None]
        return centre + torch.randn(count, 1, 2, 2, generator=generator), first

    def loss(logits: Tensor, first: Tensor) -> Tensor:
        return torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], first.float(), reduction="none")

    fit_guide(guide, draw, loss, lambda u: u, steps=100, seed=0)
    guide.save(tmp_path / GUIDE_FILE, {"kind": "discriminator"})
    again = load_guide(tmp_path / GUIDE_FILE)
    x = torch.randn(512, 1, 2, 2, generator=torch.Generator().manual_seed(9))
    t = torch.full((512,), 0.5)
    found, level = again(x, t)[:, 0], float(path.noise(0.5))
    expected = 2 * mean * x.flatten(1).sum(1) / (1 + level**2)
    assert float(torch.corrcoef(torch.stack([found, expected]))[0, 1]) > 0.98
    assert float((found - expected).abs().mean()) < 0.25 * float(expected.abs().mean())
    torch.testing.assert_close(again(x, t), guide.eval()(x, t))


def test_biased_losses_are_those_of_the_library(tmp_path: Path) -> None:
    task, data, _ = prepared(tmp_path, **BIASED)
    assert isinstance(task, BiasedDataTask)
    assert isinstance(data, JoinedSet)
    assert task.config()["reference_share"] == len(data.reference) / len(data) == data.share
    from pathline.training import BiasedDataObjective

    made = samples(torch.zeros(4, dtype=torch.int64))._replace(conditions={})
    made = made._replace(times=task.times((torch.arange(4, dtype=F64) + 0.5) / 4))
    model = task.wrap(network)
    objective = BiasedDataObjective(task.objective, data.share)
    expected = objective(model, lambda x, t: task.guide(x, t)[:, 0], made.data, made.start, made.times)
    torch.testing.assert_close(task.losses(model, made), expected)


def test_data_are_made_wrong_as_asked() -> None:
    data = load_data("digits", split="all")
    assert isinstance(data, ArraySet)
    assert data.targets is not None
    noisy = with_wrong_labels(data, symmetric_noise(10, 0.4), 3)
    assert isinstance(noisy, ArraySet)
    assert noisy.targets is not None
    assert float((noisy.targets != data.targets).double().mean()) == pytest.approx(0.4, abs=0.04)
    again = with_wrong_labels(data, symmetric_noise(10, 0.4), 3)
    assert isinstance(again, ArraySet)
    assert again.targets is not None
    assert torch.equal(again.targets, noisy.targets)
    joined = with_bias(data, BIAS, 1)
    assert isinstance(joined.biased, ArraySet)
    assert isinstance(joined.reference, ArraySet)
    assert joined.biased.targets is not None
    assert joined.reference.targets is not None
    assert float((joined.biased.targets >= 5).double().mean()) < 0.15
    assert float((joined.reference.targets >= 5).double().mean()) == pytest.approx(0.5, abs=0.12)
    where = [0, len(joined) - 1, 199, 200]
    parts = [joined.reference.tensor()[k] if k < 200 else joined.biased.tensor()[k - 200] for k in where]
    assert torch.equal(joined.__getitems__(where).images, torch.stack(parts))


@pytest.mark.parametrize("suffix", [".npy", ".json", ".csv"])
def test_matrices_are_read_and_checked(tmp_path: Path, suffix: str) -> None:
    matrix, file = symmetric_noise(3, 0.25).numpy(), tmp_path / f"noise{suffix}"
    if suffix == ".npy":
        np.save(file, matrix)
    elif suffix == ".json":
        file.write_text(json.dumps(matrix.tolist()))
    else:
        np.savetxt(file, matrix, delimiter=",")
    torch.testing.assert_close(transition_matrix(str(file), 3), torch.from_numpy(matrix))
    with pytest.raises(ValueError, match=r"must be a matrix 4x4, one row for each class of the data, got \(3, 3\)"):
        transition_matrix(str(file), 4)
    file.write_text("nothing")
    with pytest.raises(ValueError, match="cannot be read as a matrix"):
        transition_matrix(str(file), 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"label_noise": "0.4"}, "label_noise needs class_conditional"),
        ({**BIASED, "class_conditional": True}, "biased data does not go with class_conditional"),
        ({**NOISY, "simulated_bias": BIAS}, "label_noise does not go with reference_data or simulated_bias"),
        ({"corrupt_labels": True}, "corrupt_labels=True needs label_noise"),
        ({"guide_steps": 5}, "guide_steps=5 needs label_noise, reference_data or simulated_bias"),
        ({**NOISY, "guide_steps": 0}, "guide_steps must be at least 1, got 0"),
        ({**NOISY, "coupling": "ot"}, "coupling='ot' does not go with label_noise; allowed: 'independent'"),
        ({**NOISY, "direction_weight": 1.0}, r"direction_weight=1.0 does not go with label_noise; allowed: 0.0"),
        ({**NOISY, "objective": "interpolant"}, "label_noise needs an objective on a Gaussian path"),
        (
            {**NOISY, "objective": "v", "loss_weight": "sigmoid", "time_density": "adaptive"},
            "time_density 'adaptive' does not go with label_noise",
        ),
        ({"simulated_bias": {"classes": [1], "kept": 2, "reference": 9}}, "kept of simulated_bias must be a share"),
        ({"simulated_bias": {"classes": 1, "kept": 0.1, "reference": 9}}, "classes of simulated_bias must be a list"),
        ({"simulated_bias": {"sizes": [1]}}, "unknown parameter of simulated_bias 'sizes'"),
        ({"simulated_bias": {"classes": [1], "kept": 0.1}}, "reference of simulated_bias must be a number of images"),
    ],
)
def test_what_does_not_go_with_wrong_data(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        resolve_options(options)


def test_data_that_do_not_fit_are_refused_before_work(tmp_path: Path) -> None:
    np.savez(tmp_path / "plain.npz", arr_0=np.zeros((12, 8, 8, 1), np.uint8))
    np.savez(tmp_path / "large.npz", arr_0=np.zeros((12, 16, 16, 1), np.uint8))
    out, plain = tmp_path / "out", str(tmp_path / "plain.npz")
    for options, words in (
        ({**NOISY, "train_data_dir": plain}, "label_noise needs labels"),
        ({**NOISY, "label_noise": "1.5"}, "rate=1.5 of wrong labels"),
        ({**NOISY, "label_noise": "much"}, "label_noise must be a rate in"),
        ({**BIASED, "train_data_dir": plain}, "simulated_bias needs images with labels"),
        ({**BIASED, "simulated_bias": {**BIAS, "classes": [12]}}, r"are not all in 0 \.\.\. 9"),
        ({"reference_data": str(tmp_path / "large.npz")}, "use --resolution"),
        ({"reference_data": "nowhere"}, "nowhere is neither a folder of images nor an .npz file"),
        ({**NOISY, "guide_from": str(tmp_path)}, f"{GUIDE_FILE} does not exist"),
    ):
        with pytest.raises(ValueError, match=words):
            run(out, **options)
        assert not out.exists()


@pytest.mark.slow
def test_a_run_on_wrong_labels_resumes_and_its_guide_can_be_given(tmp_path: Path) -> None:
    folder = resumed_equals_unbroken(tmp_path, **NOISY)
    stored = json.loads((folder / "pathline.json").read_text())
    assert stored["training"]["objective"]["label_noise"] == "0.4"
    assert (folder / "model_index.json").is_file()  # sampled like any other
    given = run(tmp_path / "given", **{**NOISY, "guide_steps": None, "guide_from": str(folder), "logging_steps": 1})
    assert same(weights(given), weights(folder))
    assert not (given / GUIDE_FILE).exists()
    with pytest.raises(ValueError, match="its kind is 'classifier', this run needs 'discriminator'"):
        make_task(resolve_options({**BIASED, "guide_from": str(folder)}))
    again = shutil.copytree(folder, tmp_path / "again2", ignore=shutil.ignore_patterns("checkpoint-*"))
    with pytest.raises(ValueError, match="its steps is 3, this one needs 4; remove the file to train it anew"):
        run(again, **{**NOISY, "guide_steps": 4})
    assert isinstance(make_task(resolve_options({**NOISY, "robust": False, "guide_steps": None})), GaussianTask)


def test_guides_are_the_same_each_time() -> None:
    def weights_of(seed: int) -> dict[str, Tensor]:
        guide = new_guide(EDMPath(), (1, 8, 8), 2, True, 0.5, seed)
        assert isinstance(guide, Guide)
        loss = fit_guide(
            guide,
            lambda generator, count: (torch.randn(count, 1, 8, 8, generator=generator), torch.arange(count) % 2),
            lambda logits, kind: torch.nn.functional.cross_entropy(logits, kind, reduction="none"),
            lambda u: u,
            steps=2,
            seed=seed,
        )
        assert loss > 0
        return guide.state_dict()

    assert same(weights_of(0), weights_of(0))
    assert not same(weights_of(0), weights_of(1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [NOISY, {**NOISY, "objective": "edm", "random_flip": True}, BIASED, {**BIASED, "objective": "v", "path": "vp"}],
    ids=["labels", "labels-edm", "bias", "bias-v"],
)
def test_twenty_steps_equal_ten_and_ten(tmp_path: Path, options: dict[str, Any]) -> None:
    settings = {"max_train_steps": 20, "checkpointing_steps": 10, "logging_steps": 1, "plots": True, **options}
    whole, again = run(tmp_path / "whole", **settings), tmp_path / "again"
    shutil.copytree(whole, again)
    shutil.rmtree(again / "checkpoint-20")
    (again / GUIDE_FILE).unlink()  # made again, the same
    run(again, **settings, resume_from_checkpoint="latest")
    assert same(weights(whole), weights(again))
    assert losses(whole) == losses(again)
