"""Every mutant is found by the requirements that are about its defect, and by few others."""

from __future__ import annotations

import pytest

from crucible_kit.conformance import Verdict, requirements_of, run_suite, settings_of
from tests.conformance.mutants.blob import BLOB_MUTANTS
from tests.conformance.mutants.mutant import Mutant
from tests.conformance.mutants.training import TRAINING_MUTANTS

MUTANTS = (*BLOB_MUTANTS, *TRAINING_MUTANTS)
# A mutant of one port need not show again what the toys show: that large messages are taken.
_SMALL = {"largest_message_bytes": 1024 * 1024}


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
async def test_mutants_are_found(mutant: Mutant) -> None:
    settings = settings_of(mutant.port, {**_SMALL, **mutant.settings})
    # The port's own requirements, and of those of all ports the ones that look at its answers.
    own = {each.id for each in requirements_of(mutant.port) if each.port == mutant.port}
    only = () if mutant.transport else (*own, "XPT-METHOD", "XPT-ERROR")
    async with mutant.open() as channel:
        report = await run_suite(channel, mutant.port, settings, only=only)
    failed = set(report.ids(Verdict.FAILED))
    assert set(mutant.red) <= failed, f"not found: {set(mutant.red) - failed}"
    others = failed - set(mutant.red)
    assert len(others) <= mutant.others, {
        each.requirement.id: each.problem for each in report.results if each.requirement.id in others
    }
