"""The page of official outputs lists exactly what is stored."""

import re

from golden_table import Line, page

from support.goldens import index
from support.repository import ROOT


def test_page_lists_exactly_the_stored_goldens() -> None:
    text = (ROOT / "docs" / "goldens.md").read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ") and " | " in line][1:]
    assert sorted(cells[2] for cells in rows) == sorted(index()), "run make docs"


def test_no_row_of_the_page_misses_its_tolerance() -> None:
    text = (ROOT / "docs" / "goldens.md").read_text()
    pairs = re.findall(r"\| (\d+e[+-]\d+) \| (\d+e[+-]\d+) \| ", text)
    assert len(pairs) > 200
    assert all(float(error) < float(tolerance) for error, tolerance in pairs)


def test_page_shows_misses_and_reasons() -> None:
    names = sorted(index())[:3]
    entries = [
        Line(names[0], "ddim", "eta=0.5", 9, 3e-15, 1e-9, ""),
        Line(names[1], "dpm2", "", 4, 2e-7, 1e-6, "rounded"),
        Line(names[2], "GHVB", "", 10, None, 1e-9, "raw v"),
    ]
    text = page(entries)
    assert "3 outputs are stored, 2 are reproduced, 2 of them within the tolerance; 1 to 1e-09" in text
    assert f"| `ddim` | `eta=0.5` | {names[0]} |" in text
    assert "| – | – | raw v |" in text
