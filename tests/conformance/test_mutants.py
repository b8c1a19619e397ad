"""Every mutant is found by the requirements that are about its defect, and by few others."""

from __future__ import annotations

import asyncio
import functools

import pytest

from crucible_kit.conformance import Report, Verdict, requirements_of, run_suite, settings_of
from tests.conformance.mutants.blob import BLOB_MUTANTS
from tests.conformance.mutants.models import MODEL_MUTANTS
from tests.conformance.mutants.mutant import Mutant
from tests.conformance.mutants.sampling import SAMPLING_MUTANTS
from tests.conformance.mutants.services import SERVICE_MUTANTS
from tests.conformance.mutants.stores import STORE_MUTANTS
from tests.conformance.mutants.texts import TEXT_MUTANTS
from tests.conformance.mutants.training_checkpoints import TRAINING_CHECKPOINT_MUTANTS
from tests.conformance.mutants.training_order import TRAINING_ORDER_MUTANTS
from tests.conformance.mutants.training_passes import TRAINING_PASS_MUTANTS
from tests.conformance.mutants.training_sessions import TRAINING_SESSION_MUTANTS
from tests.conformance.mutants.transport import TRANSPORT_MUTANTS

GROUPS = {
    "transport": TRANSPORT_MUTANTS,
    "blob": BLOB_MUTANTS,
    "training order": TRAINING_ORDER_MUTANTS,
    "training passes": TRAINING_PASS_MUTANTS,
    "training checkpoints": TRAINING_CHECKPOINT_MUTANTS,
    "training sessions": TRAINING_SESSION_MUTANTS,
    "sampling": SAMPLING_MUTANTS,
    "stores": STORE_MUTANTS,
    "texts": TEXT_MUTANTS,
    "models": MODEL_MUTANTS,
    "services": SERVICE_MUTANTS,
}
# What the toys show once need not be shown again by each mutant: that large messages are taken.
_SMALL = {"largest_message_bytes": 1024 * 1024}
# A suite mostly waits.
_AT_A_TIME = 4


async def report_on(mutant: Mutant, turn: asyncio.Semaphore) -> Report:
    """The requirements of the mutant's own port, and those of all ports that look at its answers; or those of all."""
    settings = settings_of(mutant.port, {**_SMALL, **mutant.settings})
    own = {each.id for each in requirements_of(mutant.port) if each.port == mutant.port}
    only = ("HSK", "XPT") if mutant.transport else (*own, "XPT-METHOD", "XPT-ERROR")
    async with turn, mutant.open() as channel:
        return await run_suite(channel, mutant.port, settings, only=only)


@functools.cache
def reports_on(group: str) -> dict[Mutant, Report]:
    """What the suites say about each mutant of a group."""

    async def all_of_them() -> list[Report]:
        turn = asyncio.Semaphore(_AT_A_TIME)
        return await asyncio.gather(*(report_on(mutant, turn) for mutant in GROUPS[group]))

    return dict(zip(GROUPS[group], asyncio.run(all_of_them()), strict=True))


@pytest.mark.parametrize(
    ("group", "mutant"), [pytest.param(group, each, id=str(each)) for group in GROUPS for each in GROUPS[group]]
)
def test_mutants_are_found(group: str, mutant: Mutant) -> None:
    report = reports_on(group)[mutant]
    failed = set(report.ids(Verdict.FAILED))
    assert set(mutant.red) <= failed, f"not found: {set(mutant.red) - failed}"
    others = failed - set(mutant.red)
    assert len(others) <= mutant.others, {
        each.requirement.id: each.problem for each in report.results if each.requirement.id in others
    }
