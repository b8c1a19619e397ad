"""What is written down of a run."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from typing import Any

import pytest

from crucible_kit.conformance import REPORTS, Report, Requirement, Result, Verdict, parse_known_failing
from crucible_kit.errors import InvalidArgumentError

# What an adapter may put into its texts: control characters, half a surrogate pair's place, markup, cell borders.
NASTY = "a\x00b\x1b[31m</failure>]]>&|\ufffe\U0001f389 line\r\nbreak"


async def _check(context: Any) -> None:
    raise AssertionError("never run here")


def requirement(id: str, text: str = "It MUST be so.") -> Requirement:
    """One without a check."""
    return Requirement(id=id, port="blob", text=text, check=_check, quote="it is so")


def result(id: str, verdict: Verdict, **fields: Any) -> Result:
    """Of a requirement."""
    if verdict in (Verdict.FAILED, Verdict.ADVICE):
        fields = {"expected": "a blob", "got": NASTY, **fields}
    return Result(requirement=requirement(id), verdict=verdict, seconds=0.25, **fields)


REPORT = Report(
    target="unix:/run/blobs.sock",
    adapter=f"blobs {NASTY}",
    port="blob",
    capabilities=["blob.resume"],
    results=[
        result("BLB-A-01", Verdict.PASSED),
        result("BLB-A-02", Verdict.FAILED),
        result("BLB-A-03", Verdict.SKIPPED, why="the adapter does not declare blob.resume"),
        result("BLB-A-04", Verdict.ADVICE),
        result("BLB-A-05", Verdict.FAILED),
    ],
    advice=["half of the 30 unary calls took 0.3 ms or less"],
)


def test_a_failure_makes_the_run_fail() -> None:
    assert not REPORT.ok
    assert REPORT.summary == "1 passed, 2 failed, 1 skipped, 1 advice"
    assert REPORT.ids(Verdict.FAILED) == ["BLB-A-02", "BLB-A-05"]


def test_known_failures_do_not_make_it_fail() -> None:
    known = REPORT.with_known_failing(["BLB-A-02", "BLB-A-05"])
    assert known.ok
    assert known.summary == "1 passed, 2 failed, 1 skipped, 1 advice (2 of them known)"
    assert not REPORT.with_known_failing(["BLB-A-02"]).ok


def test_a_known_failure_that_passes_makes_it_fail() -> None:
    known = REPORT.with_known_failing(["BLB-A-01", "BLB-A-02", "BLB-A-05"])
    assert not known.ok
    assert [each.requirement.id for each in known.results if each.bad] == ["BLB-A-01"]
    assert "take it off the list" in known.results[0].problem


def test_a_known_failure_that_is_skipped_or_only_advised_changes_nothing() -> None:
    assert REPORT.with_known_failing(["BLB-A-02", "BLB-A-03", "BLB-A-04", "BLB-A-05"]).ok


def test_the_file_of_known_failures() -> None:
    known = [requirement("BLB-A-01"), requirement("BLB-A-02")]
    text = "# ours\n\nBLB-A-01\n  BLB-A-02  # since March\n"
    assert parse_known_failing(text, known) == ["BLB-A-01", "BLB-A-02"]
    with pytest.raises(InvalidArgumentError, match=r"'BLB-A-03'.*BLB-A-0"):
        parse_known_failing("BLB-A-03", known)


def test_junit_is_xml_whatever_an_adapter_says() -> None:
    root = ElementTree.fromstring(REPORTS["junit"](REPORT).encode())
    [suite] = root
    assert root.tag == "testsuites"
    counts = {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": "5", "failures": "2", "errors": "0", "skipped": "1"}
    cases = {case.get("name"): case for case in suite.iter("testcase")}
    assert list(cases) == [each.requirement.id for each in REPORT.results]
    assert list(cases["BLB-A-01"]) == []
    [failure] = cases["BLB-A-02"]
    assert failure.tag == "failure"
    assert "</failure>]]>&|\ufffd\U0001f389" in (failure.get("message") or "")
    assert failure.text == "It MUST be so.\nit is so"
    [skipped] = cases["BLB-A-03"]
    assert (skipped.tag, skipped.get("message")) == ("skipped", "the adapter does not declare blob.resume")
    assert [each.tag for each in cases["BLB-A-04"]] == ["system-out"]
    assert sum(float(case.get("time") or 0) for case in cases.values()) == float(suite.get("time") or 0)


def test_junit_counts_known_failures_as_skipped_and_their_passing_as_a_failure() -> None:
    report = REPORT.with_known_failing(["BLB-A-01", "BLB-A-02", "BLB-A-05"])
    [suite] = ElementTree.fromstring(REPORTS["junit"](report).encode())
    assert (suite.get("failures"), suite.get("skipped")) == ("1", "3")
    [failure] = suite.findall("testcase[@name='BLB-A-01']/failure")
    assert "take it off" in (failure.get("message") or "")


def test_json_has_every_result() -> None:
    told = json.loads(REPORTS["json"](REPORT))
    assert told["ok"] is False
    assert told["counts"] == {"passed": 1, "failed": 2, "skipped": 1, "advice": 1}
    assert told["adapter"] == f"blobs {NASTY}"
    assert [each["id"] for each in told["results"]] == [each.requirement.id for each in REPORT.results]
    assert told["results"][1] == {
        "id": "BLB-A-02",
        "verdict": "failed",
        "text": "It MUST be so.",
        "quote": "it is so",
        "expected": "a blob",
        "got": NASTY,
        "known": False,
        "seconds": 0.25,
    }


def test_markdown_keeps_its_table_and_tells_the_contract() -> None:
    text = REPORTS["md"](REPORT)
    rows = [line for line in text.splitlines() if line.startswith("| BLB")]
    assert len(rows) == len(REPORT.results)
    assert all(row.replace("\\|", "").count("|") == 4 for row in rows)
    assert "**Does not conform**: 1 passed, 2 failed" in text
    assert "## BLB-A-02\n\nIt MUST be so.\n\n> it is so\n\n- expected: a blob\n" in text
    assert "</failure>" not in text
    assert "\x1b" not in text
    assert "## BLB-A-03" not in text


def test_markdown_of_an_adapter_that_conforms() -> None:
    text = REPORTS["md"](replace(REPORT, results=[result("BLB-A-01", Verdict.PASSED)], advice=[], capabilities=[]))
    assert "**Conforms**: 1 passed." in text
    assert "capabilities: none" in text
    assert "## " not in text
