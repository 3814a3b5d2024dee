"""The examples of control on trained networks: their numbers, resuming, table and picture."""

from __future__ import annotations

import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pathline.evals import control_examples as module
from pathline.evals.control_examples import Bench, main, measure, run_examples
from pathline.evals.control_pages import control_table, draw_control
from pathline.evals.small_classifier import Classifier, fit_classifier
from pathline.evals.sources import Source
from pathline.interpolants import LinearPath
from support.repository import ROOT

MEANS = torch.tensor([-0.6, 0.6, 0.0])


def network(x: Tensor, t: Tensor, class_labels: Tensor) -> Tensor:
    """Velocity of classes of one brightness each, of variance 0.04; the last label is a bit of everything."""
    at = t.reshape(-1, 1, 1, 1).to(x)
    spread = torch.where(class_labels == 2, 0.4, 0.04).reshape(-1, 1, 1, 1)
    gain = at * spread / (at**2 * spread + (1 - at) ** 2)
    mean = MEANS[class_labels].reshape(-1, 1, 1, 1)
    data = mean + gain * (x - at * mean)
    return (data - x) / (1.0 - at).clamp_min(1e-3)


def images(count: int) -> tuple[Tensor, Tensor]:
    labels = torch.arange(count) % 2
    noise = torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return MEANS[labels].reshape(-1, 1, 1, 1) + 0.2 * noise, labels


class Stand(Bench):
    @cached_property
    def data(self) -> tuple[Tensor, Tensor]:
        return images(300)

    @cached_property
    def guide(self) -> Classifier:
        return fit_classifier(*self.data, steps=25)

    @cached_property
    def judge(self) -> Classifier:
        return fit_classifier(*self.data, kind="convolutional", steps=25, seed=1)


def stand(folder: Path) -> Stand:
    source = Source("stand-in", "bed", "0", network, LinearPath(), "velocity", (1, 4, 4), lambda: None,  # type: ignore[arg-type, return-value]
                    classes=2, label_key="class_labels", null_label=2)  # fmt: skip
    return Stand(source, folder, 0, 1, particles=6, steps=15)


def test_classifiers_learn_and_judge_alike() -> None:
    for kind in ("dense", "convolutional"):
        found = fit_classifier(*images(300), kind=kind, steps=25)
        assert found.accuracy > 0.95
        again = fit_classifier(*images(300), kind=kind, steps=25)
        torch.testing.assert_close(found(images(8)[0]), again(images(8)[0]))
        torch.testing.assert_close(found(images(8)[0]).exp().sum(1), torch.ones(8))
    with pytest.raises(ValueError, match="kind='deep'"):
        fit_classifier(*images(8), kind="deep")


def test_every_example_runs_once_and_says_what_it_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = stand(tmp_path / "stand")
    found = run_examples(bench, tmp_path / "out", progress=False)
    assert list(found) == list(module.EXAMPLES)
    assert found["class a"]["judged_a"] > 0.9 > 0.3 > found["class b"]["judged_a"]
    assert found["best of 4"]["reward"] > found["no class"]["reward"]
    assert found["SVDD, 4 proposals"]["nfe"] == 4 * 15 == found["best of 4"]["nfe"]
    assert (found["SVDD, 4 proposals"]["reward_calls"], found["best of 4"]["reward_calls"]) == (56, 4)
    assert found["twisted (TDS)"]["backward_passes"] == found["twisted (TDS)"]["nfe"] == 15
    assert found["rollover (RBF)"]["nfe"] <= 59
    assert found["a and b, weighted"]["nfe"] == 3 * found["class a"]["nfe"]
    monkeypatch.setattr(module, "measure", lambda *a: pytest.fail("measured again"))
    again = run_examples(bench, tmp_path / "out", progress=False)
    assert {k: v["reward"] for k, v in again.items()} == {k: v["reward"] for k, v in found.items()}
    (tmp_path / "out" / "06.npz").unlink()
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        run_examples(bench, tmp_path / "out", progress=False)
    table = control_table(found)
    assert table.count("\n") == 1 + len(found)
    assert "of 6 |" in table
    draw_control(found, "stand-in", tmp_path / "control.png")
    assert (tmp_path / "control.png").read_bytes().startswith(b"\x89PNG")


def test_numbers_repeat(tmp_path: Path) -> None:
    def numbers() -> dict[str, Any]:
        images, found = measure(stand(tmp_path), "FK steering")
        return {**{k: v for k, v in found.items() if k != "seconds"}, "sum": float(np.abs(images.numpy()).sum())}

    assert json.dumps(numbers()) == json.dumps(numbers())


def test_networks_without_classes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["bed:mixture"], ["bed:mixture", "--steps", "3"]):
        with pytest.raises(SystemExit):
            main([*arguments, "--no_progress"])
    assert "has no classes" in capsys.readouterr().err


def test_the_page_runs_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs/steering.md").read_text()
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        exec(block, names)
    assert names["found"].reward_calls == 256 * 10
    assert names["forced"].evaluations <= 119
    assert "tensor" in capsys.readouterr().out
    assert all(f"| {name} |" in page for name in module.EXAMPLES)
