"""Records on disk: appended, checked, resumed, and never lost to one bad line."""

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pathline.evals.files import digest, replacing
from pathline.evals.records import RecordFile, check, make_record, read_records
from pathline.evals.settings import SweepSettings, load_settings, parse_integers, parse_spec
from pathline.evals.summary import number, sections


def record(
    seed: int = 0, method: str = "ddim", nfe: int = 5, fd: float | None = 1.0, **protocol: object
) -> dict[str, Any]:
    config = {
        "runner": "sample",
        "method": method,
        "options": {},
        "grid": "logsnr",
        "grid_options": {},
        "nfe": nfe,
        "seed": seed,
        "source": {"name": "toy", "id": "0"},
        "samples": 10,
        "features": {"label": "FD (pixels)", "space": "raw"},
        **protocol,
    }
    return make_record(config, {"nfe": float(nfe)}, {"fd": fd}, {"seconds": 0.1, "versions": {"torch": "2"}})


def test_records_come_back_as_written(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "deep" / "r.jsonl")
    written = [record(seed) for seed in range(3)]
    for entry in written:
        file.append(entry)
    assert file.load().records == written
    assert file.load().damaged == []


def test_values_that_are_not_finite_become_null() -> None:
    entry = record(fd=float("nan"))
    assert entry["metrics"]["fd"] is None
    assert check(json.loads(json.dumps(entry, allow_nan=False))) is None


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda line: line[: len(line) // 2], "not valid JSON"),
        (lambda line: line.replace(b'"nfe":5', b'"nfe":6', 1), "does not match its id"),
        (lambda line: line.replace(b'"version":1', b'"version":9'), "record version 9"),
        (lambda line: b"[1, 2]", "not a JSON object"),
        (lambda line: b"\xff\xfe\x00", "not valid JSON"),
        (lambda line: line.replace(b'"metrics"', b'"metric"'), "lacks metrics"),
    ],
)
def test_a_damaged_line_is_named_and_set_aside_and_nothing_else_is_lost(
    tmp_path: Path, damage: Callable[[bytes], bytes], reason: str
) -> None:
    path = tmp_path / "r.jsonl"
    file = RecordFile(path)
    for seed in range(3):
        file.append(record(seed))
    lines = path.read_bytes().splitlines()
    broken = damage(lines[1])
    path.write_bytes(b"\n".join([lines[0], broken, lines[2]]) + b"\n")
    found = file.set_aside()
    assert [(d.line, reason in d.reason) for d in found.damaged] == [(2, True)]
    assert [r["config"]["seed"] for r in found.records] == [0, 2]
    again = file.load()
    assert (again.records, again.damaged) == (found.records, [])
    kept = (tmp_path / "r.jsonl.damaged").read_text(errors="replace")
    assert kept.strip() == broken.decode(errors="replace").strip()


def test_a_line_torn_by_a_crash_does_not_swallow_the_next_record(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    file = RecordFile(path)
    file.append(record(0))
    with open(path, "ab") as stream:
        stream.write(b'{"version":1,"id":"tor')
    file.append(record(1))
    found = file.load()
    assert [r["config"]["seed"] for r in found.records] == [0, 1]
    assert [d.line for d in found.damaged] == [2]


def test_repeated_records_count_once_and_unsound_ones_are_refused(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "r.jsonl")
    file.append(record())
    file.append(record())
    assert len(file.load().records) == 1
    with pytest.raises(ValueError, match="does not match its id"):
        file.append({**record(), "config": {}})


def _append_many(path: str, start: int) -> None:
    for seed in range(start, start + 40):
        RecordFile(path).append(record(seed))


def test_processes_that_append_at_once_lose_no_line(tmp_path: Path) -> None:
    path = str(tmp_path / "r.jsonl")
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_append_many, args=(path, start)) for start in (0, 40, 80)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    loaded = RecordFile(path).load()
    assert sorted(r["config"]["seed"] for r in loaded.records) == list(range(120))
    assert loaded.damaged == []


