"""The zoo page: its facts, its pictures and its measurements."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pathline.evals.zoo import anchor, energy_distance, measure, picture, write_zoo
from pathline.evals.zoo.measurements import bridge_curve, error_curve, law_curve, law_floor
from pathline.samplers import list_adaptive, list_methods, method_info
from support.repository import ROOT

BYTES = 40_000


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo") / "zoo"
    page, count = write_zoo(folder, ["heun", "ddpm", "bosh3"])
    assert (page, count) == (folder.with_suffix(".md"), 3)
    return folder


def test_page_states_the_facts_of_each_method(written: Path) -> None:
    text = written.with_suffix(".md").read_text()
    for name in ("heun", "ddpm"):
        info = method_info(name)
        section = text[text.index(f"### `{name}`") :].split("### ", 2)[1]
        assert info.summary in section
        assert info.reference.title in section
        assert f"]({written.name}/{name}.png)" in section
        assert ("stochastic" if name == "ddpm" else "deterministic") in section
        assert (written / f"{name}.png").exists()
    assert "calls 2N − 1" in text  # Heun: one call on the last step
    assert "### `bosh3`" in text
    assert "unipc" not in text.split("## ", 1)[1]


def test_unknown_method_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'unipc'"):
        write_zoo(tmp_path / "zoo", ["unipcc"])


def test_pictures_are_small_and_drawn(written: Path) -> None:
    for file in written.glob("*.png"):
        assert file.stat().st_size < BYTES
        pixels = np.asarray(Image.open(file).convert("RGB"))
        assert pixels.shape[0] < 320
        assert 0.02 < (pixels < 250).any(axis=-1).mean() < 0.6


def test_generation_is_deterministic(written: Path, tmp_path: Path) -> None:
    write_zoo(tmp_path / "zoo", ["heun"])
    assert (tmp_path / "zoo" / "heun.png").read_bytes() == (written / "heun.png").read_bytes()


def test_errors_fall_with_the_order_of_the_method() -> None:
    first, second = (dict(error_curve(name)) for name in ("ddim", "dpm++"))
    assert 0.6 < math.log(first[20] / first[40], 2) < 1.4
    assert 1.4 < math.log(second[20] / second[40], 2) < 2.6
    assert all(calls <= 40 for calls in first)


def test_laws_come_close_to_exact_draws_only_with_many_calls() -> None:
    curve = dict(law_curve("ddpm"))
    assert curve[4] > 4 * law_floor()
    assert curve[40] < 1.5 * law_floor()
    assert dict(bridge_curve("dbim"))[40] < 0.5 * dict(bridge_curve("dbim"))[10]


def test_energy_distance_of_shifted_points() -> None:
    x = torch.randn(400, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert energy_distance(x, x) == pytest.approx(0.0, abs=1e-7)
    far = 100.0  # then 2E|X − Y| is about 2·shift, and the two others stay
    shifted = energy_distance(x, x + torch.tensor([far, 0.0, 0.0])) ** 2
    assert shifted == pytest.approx(2 * far - 2 * float(torch.cdist(x, x).mean()), rel=2e-3)
    assert energy_distance(x * math.nan, x) == math.inf


@pytest.mark.parametrize(("name", "calls"), [("ddim", "N"), ("heun", "2N − 1"), ("dpm2", "2N − 2"), ("dbim", "N + 1")])
def test_calls_are_those_of_the_tables(name: str, calls: str) -> None:
    assert measure(name).calls == calls


def test_the_page_of_the_documentation_names_every_method() -> None:
    text = (ROOT / "docs" / "zoo.md").read_text()
    headings = re.findall(r"^### `([^`]+)`$", text, flags=re.MULTILINE)
    assert sorted(headings) == sorted([*list_methods(), *list_adaptive()]), "run make docs"
    for name in list_methods():
        info = method_info(name)
        assert info.summary in text, f"{name}: run make docs"
        assert picture(ROOT / "docs" / "zoo", name).stat().st_size < BYTES
        assert f"zoo/{anchor(name)}.png" in text
