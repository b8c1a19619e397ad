"""Runs a port's requirements against an adapter, one after another."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any

from crucible.adapter.v1 import adapter_pb2, adapter_pb2_grpc
from crucible_kit.channel import Channel
from crucible_kit.conformance.context import Context, Restart, handshake
from crucible_kit.conformance.expect import CheckFailed, CheckSkipped, describe_error, shorten
from crucible_kit.conformance.probe import ProbeChannel
from crucible_kit.conformance.report import Report, Result, Verdict
from crucible_kit.conformance.requirement import Requirement, Stage
from crucible_kit.conformance.settings import SuiteSettings
from crucible_kit.conformance.suites import requirements_of, suite_of
from crucible_kit.conformance.timing import timing_advice
from crucible_kit.errors import DeadlineExceededError, KitchenError, UnavailableError, field_error
from crucible_kit.outcomes import task_is_cancelled
from crucible_kit.settings import parse_settings, unknown_key

logger = logging.getLogger(__name__)

_FIRST_SECONDS = 10.0


def settings_of(port: str, values: Mapping[str, Any] = MappingProxyType({})) -> SuiteSettings:
    """The settings of a port's suite; what is not given has its default.

    Raises:
        InvalidArgumentError: CONFIG_INVALID naming each bad key.
    """
    return parse_settings(suite_of(port).settings, values, where="set")


async def run_suite(
    channel: Channel,
    port: str,
    settings: SuiteSettings | None = None,
    *,
    target: str = "",
    only: Collection[str] = (),
    restart: Restart | None = None,
    on_result: Callable[[Result], None] = lambda result: None,
) -> Report:
    """Tests what an adapter does on one port.

    Args:
        channel: to the adapter; it serves AdapterService beside the port.
        settings: of the port's suite; None: the defaults.
        target: what is tested, for the report.
        only: ids, or beginnings of ids, of the requirements to run. Empty: all.
        restart: kills and starts the adapter; None: requirements that need it are skipped.
        on_result: called with each result as it comes.

    Raises:
        UnavailableError: ADAPTER_UNAVAILABLE: nobody answers at all.
        InvalidArgumentError: FIELD_INVALID: `only` names nothing.
    """
    chosen = _chosen(port, only)
    suite = suite_of(port)
    settings = suite.settings() if settings is None else settings
    info = await _first_call(channel, settings, target)
    context = Context(channel, suite, settings, info)
    context.restart_with(restart)
    results = []
    for requirement in chosen:
        result = await _run(requirement, context)
        results.append(result)
        on_result(result)
    return Report(
        target=target,
        adapter=f"{info.name} {info.version}".strip() or "an adapter without a handshake",
        port=port,
        capabilities=sorted(context.capabilities),
        results=results,
        advice=[*context.advice, *timing_advice(context.channel.unary_seconds)],
    )


def _chosen(port: str, only: Collection[str]) -> list[Requirement]:
    requirements = requirements_of(port)
    for each in only:
        if not any(requirement.id.startswith(each) for requirement in requirements):
            ids = [requirement.id for requirement in requirements]
            raise field_error("only", f"{each!r}: {unknown_key(each, ids)}".replace("key", "id"))
    return [each for each in requirements if not only or each.id.startswith(tuple(only))]


async def _first_call(channel: Channel, settings: SuiteSettings, target: str) -> adapter_pb2.GetAdapterInfoResponse:
    limit = min(settings.call_seconds, _FIRST_SECONDS)
    probe = ProbeChannel(channel, call_seconds=limit)
    try:
        return await handshake(adapter_pb2_grpc.AdapterServiceStub(probe))  # pyright: ignore[reportArgumentType]
    except (UnavailableError, DeadlineExceededError) as error:
        raise UnavailableError(
            f"no adapter answers at {target or 'the target'} within {limit:g} s: {error.message}",
            reason="ADAPTER_UNAVAILABLE",
        ) from error
    except KitchenError:
        # HSK-INFO-01 tells it; the rest may still be looked at.
        return adapter_pb2.GetAdapterInfoResponse()


async def _run(requirement: Requirement, context: Context[Any]) -> Result:
    start = time.perf_counter()
    result = await _judged(requirement, context)
    await _cleaned(context)
    return Result(requirement=requirement, seconds=time.perf_counter() - start, **result)


async def _judged(requirement: Requirement, context: Context[Any]) -> dict[str, Any]:
    declared = context.capabilities
    if requirement.capability and requirement.capability not in declared:
        return {"verdict": Verdict.SKIPPED, "why": f"the adapter does not declare {requirement.capability}"}
    if requirement.without and requirement.without in declared:
        return {"verdict": Verdict.SKIPPED, "why": f"the adapter declares {requirement.without}"}
    if requirement.stage is Stage.RESTART and not context.can_restart:
        why = "the adapter was not started by this run: give --exec COMMAND in place of --target"
        return {"verdict": Verdict.SKIPPED, "why": why}
    bad = Verdict.ADVICE if requirement.advice else Verdict.FAILED
    limit = context.settings.check_seconds
    try:
        async with asyncio.timeout(limit) as clock:
            await requirement.check(context)
    except CheckSkipped as skipped:
        return {"verdict": Verdict.SKIPPED, "why": str(skipped)}
    except CheckFailed as failed:
        return {"verdict": bad, "expected": failed.expected, "got": failed.got}
    except KitchenError as error:
        return {"verdict": bad, "expected": "the call to be answered", "got": describe_error(error)}
    except TimeoutError as error:
        if not clock.expired():
            return _broke(requirement, bad, error)
        return {"verdict": bad, "expected": f"an end within {limit:g} s", "got": "none: some call hangs"}
    except asyncio.CancelledError as error:
        if task_is_cancelled():
            raise
        return _broke(requirement, bad, error)
    except Exception as error:
        return _broke(requirement, bad, error)
    return {"verdict": Verdict.PASSED}


def _broke(requirement: Requirement, bad: Verdict, error: BaseException) -> dict[str, Any]:
    """An answer that the check could not even read."""
    logger.debug("%s broke", requirement.id, exc_info=error)
    got = shorten(f"one that breaks the check: {type(error).__name__}: {error}")
    return {"verdict": bad, "expected": "an answer that can be read", "got": got}


async def _cleaned(context: Context[Any]) -> None:
    try:
        async with asyncio.timeout(context.settings.check_seconds):
            await context.clean_up()
    except TimeoutError:
        context.advice.append("an adapter that does not free what a check made: its cleaning up was given up")
