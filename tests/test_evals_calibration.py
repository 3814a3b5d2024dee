"""`pathline calibrate` as a user runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pathline.evals.calibration import summary_of
from pathline.evals.calibration_distance import DistanceSettings, Judge
from pathline.evals.moments import Moments
from pathline.evals.records import read_records
from pathline.evals.runners import start_state
from pathline.evals.sources import open_source
from pathline.samplers import ClassifierFree, Table, plan, sample
from pathline.samplers.calibrate.trajectories import Problem
from pathline.samplers.calibrate.trials import Choice, Trial
from pathline.samplers.fitted import described_fit

Cli = Callable[..., Any]


def test_a_calibrated_table_is_saved_with_its_story_and_samples(pathline: Cli, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "table.safetensors"
    code, said, _ = pathline(
        "calibrate", "--model", "bed:mixture", "--nfe", "5", "--budget", "5000", "--out", str(out), "--quiet"
    )
    assert code == 0
    assert "below the best untuned method" in said
    assert [file.name for file in out.parent.iterdir()] == [out.name]
    table = Table.load(out)
    fit = table.provenance
    assert table.evaluations == 5
    assert fit["calls"] <= 5000
    assert fit["holdout_error"] < 0.2 * fit["untuned_error"]
    assert {"network", "seed", "versions", "path", "prediction", "guidance", "chosen"} <= fit.keys()
    source = open_source("bed:mixture")
    x = start_state(source, 5, range(8), torch.float32)
    drawn = sample(source.model, x, path=source.path, prediction=source.prediction, method=out)
    assert torch.isfinite(drawn).all()
    with pytest.raises(ValueError, match="was fitted to"):
        sample(source.model, x, path=source.path, prediction="v", method=out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--nfe", "5", "--budget", "100"), "a hold-out of"),
        (("--nfe", "0"), "--nfe 0"),
        (("--nfe", "5", "--out", "table.txt"), "end in .json or .safetensors"),
        (("--nfe", "5", "--method", "learnt"), "unknown calibration method 'learnt'"),
        (("--nfe", "5", "--class-means", "--out", "t.json"), "--class-means needs a table of arrays"),
        (("--nfe", "5", "--model", "bed:ring"), "name the source once"),
        (("--nfe", "5", "--guidance", "3"), "guidance 3.0 needs"),
        (("--nfe", "5", "--samples", "3"), "--samples 3 is not possible; at least 4"),
        (("--nfe", "5", "--samples", "-2"), "--samples -2 is not possible"),
        (("--nfe", "5", "--guidance", "nan"), "--guidance nan is not possible"),
        (("--nfe", "5", "--guidance", "inf"), "--guidance inf is not possible"),
        (("--nfe", "5", "--budget", "0"), "--budget 0 is not possible"),
        (("--nfe", "5", "--device", "nowhere"), "--device nowhere is not possible here"),
        (("--nfe", "5", "--device", "cuda:99"), "--device cuda:99 is not possible here"),
        (("--nfe", "5", "--batch-size", "0"), "--batch-size 0 is not possible"),
        (("--nfe", "90000"), "raise --budget, or lower --nfe"),
        (("--nfe", "5", "--method", "gaussian"), "--method gaussian needs --stats"),
        (("--nfe", "5", "--objective", "distance"), "--objective distance needs --features"),
        (("--nfe", "5", "--objective", "distances", "--features", "raw"), "unknown objective 'distances'"),
        (
            ("--nfe", "5", "--features", "raw", "--images", "9"),
            "--features and --images belong to",
        ),
        (("--nfe", "5", "--objective", "distance", "--features", "raw", "--images", "1"), "--images 1 is not possible"),
        (("--nfe", "5", "--objective", "distance", "--features", "pixels"), "unknown feature space 'pixels'"),
        (
            ("--nfe", "5", "--objective", "distance", "--features", "raw", "--budget", "2000"),
            "lower --nfe, --images or --samples",
        ),
        (("--nfe", "5", "--between", "a.json b.json"), "a.json"),
        (("--nfe", "5", "--between", "a.json b.json", "--method", "dc"), "--between fits nothing"),
    ],
)
def test_what_cannot_be_calibrated_is_said_in_a_sentence(
    pathline: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, said, complaint = pathline("calibrate", "bed:gaussian", "--quiet", *arguments)
    assert code != 0
    assert message in complaint
    assert "Traceback" not in complaint
    assert not said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["sweep", "sample"])
@pytest.mark.parametrize("scale", ["nan", "inf"])
def test_guidance_is_a_number_everywhere(pathline: Cli, tmp_path: Path, command: str, scale: str) -> None:
    out = "r.jsonl" if command == "sweep" else "x.npz"
    asked = (command, "bed:mixture:conditional=true", "--nfe", "3", "--guidance", scale, "--out", out, "--quiet")
    code, said, complaint = pathline(*asked)
    assert (code, said) == (1, "")
    assert f"guidance must be a finite number, got {scale}" in complaint
    assert not list(tmp_path.iterdir())


def test_features_may_choose_and_then_not_report(pathline: Cli, tmp_path: Path) -> None:
    asked = ("calibrate", "bed:ring", "--nfe", "3", "--budget", "6000", "--images", "100", "--quiet")
    code, said, _ = pathline(
        *asked, "--objective", "distance", "--features", "raw", "--method", "iia", "--out", "t.json"
    )
    assert code == 0
    lines = said.splitlines()
    assert lines[0].split() == ["distance", "hold-out", "error", "calls", "candidate"]
    assert "distance of raw" in said
    assert any(line.startswith(("Error and distance agree", "Error and distance disagree")) for line in lines)
    fit = Table.load(tmp_path / "t.json").provenance
    assert (fit["objective"], fit["distance_samples"]) == ("distance of raw", 100)
    assert fit["calls"] <= 6000
    source = open_source("bed:ring")
    wanted = DistanceSettings("raw", 100, first=fit["samples"])
    space, data = wanted.open(source)
    problem = Problem(source.model, source.path, source.prediction)
    judge = wanted.build(problem, source, space, torch.from_numpy(space(data.samples)))
    assert judge(Table.load(tmp_path / "t.json").released()) == pytest.approx(fit["holdout_distance"], rel=1e-6)
    sweep = (
        "sweep",
        "bed:ring",
        "--quiet",
        "--samples",
        "8",
        "--truth-steps",
        "0",
        "--nfe",
        "3",
        "--methods",
        "t.json",
    )
    code, _, complaint = pathline(*sweep, "--features", "raw")
    assert code == 1
    assert "are no evidence; report in another feature space" in complaint
    with pytest.raises(ValueError, match="are no evidence"):
        Judge(source, 1.0, "raw", 8).distance(Table.load(tmp_path / "t.json").released())


def test_a_distance_is_to_data_of_the_shape_of_the_samples(tmp_path: Path) -> None:
    source = open_source("bed:digits")
    np.savez(tmp_path / "own.npz", arr_0=np.full((12, *source.shape[1:], 3), 255, dtype=np.uint8)[..., :1])
    _, data = DistanceSettings("raw", 8, str(tmp_path / "own.npz")).open(source)
    assert data.samples.shape == (12, *source.shape)
    assert float(data.samples.min()) == 1.0
    with pytest.raises(ValueError, match=r"has \(1, 8, 8\); samples of shape \(2,\) are needed"):
        DistanceSettings("raw", 8, str(tmp_path / "own.npz")).open(open_source("bed:ring"))
    Moments.of(np.eye(4)[:, :2]).save(tmp_path / "moments.npz")
    with pytest.raises(ValueError, match="has moments alone"):
        DistanceSettings("raw", 8, str(tmp_path / "moments.npz")).open(open_source("bed:ring"))


def test_a_table_between_fitted_ones_is_judged_and_saved(pathline: Cli, tmp_path: Path) -> None:
    for calls in (4, 6):
        table_file(tmp_path / f"f{calls}.json", calls)
    table_file(tmp_path / "other.json", 6, network="abcdef")
    asked = ("calibrate", "bed:ring", "--nfe", "5", "--budget", "2000", "--samples", "4", "--out", "new/t.json")
    code, said, _ = pathline(*asked, "--between", "f4.json f6.json")
    assert code == 0
    fit = Table.load(tmp_path / "new" / "t.json").provenance
    assert fit["network"] == open_source("bed:ring").identity
    assert fit["nfe"] == 5
    assert fit["holdout_error"] <= fit["untuned_error"]
    assert f"{fit['calls']} network calls; written to" in said
    for names, message in (
        ("f4.json other.json", "other.json does not belong to bed:ring"),
        ("f4.json", "at least 2 are needed"),
        ("f6.json f6.json", "different numbers of calls at one scale"),
    ):
        code, said, complaint = pathline(*asked, "--between", names, "--overwrite")
        assert (code, said) == (1, "")
        assert message in complaint
    before = (tmp_path / "new" / "t.json").read_bytes()
    code, _, complaint = pathline(*asked, "--between", "f4.json f6.json")
    assert code == 1
    assert "--out new/t.json exists" in complaint
    assert (tmp_path / "new" / "t.json").read_bytes() == before


def test_a_table_is_replaced_only_where_that_was_asked_for(pathline: Cli, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("kept")
    asked = ("calibrate", "bed:ring", "--nfe", "2", "--budget", "1500", "--quiet", "--out", "t.json")
    code, said, complaint = pathline(*asked)
    assert (code, said) == (1, "")
    assert "--out t.json exists; name another file, or replace it with --overwrite" in complaint
    assert (tmp_path / "t.json").read_text() == "kept"
    assert pathline(*asked, "--overwrite")[0] == 0
    assert Table.load(tmp_path / "t.json").evaluations == 2


def test_samples_of_a_table_take_its_own_number_of_calls(pathline: Cli, tmp_path: Path) -> None:
    source = open_source("bed:digits")
    plan(source.path, "dpm++", nfe=3, grid="karras", order=2).save(tmp_path / "t.json")
    asked = ("sample", "bed:digits", "--method", "t.json", "--count", "2", "--quiet", "--out", "x.npz")
    code, said, _ = pathline(*asked)
    assert code == 0
    assert "at 3 evaluations each" in said
    code, _, complaint = pathline(*asked, "--nfe", "5")
    assert code == 1
    assert "makes 3 calls and runs at no other number" in complaint


def test_a_folder_is_no_place_for_a_table(pathline: Cli, tmp_path: Path) -> None:
    (tmp_path / "t.json").mkdir()
    (tmp_path / "file").touch()
    for out in (tmp_path / "t.json", tmp_path / "file" / "t.json"):
        code, _, complaint = pathline("calibrate", "bed:gaussian", "--quiet", "--nfe", "3", "--out", str(out))
        assert code == 1
        assert "must name a file in a folder" in complaint


def test_a_calibration_that_fails_leaves_nothing_in_the_way(
    pathline: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ("calibrate", "bed:ring", "--nfe", "2", "--budget", "1500", "--quiet", "--out", "t.json")
    code, _, complaint = pathline(*asked, "--method", "dc")  # two steps have nothing to compensate
    assert code == 1
    assert "found no table" in complaint
    assert not list(tmp_path.iterdir())
    code, _, _ = pathline(*asked)
    assert code == 0


def test_the_summary_says_what_was_decided_and_what_was_kept() -> None:
    table = plan(open_source("bed:ring").path, "ddim", nfe=3, grid="karras")
    plain, fitted = Trial("ddim on karras", 0.05, 12, table), Trial("rows", 0.06, 40, table, tuned=True, note="few")
    said = summary_of(Choice(table, 0.05, 0.05, (plain, fitted), 52), Path("t.json"))
    assert "0.05; the best untuned method was kept, for 52 network calls" in said
    assert "0%" not in said
    assert "  few" in said
    said = summary_of(Choice(table, 0.0498, 0.05, (replace(fitted, error=0.0498), plain), 52), Path("t.json"))
    assert "0.4% below the best untuned method (0.05), for 52" in said


def test_an_interrupted_calibration_goes_on_with_the_same_settings_only(
    pathline: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pathline.evals import calibration

    asked = ("calibrate", "bed:ring", "--nfe", "3", "--budget", "3000", "--method", "learned", "--quiet", "--out")
    code, whole, _ = pathline(*asked, "whole.json")
    assert code == 0
    opened = open_source("bed:ring")
    calls = 0

    def interrupted(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal calls
        calls += len(x)
        if calls > 1500:
            raise KeyboardInterrupt
        return opened.model(x, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(calibration, "open_source", lambda *args: replace(opened, model=interrupted))
        code, said, complaint = pathline(*asked, "t.json")
    assert (code, said) == (130, "")
    assert "what is finished is in t.json.parts" in complaint
    code, _, complaint = pathline(*asked, "t.json", "--seed", "1")
    assert code == 1
    assert "seed=0 (now 1)" in complaint
    code, said, _ = pathline(*asked, "t.json")
    assert code == 0
    assert said.replace("t.json", "whole.json") == whole
    assert Table.load(tmp_path / "t.json") == Table.load(tmp_path / "whole.json")
    assert not (tmp_path / "t.json.parts").exists()


def table_file(file: Path, calls: int, **fit: Any) -> Path:
    source = open_source("bed:ring")
    table = plan(source.path, "dpm++", nfe=calls, grid="karras", order=2)
    known: dict[str, Any] = {"guidance": None, "network": source.identity, **fit}
    replace(table, provenance=described_fit(path=source.path, prediction=source.prediction, **known)).save(file)
    return file


def test_sweeps_take_tables_one_for_each_budget(pathline: Cli, tmp_path: Path) -> None:
    for calls in (3, 5):
        table_file(tmp_path / f"fit-{calls}.json", calls)
    table_file(tmp_path / "single.safetensors", 5)
    sweep = (
        "sweep",
        "bed:ring",
        "--quiet",
        "--samples",
        "16",
        "--truth-steps",
        "40",
        "--nfe",
        "3,4,5",
        "--out",
        "r.jsonl",
    )
    methods = "fit-{nfe}.json single.safetensors dpm++:order=2"
    code, _, complaint = pathline(*sweep, "--methods", methods, "--grids", "karras", "--runners", "sample scheduler")
    assert code == 0
    assert "left out fit-{nfe}.json on own, NFE 4" in complaint
    assert "single" not in complaint
    records, _ = read_records(tmp_path / "r.jsonl")
    found = {(r["config"]["method"], r["config"]["nfe"], r["config"]["runner"]): r for r in records}
    for runner in ("sample", "scheduler"):
        for method, nfe in (("fit-{nfe}.json", 3), ("fit-{nfe}.json", 5), ("single.safetensors", 5)):
            record, same = found[method, nfe, runner], found["dpm++", nfe, runner]
            assert record["facts"]["nfe"] == nfe
            assert record["metrics"]["rmse"] == pytest.approx(same["metrics"]["rmse"], rel=1e-5)
            assert record["protocol"] == same["protocol"]
    assert len(found) == 6 + 6
    code, _, _ = pathline(*sweep, "--methods", "single.safetensors")
    assert len(read_records(tmp_path / "r.jsonl")[0]) == 12
    table_file(tmp_path / "single.safetensors", 5, samples=7)  # another table under the same name is another result
    code, _, _ = pathline(*sweep, "--methods", "single.safetensors")
    assert len(read_records(tmp_path / "r.jsonl")[0]) == 13


@pytest.mark.parametrize(
    ("fit", "message"),
    [
        ({"network": "abcdef"}, "fitted to the network abcdef, not"),
        ({"guidance": ClassifierFree(7.5, {})}, "fitted to guidance 7.5, not none"),
    ],
)
def test_tables_of_another_network_or_guidance_are_refused_unless_forced(
    pathline: Cli, tmp_path: Path, fit: dict[str, Any], message: str
) -> None:
    table_file(tmp_path / "t.json", 3, **fit)
    sweep = (
        "sweep",
        "bed:ring",
        "--quiet",
        "--samples",
        "8",
        "--truth-steps",
        "0",
        "--nfe",
        "3",
        "--methods",
        "t.json",
    )
    code, _, complaint = pathline(*sweep, "--out", "r.jsonl")
    assert code == 1
    assert message in complaint
    assert "--force" in complaint
    assert not (tmp_path / "r.jsonl").exists()
    code, _, _ = pathline(*sweep, "--out", "r.jsonl", "--force")
    assert code == 0


def test_a_sweep_over_a_missing_table_says_so(pathline: Cli) -> None:
    code, _, complaint = pathline("sweep", "bed:ring", "--quiet", "--nfe", "3", "--methods", "none.json")
    assert code == 1
    assert "table file none.json does not exist" in complaint
