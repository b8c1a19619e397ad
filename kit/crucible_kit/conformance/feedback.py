"""Feedback stores: interactions, what became of them, and their scores."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from crucible.port.feedback.v1 import feedback_pb2 as pb
from crucible.type.v1 import message_pb2
from crucible_kit.conformance.context import Context
from crucible_kit.conformance.expect import check, check_close, check_equal, check_refused
from crucible_kit.conformance.requirement import Samples, Stage, Suite
from crucible_kit.conformance.settings import SuiteSettings

UP, DOWN, RATING = pb.SIGNAL_KIND_THUMBS_UP, pb.SIGNAL_KIND_THUMBS_DOWN, pb.SIGNAL_KIND_RATING
CORRECTION, RETRY, FLAG = pb.SIGNAL_KIND_CORRECTION, pb.SIGNAL_KIND_RETRY, pb.SIGNAL_KIND_FLAG


class FeedbackSettings(SuiteSettings):
    """Settings of the suite of feedback stores."""

    model_prefix: str = Field(
        default="", max_length=200, description="Names of the model lines that the suite writes to begin with it."
    )


SUITE = Suite(port="feedback", settings=FeedbackSettings)
Feedback = Context[FeedbackSettings]


def new_line(context: Feedback) -> str:
    """The name of a model line that nobody has written to."""
    return f"{context.settings.model_prefix}{context.name()}"


def said(role: str, text: str) -> message_pb2.Message:
    """A message."""
    return message_pb2.Message(role=role, content=text)


def interaction(line: str, number: int, *, prompt: str = "", answer: str = "", **fields: Any) -> pb.Interaction:
    """An interaction of a model line; ids sort by number."""
    return pb.Interaction(
        interaction_id=f"{line}/{number:03}",
        model_name=line,
        prompt_conversation=[said("user", prompt or f"question {number}")],
        completion=[said("assistant", answer or f"answer {number}")],
        **fields,
    )


def signal(of: pb.Interaction, name: str, kind: pb.SignalKind, **fields: Any) -> pb.Signal:
    """A signal of an interaction."""
    return pb.Signal(signal_id=f"{of.interaction_id}/{name}", interaction_id=of.interaction_id, kind=kind, **fields)


def rating(of: pb.Interaction, value: float) -> pb.Signal:
    """A rating."""
    return signal(of, "rating", RATING, value=value)


def correction(of: pb.Interaction, text: str) -> pb.Signal:
    """A corrected answer."""
    return signal(of, "correction", CORRECTION, correction=[said("assistant", text)])


async def ingest(context: Feedback, *interactions: pb.Interaction) -> int:
    """Stores interactions; how many were new."""
    request = pb.IngestInteractionsRequest(interactions=interactions)
    return (await context.stub.IngestInteractions(request)).num_added


async def record(context: Feedback, *signals: pb.Signal) -> int:
    """Stores signals; how many were new."""
    return (await context.stub.RecordSignals(pb.RecordSignalsRequest(signals=signals))).num_added


async def quality(context: Feedback, line: str, **fields: Any) -> pb.GetQualityMetricsResponse:
    """The counts of a model line."""
    return await context.stub.GetQualityMetrics(pb.GetQualityMetricsRequest(model_name=line, **fields))


async def baseline(context: Feedback, request_id: str, line: str, **fields: Any) -> pb.Baseline:
    """Makes what there is a baseline."""
    request = pb.UpdateBaselineRequest(request_id=request_id, model_name=line, **fields)
    return (await context.stub.UpdateBaseline(request)).baseline


@SUITE.samples
async def _samples(context: Feedback) -> Samples:
    line, request_id = new_line(context), str(uuid.uuid4())
    known = interaction(line, 0)
    await ingest(context, known)
    return {
        "IngestInteractions": pb.IngestInteractionsRequest(interactions=[interaction(line, 1, labels={"a": "b"})]),
        "RecordSignals": pb.RecordSignalsRequest(signals=[rating(known, 0.5)]),
        "CheckTriggers": pb.CheckTriggersRequest(model_name=line, triggers=[pb.Trigger(min_new_interactions=1)]),
        "CurateExamples": pb.CurateExamplesRequest(request_id=request_id, model_name=line),
        "ExportExamples": pb.ExportExamplesRequest(curation_id="no-curation-is-called-so"),
        "ExportPreferencePairs": pb.ExportPreferencePairsRequest(model_name=line),
        "UpdateBaseline": pb.UpdateBaselineRequest(request_id=request_id, model_name=line),
        "GetDriftStatus": pb.GetDriftStatusRequest(model_name=line),
        "GetQualityMetrics": pb.GetQualityMetricsRequest(model_name=line),
    }


@SUITE.pings
async def _ping(context: Feedback) -> None:
    await quality(context, new_line(context))


@SUITE.requirement(
    "FBK-INGEST-01",
    "IngestInteractions MUST store each interaction once: the same again is OK, other content ALREADY_EXISTS "
    "INTERACTION_EXISTS.",
    quote="Idempotent by interaction_id and content; other content is ALREADY_EXISTS INTERACTION_EXISTS.",
)
async def _ingests(context: Feedback) -> None:
    line = new_line(context)
    one, two = interaction(line, 1, labels={"language": "fr"}), interaction(line, 2)
    check_equal(await ingest(context, one), 1, "num_added of a new interaction")
    check_equal(await ingest(context, one, two), 1, "num_added of an old and a new one")
    check_equal((await quality(context, line)).num_interactions, 2, "num_interactions")
    call = ingest(context, interaction(line, 1, answer="another"))
    await check_refused(call, "ALREADY_EXISTS", "INTERACTION_EXISTS", what="a used id with another answer")


@SUITE.requirement(
    "FBK-INGEST-02",
    "One bad interaction MUST refuse the whole call.",
    quote="IngestInteractions stores what a model answered. All or nothing.",
)
async def _ingests_all_or_nothing(context: Feedback) -> None:
    line = new_line(context)
    await ingest(context, interaction(line, 1))
    changed = interaction(line, 1, answer="another")
    call = ingest(context, interaction(line, 2), changed)
    await check_refused(call, "ALREADY_EXISTS", "INTERACTION_EXISTS", what="a batch with a used id")
    call = ingest(context, interaction(line, 3), interaction(line, 3, answer="another"))
    await check_refused(call, "ALREADY_EXISTS", "INTERACTION_EXISTS", what="a batch with two contents of one id")
    check_equal((await quality(context, line)).num_interactions, 1, "num_interactions after refused calls")


@SUITE.requirement(
    "FBK-INGEST-03",
    "Calls at a time MUST all be stored, and one that is sent several times once.",
    quote="IngestInteractionsResponse confirms them; they are stored.",
)
async def _ingests_at_a_time(context: Feedback) -> None:
    line = new_line(context)
    added = await asyncio.gather(*(ingest(context, interaction(line, number % 12)) for number in range(36)))
    check_equal(sum(added), 12, "the sum of num_added of 12 interactions sent 3 times each")
    check_equal((await quality(context, line)).num_interactions, 12, "num_interactions")


@SUITE.requirement(
    "FBK-SIGNAL-01",
    "RecordSignals MUST store each signal once: the same again is OK, other content ALREADY_EXISTS SIGNAL_EXISTS; "
    "one of an "
    "unknown interaction is NOT_FOUND INTERACTION_NOT_FOUND. All or nothing.",
    quote="Idempotent by signal_id and content; other content is ALREADY_EXISTS SIGNAL_EXISTS.",
)
async def _records(context: Feedback) -> None:
    line = new_line(context)
    known = interaction(line, 1)
    await ingest(context, known)
    check_equal(await record(context, rating(known, 0.5)), 1, "num_added of a new signal")
    check_equal(
        await record(context, rating(known, 0.5), signal(known, "up", UP)), 1, "num_added of an old and a new one"
    )
    call = record(context, signal(known, "down", DOWN), rating(known, 0.75))
    await check_refused(call, "ALREADY_EXISTS", "SIGNAL_EXISTS", what="a used id with another value")
    call = record(context, signal(known, "down", DOWN), signal(interaction(line, 2), "up", UP))
    await check_refused(call, "NOT_FOUND", "INTERACTION_NOT_FOUND", what="a signal of an unknown interaction")
    counts = {each.kind: each.count for each in (await quality(context, line)).signals}
    check_equal(counts, {UP: 1, RATING: 1}, "the counts of signals by kind")


@SUITE.requirement(
    "FBK-SIGNAL-02",
    "A value MUST be set exactly for a RATING, and a correction exactly for a CORRECTION.",
    quote="The rating, 1 the best. Set exactly for RATING.",
)
async def _fitting_signals(context: Feedback) -> None:
    line = new_line(context)
    known = interaction(line, 1)
    await ingest(context, known)
    cases = {
        "a rating without a value": signal(known, "a", RATING),
        "a value of a thumb": signal(known, "b", UP, value=1.0),
        "a correction without a text": signal(known, "c", CORRECTION),
        "a text of a retry": signal(known, "d", RETRY, correction=[said("assistant", "x")]),
    }
    for what, bad in cases.items():
        await check_refused(record(context, bad), "INVALID_ARGUMENT", "FIELD_INVALID", what=what)
    check_equal((await quality(context, line)).num_scored, 0, "num_scored after refused signals")


@SUITE.requirement(
    "FBK-SCORE-01",
    "A score MUST be the mean of the signals' values: 1 of THUMBS_UP, 0 of THUMBS_DOWN, CORRECTION, RETRY and FLAG, "
    "its value "
    "of a RATING; without signals there is none.",
    quote="a RATING is its",
)
async def _scores(context: Feedback) -> None:
    line = new_line(context)
    several = [interaction(line, number) for number in range(8)]
    await ingest(context, *several)
    empty = await quality(context, line)
    check_equal((empty.num_scored, empty.HasField("mean_score")), (0, False), "(num_scored, whether there is a mean)")
    a, b, c, d, e, f, g, _ = several
    await record(
        context,
        *(signal(a, "up", UP), signal(b, "down", DOWN), rating(c, 0.25), correction(d, "better")),
        *(signal(e, "retry", RETRY), signal(f, "flag", FLAG), signal(g, "up", UP), rating(g, 0.5)),
    )
    metrics = await quality(context, line)
    got = (metrics.num_interactions, metrics.num_scored)
    check_equal(got, (8, 7), "(num_interactions, num_scored)")
    mean = (1 + 0 + 0.25 + 0 + 0 + 0 + 0.75) / 7
    check_close(metrics.mean_score, mean, "mean_score", relative=1e-9)
    counts = {each.kind: each.count for each in metrics.signals}
    expected = {UP: 2, DOWN: 1, RATING: 2, CORRECTION: 1, RETRY: 1, FLAG: 1}
    check_equal(counts, expected, "the counts of signals by kind, none of a kind without any,")


@SUITE.requirement(
    "FBK-QUALITY-01",
    "GetQualityMetrics MUST count the model line, version and newness that are asked for; an unknown line is an "
    "empty one.",
    quote="A model line that nobody has written to is an empty one, not an error.",
)
async def _counts(context: Feedback) -> None:
    line, other = new_line(context), new_line(context)
    await ingest(context, interaction(line, 1, version_id="v1"), interaction(line, 2, version_id="v2"))
    await ingest(context, interaction(other, 1, version_id="v1"))
    await baseline(context, str(uuid.uuid4()), line)
    await ingest(context, interaction(line, 3, version_id="v1"))
    cases: dict[str, tuple[dict[str, Any], int]] = {
        "all": ({}, 3),
        "of a version": ({"version_id": "v1"}, 2),
        "new": ({"only_new": True}, 1),
        "new of another version": ({"only_new": True, "version_id": "v2"}, 0),
    }
    for what, (fields, count) in cases.items():
        check_equal((await quality(context, line, **fields)).num_interactions, count, f"num_interactions, {what}")
    check_equal((await quality(context, new_line(context))).num_interactions, 0, "num_interactions of an unknown line")


def scored(interactions: Sequence[pb.Interaction], values: Sequence[float]) -> list[pb.Signal]:
    """A rating of each."""
    return [rating(each, value) for each, value in zip(interactions, values, strict=True)]


@SUITE.requirement(
    "FBK-RESTART-01",
    "What was answered MUST be there after the adapter was killed: interactions, signals and the baseline.",
    quote="IngestInteractionsResponse confirms them; they are stored.",
    stage=Stage.RESTART,
)
async def _survives(context: Feedback) -> None:
    line = new_line(context)
    several = [interaction(line, number) for number in range(3)]
    await ingest(context, *several)
    await record(context, *scored(several, [0.25, 0.5, 1.0]))
    before = await quality(context, line)
    await context.restart()
    check_equal(await quality(context, line), before, "the counts after a restart")
    check_equal(await ingest(context, *several), 0, "num_added of interactions from before the restart")
    check(await record(context, rating(several[0], 0.25)) == 0, "a known signal to be known after the restart", "new")
