"""Samples of one run of the benchmarks, taken in rounds, and the tables they are printed as.

Systems that are compared take turns: each round holds some samples of each. A ratio is taken within a round, so that
what slows the machine for minutes touches both sides of it alike; the round's ratios give the median and the spread.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What comes out of comparing: one value a round."""

    name: str
    values: tuple[float, ...]
    unit: str
    aim: str = ""
    met: bool | None = None

    @property
    def median(self) -> float:
        """Median over the rounds."""
        return statistics.median(self.values)

    def as_json(self) -> dict[str, object]:
        """The finding as plain values."""
        return {
            "name": self.name,
            "median": self.median,
            "lowest": min(self.values),
            "highest": max(self.values),
            "unit": self.unit,
            "aim": self.aim,
            "met": self.met,
        }


@dataclass(kw_only=True)
class Table:
    """Samples of several systems.

    Attributes:
        about: how it was measured, as Markdown.
        unit: of the samples.
        rounds: by system, the samples of each round.
    """

    title: str
    about: str
    unit: str
    rounds: dict[str, list[list[float]]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def add(self, system: str, samples: Sequence[float]) -> None:
        """One round of a system."""
        self.rounds.setdefault(system, []).append(list(samples))

    def medians(self, system: str) -> list[float]:
        """Each round's median."""
        return [statistics.median(samples) for samples in self.rounds[system]]

    def ratio(
        self, name: str, of: str, to: str, *, at_most: float | None = None, at_least: float | None = None
    ) -> None:
        """Compares two systems' medians, round by round."""
        pairs = zip(self.medians(of), self.medians(to), strict=True)
        self.find(name, [a / b for a, b in pairs], "x", at_most=at_most, at_least=at_least)

    def difference(self, name: str, of: str, minus: str, *, at_most: float | None = None) -> None:
        """Subtracts two systems' medians, round by round."""
        pairs = zip(self.medians(of), self.medians(minus), strict=True)
        self.find(name, [a - b for a, b in pairs], self.unit, at_most=at_most)

    def level(self, name: str, of: str, *, at_most: float) -> None:
        """Holds a system's medians against a limit."""
        self.find(name, self.medians(of), self.unit, at_most=at_most)

    def find(
        self,
        name: str,
        values: Sequence[float],
        unit: str,
        *,
        at_most: float | None = None,
        at_least: float | None = None,
    ) -> None:
        """Adds a finding of one value a round; its median is held against the limit."""
        median, aim, met = statistics.median(values), "", None
        if at_most is not None:
            aim, met = f"at most {_number(at_most)}", median <= at_most
        elif at_least is not None:
            aim, met = f"at least {_number(at_least)}", median >= at_least
        self.findings.append(Finding(name=name, values=tuple(values), unit=unit, aim=aim, met=met))

    def markdown(self) -> str:
        """The table with its findings below it."""
        lines = [f"## {self.title}", "", self.about, ""]
        lines += [f"| {self.unit} | median | quartiles | samples |", "|---|---:|---:|---:|"]
        for system, rounds in self.rounds.items():
            samples = [each for samples in rounds for each in samples]
            low, median, high = _quartiles(samples)
            lines.append(f"| {system} | {_number(median)} | {_number(low)} to {_number(high)} | {len(samples)} |")
        if self.findings:
            lines += ["", "| finding | median | lowest to highest round | aim | |", "|---|---:|---:|---:|---|"]
        for each in self.findings:
            unit = "x" if each.unit == "x" else f" {each.unit}"
            spread = f"{_number(min(each.values))} to {_number(max(each.values))}"
            aim = f"{each.aim}{unit}" if each.aim else ""
            verdict = {True: "met", False: "**missed**", None: ""}[each.met]
            lines.append(f"| {each.name} | {_number(each.median)}{unit} | {spread} | {aim} | {verdict} |")
        return "\n".join(lines) + "\n"


def _quartiles(samples: Sequence[float]) -> tuple[float, float, float]:
    if len(samples) < 2:
        return samples[0], samples[0], samples[0]
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return low, median, high


def _number(value: float) -> str:
    """Three significant digits, without an exponent; whole numbers above a thousand."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    digits = 3 if abs(value) < 10 else 1
    return f"{value:.{digits}f}".rstrip("0").rstrip(".") if value else "0"
