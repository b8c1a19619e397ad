"""Looks a cassette over: whether this build reads and writes every message of it the same, and whether it is stale."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from crucible_kit.cassettes.codec import BLOB_FOLDER, status_from_tree, status_to_tree, to_tree
from crucible_kit.cassettes.fields import rewrite
from crucible_kit.cassettes.format import Call, Cassette, Step, dump_line, read_cassette, require_calls
from crucible_kit.cassettes.matching import rules_of
from crucible_kit.cassettes.methods import descriptor_sha256, services
from crucible_kit.cassettes.placeholders import Placeholder, parse
from crucible_kit.errors import KitchenError


@dataclass(kw_only=True)
class Verdict:
    """What was found.

    Attributes:
        messages: how many were read, written and read again.
        problems: what makes the recording wrong for this build, each with its line.
        stale: services whose proto has changed since; with no problems the recording still holds.
    """

    path: Path
    calls: int = 0
    messages: int = 0
    problems: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problems


def verify_cassette(path: Path) -> Verdict:
    """Reads a cassette and encodes every message to its bytes and back."""
    verdict = Verdict(path=path)
    try:
        cassette = read_cassette(path)
        rules_of(path, cassette.header.rules)
        if cassette.complete:
            require_calls(cassette, cassette.calls)
    except KitchenError as error:
        verdict.problems.append(error.message)
        return verdict
    verdict.calls = len(cassette.calls)
    if not cassette.complete:
        cut = f", and calls {cassette.unfinished} have no end" if cassette.unfinished else ""
        verdict.problems.append(f"{path}: the end is missing: its recorder was not ended in order{cut}")
    _verify_header(cassette, verdict)
    known: set[str] = set()
    for call, step in _in_order(cassette):
        where = f"{path}:{step.line}: call {call.number}"
        if step.kind == "status":
            status, reason = status_from_tree(step.tree)
            again = status_to_tree(type(status).FromString(status.SerializeToString()), reason)
            _compare(where, step.tree, again, verdict)
        elif step.message is not None:
            again = to_tree(type(step.message).FromString(step.message.SerializeToString()), _name_blob)
            _compare(where, step.tree, again, verdict)
            _verify_names(where, step.message, known, cassette, verdict)
    return verdict


def _verify_header(cassette: Cassette, verdict: Verdict) -> None:
    header = cassette.header
    used = {call.method.service for call in cassette.calls}
    if cassette.complete and used != set(header.services):
        verdict.problems.append(f"{cassette.path}:1: services are {header.services}, the calls are of {sorted(used)}")
    for name in header.services:
        if name not in services():
            verdict.problems.append(f"{cassette.path}:1: this build knows no service {name}")
        elif header.descriptor_sha256.get(name) != descriptor_sha256(name):
            verdict.stale.append(name)


def _in_order(cassette: Cassette) -> Iterator[tuple[Call, Step]]:
    steps = [(call, step) for call in cassette.calls for step in call.steps]
    return iter(sorted(steps, key=lambda each: each[1].line))


def _name_blob(data: bytes) -> str:
    return f"{BLOB_FOLDER}/{hashlib.sha256(data).hexdigest()}"


def _compare(where: str, written: Any, again: Any, verdict: Verdict) -> None:
    verdict.messages += 1
    if dump_line({"value": written}) != dump_line({"value": again}):
        verdict.problems.append(f"{where}: this build writes it otherwise: {dump_line(again).strip()[:300]}")


def _verify_names(where: str, message: Message, known: set[str], cassette: Cassette, verdict: Verdict) -> None:
    """Whether every placeholder has been said what it stands for."""

    def text(_: object, value: str) -> str:
        for part in parse(value):
            if not isinstance(part, Placeholder):
                continue
            if part.kind in ("bind", "uuid"):
                known.add(part.name)
            elif part.kind == "name" and part.name not in known:
                verdict.problems.append(f"{where}: {part} stands for nothing that came before")
            elif part.kind == "set" and part.name not in cassette.header.parameters:
                verdict.problems.append(f"{where}: {part} is no parameter in the header")
        return value

    rewrite(message, text, lambda _, data: data)
