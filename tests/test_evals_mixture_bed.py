"""The mixture fitted to images: what is fitted, its file, and the table of untuned samplers on it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pathline.evals.mixture_bed import ddpm_path, fit_mixture, load_mixture, save_mixture
from pathline.evals.peers import Bench, Setting
from pathline.evals.sources import DataSet, Source
from pathline.interpolants import GaussianMixture
from pathline.samplers import make_nodes


@pytest.fixture(scope="module")
def images() -> tuple[Tensor, Tensor]:
    """Two classes of two clusters each, well apart, with most of their variance along three directions."""
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.standard_normal((48, 3)))
    centres = rng.integers(60, 200, size=(2, 2, 48))
    labels = np.repeat([0, 1], 300)
    rows = centres[labels, rng.integers(0, 2, 600)] + (rng.standard_normal((600, 3)) * [16, 12, 9]) @ basis.T
    rows = rows + rng.standard_normal((600, 48))
    pixels = torch.from_numpy(np.clip(np.rint(rows), 0, 255).astype(np.uint8)).reshape(600, 3, 4, 4)
    return pixels, torch.from_numpy(labels)


def test_the_fit_has_the_moments_of_each_class(images: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    pixels, labels = images
    save_mixture(fit_mixture(pixels, labels, clusters=2, rank=3), tmp_path / "m.npz")
    mixture = load_mixture(tmp_path / "m.npz")
    assert mixture.shape == (3, 4, 4)
    assert mixture.classes is not None
    assert mixture.classes.tolist() == [0, 0, 1, 1]
    values = pixels.reshape(600, -1).double() / 127.5 - 1
    torch.testing.assert_close(mixture.mean, values.mean(0), rtol=0, atol=1e-6)
    centred = values - values.mean(0)
    covariance = centred.T @ centred / len(values)
    assert float((mixture.covariance - covariance).norm() / covariance.norm()) < 0.01
    assert abs(float(mixture.covariance.trace() / covariance.trace()) - 1) < 1e-6


def test_the_same_fit_twice(images: tuple[Tensor, Tensor]) -> None:
    first, second = (fit_mixture(*images, clusters=2, rank=3) for _ in range(2))
    assert all(np.array_equal(first[key], second[key]) for key in first)


def test_bad_files_and_ranks_are_refused(images: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist; make it with"):
        load_mixture(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", weights=np.ones(2))
    with pytest.raises(ValueError, match="means, std"):
        load_mixture(tmp_path / "other.npz")
    with pytest.raises(ValueError, match="rank=48"):
        fit_mixture(*images, rank=48)
    with pytest.raises(ValueError, match="needs more"):
        fit_mixture(images[0][:40], images[1][:40], clusters=2, rank=30)


def test_the_schedule_is_ddpms() -> None:
    lam = make_nodes(ddpm_path(), "logsnr", 2).lam
    assert round(float(np.exp(-lam[0])), 1) == 157.4
    assert round(float(np.exp(-lam[1])), 4) == 0.01


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_bench_measures_errors_that_fall_with_calls(guidance: float) -> None:
    rng = np.random.default_rng(1)
    law = GaussianMixture([0.5, 0.5], rng.standard_normal((2, 1, 4, 4)), std=[0.3, 0.5], classes=[0, 1])
    path = ddpm_path()
    source = Source(
        "two",
        "bed",
        "",
        law.as_model(path, "data"),
        path,
        "data",
        law.shape,
        lambda: DataSet("", law.sample(2)),
        2,
        null_label=-1,
    )
    bench = Bench(source, guidance=guidance, samples=66)
    few, many = (bench.error(Setting("ipndm:order=2,afs=unit", "karras"), nfe) for nfe in (5, 20))
    assert many < few / 3
    found = bench.best(5)
    assert found[0].error <= few
    assert [s.error for s in found] == sorted(s.error for s in found)
