"""The study of wrong labels and biased data: its figures and its table."""

from pathlib import Path

import pytest
import torch

from pathline.evals import wrong_data
from pathline.training import load_data


def test_figures_of_the_digits_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    digits = load_data("digits", split="all")
    assert digits.targets is not None
    images, labels = digits.tensor(), digits.targets
    turn = torch.cat([(labels == kind).nonzero()[:50] for kind in range(10)], 1).flatten()  # 0, 1 ... 9, 0, 1 ...
    monkeypatch.setattr(wrong_data, "draw", lambda folder, count, asked: images[turn])
    found = wrong_data.label_figures(Path(), 500)
    assert found["class asked for"] > 0.99
    assert found["FD"] < 4  # 50 samples in 64 dimensions
    rest = wrong_data.proportion_figures(Path(), 500)
    assert rest["TV"] < 0.02
    assert rest["5 to 9"] == pytest.approx(0.5, abs=0.01)
    text = wrong_data.table({"digits": rest})
    assert text.splitlines()[0] == "| trained on | 5 to 9 | TV | FD |"
    assert "| digits | 50." in text or "| digits | 49." in text
