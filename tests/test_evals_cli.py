"""The command line: immediate help, one-sentence errors, non-zero codes, and every command on small work."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pathline.evals.images import save_samples
from pathline.evals.records import RecordFile
from pathline.samplers import Table, list_adaptive, list_methods

COMMANDS = {"train", "ema", "sweep", "report", "rerun", "stats", "methods", "inspect", "rank", "sample", "bench"} | {
    "demo",
    "calibrate",
    "likelihood",
}


Run = Callable[..., tuple[int, str, str]]


def test_help_is_immediate_and_names_every_command() -> None:
    code = (
        "import sys; from pathline.evals import cli; sys.argv = ['pathline', '--help']\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "print(sorted(m for m in ('torch', 'numpy', 'diffusers', 'matplotlib') if m in sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip().endswith("[]"), "help loaded heavy libraries"
    words = set(out.split())
    assert words >= COMMANDS


def test_version(pathline: Run) -> None:
    code, out, _ = pathline("--version")
    assert code == 0
    assert out.startswith("pathline 0.")


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_explains_itself(pathline: Run, command: str) -> None:
    code, out, _ = pathline(command, "--help")
    assert code == 0
    assert "Usage" in out
    assert f"pathline {command}" in out


@pytest.mark.parametrize("command", [["sweep", "bed:ring"], ["report", "r.jsonl"], ["methods"], ["train"], ["demo"]])
def test_unknown_options_are_errors(pathline: Run, command: list[str]) -> None:
    code, _, err = pathline(*command, "--no-such-option", "1")
    assert code == 2
    assert "--no-such-option" in err.replace("_", "-")
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweep"], "no source is named"),
        (["sweep", "bed:ring", "--methods", "dppm"], "unknown method 'dppm'; did you mean"),
        (["sweep", "bed:ring", "--nfe", "x"], "integers are written as in"),
        (["sweep", "bed:ring", "--methods", "ddim:eta"], "key=value"),
        (["report", "none.jsonl"], "none.jsonl does not exist"),
        (["inspect", "dpm++", "--path", "liner"], "did you mean 'linear'"),
        (["inspect", "heun", "--nfe", "0"], "nfe=0 is not possible"),
        (["methods", "--format", "markdwn"], "did you mean 'markdown'"),
        (["stats", "nothing.npz"], "nothing.npz does not exist"),
        (["sample", "bed:mixture"], "not images"),
        (["sample", "bed:digits", "--grid", "time"], "needs a --method"),
        (["sample", "bed:digits", "--guidance", "3", "--runner", "scheduler"], "runner 'sample' only"),
        (["sample", "bed:digits", "--out", "x.gif"], ".png or .npz"),
        (["rerun", "none.jsonl", "abc"], "0 records"),
    ],
)
def test_failures_are_one_sentence_and_a_code(pathline: Run, arguments: list[str], message: str) -> None:
    code, _, err = pathline(*arguments)
    assert code == 1
    assert err.startswith("pathline: error: ")
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in err


def test_sweep_then_report_then_rerun(pathline: Run) -> None:
    arguments = ["sweep", "bed:ring", "--methods", "ddim dpm++:order=2", "--grids", "time", "--nfe", "3,6"]
    arguments += ["--samples", "40", "--features", "raw", "--truth-steps", "30", "--dtype", "float64", "--quiet"]
    code, out, err = pathline(*arguments, "--out", "r.jsonl")
    assert (code, err) == (0, "")
    assert "4 results in r.jsonl (4 new)" in out
    assert "FD (pixels)" in out
    assert "RMSE" in out
    code, out, _ = pathline(*arguments, "--out", "r.jsonl")
    assert "4 results in r.jsonl (0 new)" in out
    code, out, _ = pathline("report", "r.jsonl", "--out", "page", "--title", "Ring")
    assert code == 0
    assert Path("page/report.html").stat().st_size > 10_000
    key = RecordFile("r.jsonl").load().records[0]["id"]
    code, out, _ = pathline("rerun", "r.jsonl", key[:9])
    assert code == 0
    for line in out.splitlines():
        assert line.split("stored ")[1].split()[0] == line.split("now ")[1], line
    settings = json.loads(Path("r.settings.json").read_text())
    code, out, _ = pathline("sweep", "--config", "r.settings.json", "--out", "r.jsonl", "--quiet", "--nfe", "3")
    assert code == 0
    assert settings["nfe"] == [3, 6]
    assert "2 results in r.jsonl (0 new)" in out


def test_interrupting_a_sweep_says_how_to_go_on(pathline: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import pathline.evals.sweep as module

    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "run_cell", stop)
    code, _, err = pathline("sweep", "bed:ring", "--features", "raw", "--samples", "9", "--truth-steps", "0", "--quiet")
    assert code == 130
    assert "every finished result is in" in err


def test_methods_come_from_the_registry(pathline: Run) -> None:
    _, text, _ = pathline("methods")
    assert all(name in text for name in [*list_methods(), *list_adaptive()])
    _, table, _ = pathline("methods", "--format", "markdown")
    first, _, second = table.split("\n\n")
    for part, names, bars in ((first, list_methods(), 6), (second, list_adaptive(), 5)):
        rows = part.splitlines()[2:]
        assert [row.split("`")[1] for row in rows] == names
        assert {row.replace("\\|", "").count("|") for row in rows} == {bars}
    _, facts, _ = pathline("methods", "--format", "json")
    found = {kind: [entry["name"] for entry in entries] for kind, entries in json.loads(facts).items()}
    assert found == {"methods": list_methods(), "adaptive": list_adaptive()}
    _, bibtex, _ = pathline("methods", "--format", "bibtex")
    assert bibtex.count("@misc{") >= 3


def test_inspect_prints_and_saves_a_table(pathline: Run) -> None:
    code, out, _ = pathline("inspect", "dpm++:order=2", "--nfe", "4", "--path", "vp:beta_max=10", "--save", "t.json")
    assert code == 0
    assert "4 evaluations" in out
    assert "row 3" in out
    table = Table.load("t.json")
    assert (table.method, table.evaluations) == ("dpm++", 4)


def test_statistics_are_written_read_and_compared_by_one_command(pathline: Run) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(300, 1, 4, 4, generator=generator) * 2 - 1
    save_samples("a.npz", images)
    save_samples("b.npz", (images + 0.5).clamp(-1, 1))
    code, out, _ = pathline("stats", "a.npz", "--out", "stats.npz")
    assert code == 0
    assert "300 samples, 16 features" in out
    with np.load("stats.npz") as data:
        assert data["mu"].shape == (16,)
        assert data["sigma"].shape == (16, 16)
    code, shown, _ = pathline("stats", "stats.npz")
    assert "300 samples, 16 features" in shown
    _, same, _ = pathline("stats", "stats.npz", "a.npz")
    assert "between stats.npz and a.npz: " in same
    distance = float(same.splitlines()[-1].rsplit(" ", 1)[1])
    assert abs(distance) < 1e-9
    _, other, _ = pathline("stats", "a.npz", "b.npz")
    assert "kernel distance" in other
    assert float(next(x for x in other.splitlines() if "between" in x).rsplit(" ", 1)[1]) > 0.5
    code, _, err = pathline("stats", "stats.npz", "a.npz", "--features", "pca:4")
    assert code == 1
    assert "not comparable" in err


def test_samples_are_the_same_in_every_batch_split(pathline: Run) -> None:
    arguments = ["sample", "bed:digits", "--count", "6", "--nfe", "4", "--quiet"]
    for batch in ("6", "4"):
        code, out, _ = pathline(*arguments, "--batch-size", batch, "--out", f"{batch}.npz")
        assert code == 0
        assert "6 samples at 4 evaluations each" in out
    with np.load("6.npz") as whole, np.load("4.npz") as split:
        assert whole["arr_0"].shape == (6, 8, 8, 1)
        assert whole["arr_0"].dtype == np.uint8
        np.testing.assert_array_equal(whole["arr_0"], split["arr_0"])
    code, _, _ = pathline(*arguments, "--out", "grid.png")
    with Image.open("grid.png") as image:
        assert image.width >= 3 * 64
