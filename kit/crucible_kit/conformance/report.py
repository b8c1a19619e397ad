"""What came of a run: verdicts, and the forms in which they are written down."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from crucible_kit.conformance.requirement import Requirement
from crucible_kit.errors import field_error
from crucible_kit.settings import unknown_key

# What XML can't hold, however it is escaped, and what steers a terminal.
_NOT_PLAIN = re.compile("[^\t\n\r\u0020-\u007e\u00a0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Verdict(Enum):
    """What a requirement's check came to."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    ADVICE = "advice"
    """The adapter may do so; it would do better otherwise."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One requirement's.

    Attributes:
        expected: what the contract asks for; only of a failure or an advice.
        got: what came instead.
        why: why it was skipped.
        known: it is listed as known to fail.
        seconds: time of the check.
    """

    requirement: Requirement
    verdict: Verdict
    expected: str = ""
    got: str = ""
    why: str = ""
    known: bool = False
    seconds: float = 0.0

    @property
    def bad(self) -> bool:
        """Whether it makes the run fail: it failed and nobody knew, or it passed though it is known to fail."""
        return (self.verdict is Verdict.FAILED) != self.known and self.verdict in (Verdict.FAILED, Verdict.PASSED)

    @property
    def problem(self) -> str:
        """One line: what is wrong, or why it was skipped; empty for what passed."""
        if self.known and self.verdict is Verdict.PASSED:
            return "passed, but is listed as known to fail: take it off the list"
        if self.expected:
            return f"expected {self.expected}; got {self.got}"
        return self.why


@dataclass(frozen=True, kw_only=True)
class Report:
    """A run of one port's suite.

    Attributes:
        target: what was tested, as the caller named it.
        adapter: name and version of the adapter.
        port: the port.
        capabilities: what the adapter declares for it, sorted.
        results: in the order in which they ran.
        advice: further remarks, such as timings.
    """

    target: str
    adapter: str
    port: str
    capabilities: Sequence[str]
    results: Sequence[Result]
    advice: Sequence[str] = field(default_factory=tuple)

    @property
    def ok(self) -> bool:
        """Whether the adapter conforms, but for what is known to fail."""
        return not any(each.bad for each in self.results)

    def count(self, verdict: Verdict) -> int:
        """Requirements with this verdict."""
        return sum(each.verdict is verdict for each in self.results)

    @property
    def summary(self) -> str:
        """Such as 61 passed, 2 failed, 3 skipped."""
        counts = [f"{self.count(each)} {each.value}" for each in Verdict if self.count(each)]
        known = sum(each.known and each.verdict is Verdict.FAILED for each in self.results)
        return ", ".join(counts) + (f" ({known} of them known)" if known else "")

    def ids(self, verdict: Verdict) -> list[str]:
        """Requirements with this verdict, in order."""
        return [each.requirement.id for each in self.results if each.verdict is verdict]

    def with_known_failing(self, ids: Collection[str]) -> Report:
        """The report with these requirements marked as known to fail."""
        return replace(self, results=[replace(each, known=each.requirement.id in set(ids)) for each in self.results])


def parse_known_failing(text: str, requirements: Collection[Requirement]) -> list[str]:
    """The ids of a file: one a line, what follows a # is a remark.

    Raises:
        InvalidArgumentError: FIELD_INVALID for what is the id of none of the requirements.
    """
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    ids, known = [line for line in lines if line], [each.id for each in requirements]
    for each in ids:
        if each not in known:
            raise field_error("known-failing", f"{each!r}: {unknown_key(each, known)}".replace("key", "id"))
    return ids