def test_reading_several_files_names_what_is_missing(tmp_path: Path) -> None:
    RecordFile(tmp_path / "a.jsonl").append(record(0))
    RecordFile(tmp_path / "b.jsonl").append(record(0))
    RecordFile(tmp_path / "b.jsonl").append(record(1))
    assert len(read_records(tmp_path / "a.jsonl", tmp_path / "b.jsonl")[0]) == 2
    with pytest.raises(ValueError, match=r"c\.jsonl does not exist"):
        read_records(tmp_path / "c.jsonl")
    (tmp_path / "d.jsonl").write_text("nothing\n")
    with pytest.raises(ValueError, match=r"d\.jsonl holds no usable record"):
        read_records(tmp_path / "d.jsonl")


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "f.txt"
    target.write_text("old")

    def write() -> None:
        with replacing(target, "w") as stream:
            stream.write("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_the_hash_of_a_configuration_does_not_depend_on_key_order() -> None:
    assert digest({"a": 1, "b": [2.0]}) == digest({"b": [2.0], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_unlike_protocols_are_never_in_one_section() -> None:
    changes = [{"samples": 20}, {"features": {"label": "FID", "space": "inception"}}, {"dtype": "float64"}, {}]
    found = sections([record(method=m, **c) for c in changes for m in ("ddim", "heun")])
    assert len(found) == len(changes)
    assert {s.protocol["samples"] for s in found} == {10, 20}
    assert all(len(s.lines) == 2 for s in found)


def test_cells_of_unlike_seeds_are_not_compared() -> None:
    found = sections([record(0), record(1), record(0, "heun")])
    assert sorted((s.seeds, len(s.lines)) for s in found) == [((0,), 1), ((0, 1), 1)]


def test_seeds_give_mean_and_deviation() -> None:
    (section,) = sections([record(0, fd=1.0), record(1, fd=3.0)])
    value = section.values["fd"][section.lines[0]][5]
    assert (value.mean, value.deviation, value.seeds) == (2.0, pytest.approx(2**0.5), 2)


def test_a_diverged_cell_has_no_number() -> None:
    (section,) = sections([record(fd=None), record(method="heun")])
    assert [line.method for line in section.values["fd"]] == ["heun"]
    assert section.leaders("fd", 5) == [section.lines[1]]


@pytest.mark.parametrize(
    ("value", "text"), [(0.12345, "0.123"), (12.345, "12.3"), (1234.5, "1234"), (1.2e-7, "1.20e-07"), (0, "0")]
)
def test_numbers_are_printed_with_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_specs_and_integers_read_what_they_say() -> None:
    spec = parse_spec("dpm++:order=3,variant=exact,lower_order_final=false")
    assert spec == ("dpm++", {"order": 3, "variant": "exact", "lower_order_final": False})
    assert parse_spec(str(spec)) == spec
    assert parse_integers("3-5,8,4") == (3, 4, 5, 8)
    for wrong in ("dpm++:order", "dpm++:order=1,order=2", ":a=1"):
        with pytest.raises(ValueError, match=r"key=value|twice|missing"):
            parse_spec(wrong)
    for wrong in ("3-", "a", "5-3", "-1"):
        with pytest.raises(ValueError, match=r"integers are written|backwards"):
            parse_integers(wrong)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": 1}, "samples must be an integer of at least 2"),
        ({"nfe": (0,)}, "positive integers"),
        ({"methods": ()}, "methods must be a non-empty list"),
        ({"runners": ("schedule",)}, "unknown runner 'schedule'; did you mean 'scheduler'"),
        ({"dtype": "float16"}, "unknown dtype"),
        ({"seeds": (-1,)}, "seeds must be integers"),
    ],
)
def test_bad_settings_are_refused_in_words(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SweepSettings("bed:ring", **change)


def test_settings_files_are_checked_and_overridden(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text('source = "bed:ring"\nnfe = [4, 8]\nsamples = 50\n')
    settings = load_settings(file, {"samples": 60, "seeds": None})
    assert (settings.source, settings.nfe, settings.samples) == ("bed:ring", (4, 8), 60)
    file.write_text('sauce = "bed:ring"\n')
    with pytest.raises(ValueError, match=r"'sauce'; did you mean 'source'"):
        load_settings(file, {})
    (tmp_path / "s.json").write_text("{")
    with pytest.raises(ValueError, match=r"s\.json is damaged"):
        load_settings(tmp_path / "s.json", {})
    with pytest.raises(ValueError, match="no source is named"):
        load_settings(None, {})
