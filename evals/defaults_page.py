"""docs/defaults.json and the table of docs/defaults.md from results of `python -m pathline.evals.defaults`.

python -m pathline.evals.defaults_page docs results/*.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pathline.interpolants import LinearPath
from pathline.samplers.defaults import GUIDED, Untuned, default_settings

from .files import write_text
from .settings import Spec

MARKS = ("<!-- evidence:begin -->", "<!-- evidence:end -->")
_COLUMNS = ("bed", "guidance", "calls", "best untuned", "its error", "default's error", "ratio")


def setting_text(setting: Untuned) -> str:
    """As `peers.Setting` writes it."""
    return f"{Spec(setting.method, dict(setting.options))} {Spec(setting.grid, dict(setting.grid_options))}"


def evidence(name: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each budget of a result: the best setting, the default's error and their ratio."""
    path = LinearPath() if found["flow"] else None
    kind: dict[str, Any] = {"prediction": found["prediction"], "guided": found["guidance"] > GUIDED}
    rows = []
    for nfe, errors in found["errors"].items():
        best = min(errors, key=lambda text: errors[text][0])
        error, samples = errors[best]
        default = setting_text(default_settings(int(nfe), path, **kind))
        row = {"bed": name, "guidance": found["guidance"], "prediction": found["prediction"], "nfe": int(nfe)}
        row |= {"flow": found["flow"], "samples": samples, "best": best}
        rows.append(row | {"error": error, "default": default, "default_error": found["default"][nfe]})
    return rows


def table_text(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|" + "---|" * len(_COLUMNS)]
    for row in rows:
        ratio = row["default_error"] / row["error"]
        cells = [row["bed"], f"{row['guidance']:g}", str(row["nfe"]), f"`{row['best']}`", f"{row['error']:.4g}"]
        shown = f"{ratio:.2f}" if ratio <= 1.15 else f"**{ratio:.2f}**"
        lines.append("| " + " | ".join([*cells, f"{row['default_error']:.4g}", shown]) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Write docs/defaults.json and the table: DOCS RESULT.json …; beds are named by the files, less the guidance."""
    if len(arguments) < 2:
        raise SystemExit("usage: python -m pathline.evals.defaults_page DOCS RESULT.json ...")
    docs, files = Path(arguments[0]), sorted(Path(text) for text in arguments[1:])
    rows = [row for file in files for row in evidence(file.stem.rpartition("-")[0], json.loads(file.read_text()))]
    lines = ",\n".join(json.dumps(row) for row in rows)
    write_text(docs / "defaults.json", f"[\n{lines}\n]\n")
    page = (docs / "defaults.md").read_text()
    before, _, rest = page.partition(MARKS[0])
    write_text(docs / "defaults.md", f"{before}{MARKS[0]}\n{table_text(rows)}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}")


if __name__ == "__main__":
    main(sys.argv[1:])