def as_markdown(report: Report) -> str:
    """For people: a table, then each problem with the contract's text."""
    lines = [
        f"# Conformance of {_cell(report.adapter)}, port {report.port}",
        "",
        f"Target `{report.target}`; capabilities: {', '.join(report.capabilities) or 'none'}.",
        "",
        f"**{'Conforms' if report.ok else 'Does not conform'}**: {report.summary}.",
        "",
        "| requirement | verdict | |",
        "|---|---|---|",
    ]
    lines += [f"| {each.requirement.id} | {_verdict(each)} | {_cell(each.problem)} |" for each in report.results]
    for each in report.results:
        if each.verdict in (Verdict.FAILED, Verdict.ADVICE) or each.bad:
            lines += ["", f"## {each.requirement.id}", "", each.requirement.text]
            if each.requirement.quote:
                lines += ["", f"> {each.requirement.quote}"]
            lines += ["", f"- expected: {_cell(each.expected)}", f"- got: {_cell(each.got)}"] if each.expected else []
    if report.advice:
        lines += ["", "## Advice", "", *(f"- {_cell(each)}" for each in report.advice)]
    return "\n".join(lines) + "\n"


def _verdict(result: Result) -> str:
    return f"{result.verdict.value} (known)" if result.known else result.verdict.value


def _cell(text: str) -> str:
    # What an adapter says may hold anything.
    return " ".join(_plain(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def as_json(report: Report) -> str:
    """For programs: one object, its keys those of Report and Result."""
    return json.dumps(
        {
            "target": report.target,
            "adapter": report.adapter,
            "port": report.port,
            "ok": report.ok,
            "capabilities": list(report.capabilities),
            "counts": {each.value: report.count(each) for each in Verdict},
            "results": [_as_object(each) for each in report.results],
            "advice": list(report.advice),
        },
        indent=2,
    )


def _as_object(result: Result) -> dict[str, Any]:
    requirement = result.requirement
    given = {
        "id": requirement.id,
        "verdict": result.verdict.value,
        "text": requirement.text,
        "quote": requirement.quote,
        "expected": result.expected,
        "got": result.got,
        "why": result.why,
    }
    return {
        **{key: value for key, value in given.items() if value},
        "known": result.known,
        "seconds": round(result.seconds, 4),
    }


def as_junit(report: Report) -> str:
    """For CI: JUnit's XML, a case for each requirement. What is known to fail counts as skipped."""
    bad = [each for each in report.results if each.bad]
    skipped = [each for each in report.results if not each.bad and _skips(each)]
    suite = ElementTree.Element(
        "testsuite",
        name=f"conformance.{report.port}",
        tests=str(len(report.results)),
        failures=str(len(bad)),
        errors="0",
        skipped=str(len(skipped)),
        time=f"{sum(each.seconds for each in report.results):.3f}",
    )
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in (
        ("target", report.target),
        ("adapter", report.adapter),
        ("capabilities", " ".join(report.capabilities)),
    ):
        ElementTree.SubElement(properties, "property", name=name, value=_plain(value))
    for each in report.results:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=f"conformance.{report.port}",
            name=each.requirement.id,
            time=f"{each.seconds:.3f}",
        )
        if each.bad:
            problem = ElementTree.SubElement(case, "failure", message=_plain(each.problem))
            problem.text = _plain(f"{each.requirement.text}\n{each.requirement.quote}".rstrip())
        elif _skips(each):
            ElementTree.SubElement(case, "skipped", message=_plain(each.problem))
        elif each.verdict is Verdict.ADVICE:
            ElementTree.SubElement(case, "system-out").text = _plain(each.problem)
    if report.advice:
        ElementTree.SubElement(suite, "system-out").text = _plain("\n".join(report.advice))
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True).decode() + "\n"


def _skips(result: Result) -> bool:
    return result.verdict is Verdict.SKIPPED or (result.verdict is Verdict.FAILED and result.known)


def _plain(text: str) -> str:
    return _NOT_PLAIN.sub("\ufffd", text)


REPORTS: dict[str, Callable[[Report], str]] = {"md": as_markdown, "json": as_json, "junit": as_junit}
"""The written forms by name."""
