"""The study and the cost bench of particles, and the page that shows them."""

import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest

from pathline.evals.smc_bench import Bench, cost_table
from pathline.evals.smc_study import WAYS, draw_study, estimate, main, measure, problems, study_table
from support.repository import ROOT

PAGE = (ROOT / "docs" / "smc.md").read_text()


def test_the_study_measures_what_is_known() -> None:
    guidance = problems()[0]
    plain = measure(guidance, "plain guidance", 64, 40, 4)
    weighed = measure(guidance, "weights, resampling", 64, 40, 4)
    assert abs(plain["bias"] - 0.11) < 4 * plain["error"] + 0.03
    assert weighed["spread"] > 0
    assert estimate(guidance, "exact weights, resampling", 16, 10, 0).table.evaluations == 10


def test_the_study_writes_rows_table_and_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathline.evals.smc_study.problems", lambda: problems()[:1])
    main(["--out", str(tmp_path), "--runs", "2", "--particles", "8", "--steps", "5"])
    rows = json.loads((tmp_path / "smc.json").read_text())
    assert len(rows) == 2 * len(WAYS)
    assert (tmp_path / "smc.png").stat().st_size > 10_000
    assert study_table([{**rows[0], "particles": 256, "steps": 100}]).count("\n") == 2
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), "--runs", "1"])
    draw_study(rows, tmp_path / "again.png")


@pytest.mark.slow
def test_the_bench_counts_calls_and_rewards() -> None:
    costs = Bench(2, 2, 8).costs(1)
    assert [cost.calls for cost in costs] == [2, 2, 2, 2, 4, 4, 4]
    assert [cost.rewards for cost in costs] == [0, 0, 0, 4, 0, 0, 0]
    assert cost_table(costs).count("\n") == 8


def test_the_example_of_the_page_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pathline's own, of heavy tails
        names: dict[str, Any] = {}
        exec(example, names)
    found = names["found"]
    assert abs(found.log_z - -1.552) < 0.5
    assert abs(float(found.mean()) - -0.667) < 0.4


def test_the_tables_of_the_page_are_filled() -> None:
    for name, columns in (("study", 6), ("costs", 5)):
        table = PAGE.split(f"<!-- {name}:begin -->")[1].split(f"<!-- {name}:end -->")[0]
        lines = [line for line in table.splitlines() if line.startswith("|")]
        assert len(lines) >= 9
        assert all(line.count("|") == columns + 1 for line in lines)
