"""Does an adapter do what its port's contract says? A behaviour suite for each port, for adapters in any language."""

from crucible_kit.conformance.report import REPORTS, Report, Result, Verdict, parse_known_failing
from crucible_kit.conformance.requirement import Requirement
from crucible_kit.conformance.runner import run_suite, settings_of
from crucible_kit.conformance.settings import SuiteSettings
from crucible_kit.conformance.suites import SUITES, all_requirements, requirements_of
from crucible_kit.conformance.target import Opened, open_command, open_target

__all__ = [
    "REPORTS",
    "SUITES",
    "Opened",
    "Report",
    "Requirement",
    "Result",
    "SuiteSettings",
    "Verdict",
    "all_requirements",
    "open_command",
    "open_target",
    "parse_known_failing",
    "requirements_of",
    "run_suite",
    "settings_of",
]
