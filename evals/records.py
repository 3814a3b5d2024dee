"""Results on disk: one JSON line per result, appended, checked on reading, never rewritten by a sweep.

A record holds ``id`` (hash of ``config``), ``config`` (everything that determines the numbers), ``protocol`` (hash of
the part of it that must agree before two numbers may stand in one table), ``facts`` (counted evaluations, order),
``metrics`` and ``run`` (wall time, versions, machine; the only part that differs between two runs of one cell).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .files import canonical_json, digest, replacing

VERSION = 1
Record = dict[str, Any]

# What may differ between two numbers that are compared with one another; all else is protocol.
CELL_KEYS = ("runner", "method", "options", "grid", "grid_options", "nfe", "seed", "table")
SECTIONS = ("config", "facts", "metrics", "run")


@dataclass(frozen=True)
class Damage:
    """A line that could not be used: where it is, why, and its text."""

    line: int
    reason: str
    text: str


@dataclass
class Loaded:
    """Usable records in file order and the damaged lines between them."""

    records: list[Record] = field(default_factory=list)
    damaged: list[Damage] = field(default_factory=list)

    @property
    def ids(self) -> set[str]:
        """Identifiers of all usable records."""
        return {record["id"] for record in self.records}


def protocol_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a configuration that must be equal before two results are compared."""
    return {key: value for key, value in config.items() if key not in CELL_KEYS}


def make_record(
    config: Mapping[str, Any], facts: Mapping[str, Any], metrics: Mapping[str, Any], run: Mapping[str, Any]
) -> Record:
    """Assemble a record; numbers that are not finite become null so that the line stays valid JSON."""
    return {
        "version": VERSION,
        "id": digest(dict(config)),
        "protocol": digest(protocol_of(config)),
        "config": dict(config),
        "facts": dict(facts),
        "metrics": {k: (v if v is None or abs(v) < float("inf") else None) for k, v in metrics.items()},
        "run": dict(run),
    }


def check(record: Any) -> str | None:
    """Reason why a decoded line is not a sound record, or None."""
    if not isinstance(record, dict):
        return "not a JSON object"
    if record.get("version") != VERSION:
        return f"record version {record.get('version')!r}, this release reads {VERSION}"
    missing = [key for key in ("id", "protocol", *SECTIONS) if key not in record]
    if missing:
        return f"lacks {', '.join(missing)}"
    if not all(isinstance(record[key], dict) for key in SECTIONS):
        return "a section is not a JSON object"
    if digest(record["config"]) != record["id"]:
        return "its configuration does not match its id"
    if digest(protocol_of(record["config"])) != record["protocol"]:
        return "its configuration does not match its protocol hash"
    return None


class RecordFile:
    """An append-only JSON-lines file shared by several processes."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise ValueError(f"records must be a file, got the folder {self.path}")

    def load(self) -> Loaded:
        """Read all lines; a damaged one is reported, the others are kept, duplicates keep the first."""
        loaded = Loaded()
        if not self.path.exists():
            return loaded
        seen: set[str] = set()
        for number, raw in enumerate(self.path.read_bytes().split(b"\n"), start=1):
            if not raw.strip():
                continue
            text = raw.decode("utf-8", errors="replace")
            try:
                record = json.loads(text)
                reason = check(record)
            except ValueError as error:
                record, reason = None, f"not valid JSON ({error})"
            if reason is not None:
                loaded.damaged.append(Damage(number, reason, text))
            elif record["id"] not in seen:
                seen.add(record["id"])
                loaded.records.append(record)
        return loaded

    def set_aside(self) -> Loaded:
        """Move damaged lines to a neighbour file ``<name>.damaged`` and return what was found."""
        with self._locked():
            loaded = self.load()
            if not loaded.damaged:
                return loaded
            with open(self.path.with_name(self.path.name + ".damaged"), "a", encoding="utf-8") as stream:
                stream.writelines(damage.text + "\n" for damage in loaded.damaged)
            with replacing(self.path, "w") as stream:
                stream.writelines(canonical_json(record) + "\n" for record in loaded.records)
        return loaded

    def append(self, record: Record) -> None:
        """Append one record durably; a torn last line left by a crash is closed first.

        Raises
        ------
        ValueError
            If the record is not sound.
        """
        reason = check(record)
        if reason is not None:
            raise ValueError(f"record refused: {reason}")
        line = (canonical_json(record) + "\n").encode()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked(), open(self.path, "ab+") as stream:
            if stream.seek(0, os.SEEK_END):
                stream.seek(-1, os.SEEK_END)
                if stream.read(1) != b"\n":
                    line = b"\n" + line
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold an advisory lock on the folder, where the system has one."""
        try:
            import fcntl
        except ImportError:  # not a POSIX system: appends are still one write each
            yield
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def read_records(*paths: str | os.PathLike[str]) -> tuple[list[Record], list[str]]:
    """Records of several files and one sentence for each damaged line.

    Raises
    ------
    ValueError
        If a file does not exist or holds no usable record at all.
    """
    records: list[Record] = []
    warnings: list[str] = []
    for path in paths:
        file = RecordFile(path)
        if not file.path.exists():
            raise ValueError(f"records file {file.path} does not exist")
        loaded = file.load()
        warnings += [f"{file.path}, line {d.line} is skipped: {d.reason}" for d in loaded.damaged]
        if not loaded.records:
            raise ValueError(f"records file {file.path} holds no usable record")
        known = {record["id"] for record in records}
        records += [record for record in loaded.records if record["id"] not in known]
    return records, warnings
