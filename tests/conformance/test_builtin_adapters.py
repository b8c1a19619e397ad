"""Every adapter that is installed and every toy keeps the contract, however it is reached."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from crucible_kit.conformance import Report, Verdict, requirements_of, run_suite, settings_of
from tests.conformance.adapters import ELSEWHERE, OPENINGS, Made, installed, opening_of
from tests.conformance.bindings import BINDINGS
from tests.conformance.toy.blob import ToyBlobs
from tests.conformance.toy.sampling import CAPABILITIES as TOY_SAMPLING
from tests.conformance.toy.sampling import ToySampling
from tests.conformance.toy.training import CAPABILITIES as TOY_TRAINING
from tests.conformance.toy.training import ToyTraining

_SMALL = {"largest_message_bytes": 1024 * 1024}
TESTED = [(each.name, each) for each in installed() if each.name not in ELSEWHERE]
TESTED += [(name, each) for each in installed() for name in sorted(OPENINGS) if name.startswith(f"{each.name}@")]


def passes(report: Report) -> None:
    """Nothing failed, and something was looked at."""
    failed = {each.requirement.id: each.problem for each in report.results if each.verdict is Verdict.FAILED}
    assert not failed
    assert len(report.ids(Verdict.PASSED)) > len(report.results) / 2


def test_every_adapter_has_an_opening() -> None:
    """One that is added must be said how to open, in OPENINGS, or where its suite runs, in ELSEWHERE."""
    names = {each.name for each in installed()}
    assert {name for name in names - ELSEWHERE.keys() if opening_of(name) is None} == set()
    assert {name.partition("@")[0] for name in OPENINGS} - names == set(), "they are not installed"
    assert OPENINGS.keys() & ELSEWHERE.keys() == set()
    root = Path(__file__).parents[2]
    assert [name for name in names & ELSEWHERE.keys() if not (root / ELSEWHERE[name]).is_file()] == []


@pytest.mark.parametrize("binding", BINDINGS)
@pytest.mark.parametrize(("name", "entry"), [pytest.param(*each, id=each[0]) for each in TESTED])
async def test_adapters_pass(name: str, entry: EntryPoint, binding: str, request: pytest.FixtureRequest) -> None:
    opening = opening_of(name)
    assert opening is not None, "say in OPENINGS how it is opened"
    for package in opening.needs:
        pytest.importorskip(package)
    port = entry.name.partition(".")[0]
    only = [] if opening.in_full_on in ("", binding) else [*_own(port), "XPT-ERROR"]
    async with (
        opening.open(entry.load(), request) as made,
        BINDINGS[binding](made.servicers, made.capabilities) as channel,
    ):
        settings = settings_of(port, {**_SMALL, **made.settings})
        report = await run_suite(channel, port, settings, only=only)
        passes(report)
        assert set(opening.passed) <= set(report.ids(Verdict.PASSED))


def _own(port: str) -> list[str]:
    return [each.id for each in requirements_of(port) if each.port == port]


@asynccontextmanager
async def _toy_trainer() -> AsyncIterator[Made]:
    training = ToyTraining()
    yield Made(
        {"training": training, "sampling": ToySampling(training)},
        {"training": TOY_TRAINING, "sampling": TOY_SAMPLING},
    )


@asynccontextmanager
async def _toy_blobs() -> AsyncIterator[Made]:
    yield Made({"blob": ToyBlobs()}, {"blob": ()})


def _toys() -> list[Any]:
    toys: dict[str, tuple[Callable[[], AbstractAsyncContextManager[Made]], dict[str, Any]]] = {
        "training": (_toy_trainer, {"base_model": "toy", "learning_rate": 0.05}),
        "sampling": (_toy_trainer, {"base_model": "toy"}),
        "blob": (_toy_blobs, {}),
    }
    return [pytest.param(port, make, given, id=f"{port}.toy") for port, (make, given) in toys.items()]


@pytest.mark.parametrize(("port", "make", "given"), _toys())
async def test_toys_pass(
    port: str, make: Callable[[], AbstractAsyncContextManager[Made]], given: dict[str, Any]
) -> None:
    """They are what the mutants are made of, which run over the object."""
    async with make() as made, BINDINGS["object"](made.servicers, made.capabilities) as channel:
        passes(await run_suite(channel, port, settings_of(port, given)))
