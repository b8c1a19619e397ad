"""Feedback: scores, triggers, curated examples, preference pairs and drift follow from what was stored."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from crucible.port.feedback.v1 import feedback_pb2 as pb
from crucible.type.v1 import comparison_pb2, message_pb2
from crucible_adapters.fakes.feedback import FakeFeedback, FakeFeedbackOptions
from crucible_kit.adapter import AdapterContext
from crucible_kit.errors import AlreadyExistsError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from tests.contract.conftest import Binding
from tests.contract.refusals import refused

UP, DOWN, RATING = pb.SIGNAL_KIND_THUMBS_UP, pb.SIGNAL_KIND_THUMBS_DOWN, pb.SIGNAL_KIND_RATING
CORRECTION, RETRY, FLAG = pb.SIGNAL_KIND_CORRECTION, pb.SIGNAL_KIND_RETRY, pb.SIGNAL_KIND_FLAG
A, B, TIE = (
    comparison_pb2.COMPARISON_LABEL_A,
    comparison_pb2.COMPARISON_LABEL_B,
    comparison_pb2.COMPARISON_LABEL_TIE,
)


@pytest.fixture
async def stub(binding: Binding, context: AdapterContext) -> Any:
    return await binding.stub(FakeFeedback(FakeFeedbackOptions(min_scored=2), context))


def interaction(name: str, prompt: str = "question", answer: str = "", **fields: Any) -> pb.Interaction:
    return pb.Interaction(
        interaction_id=name,
        model_name=fields.pop("model_name", "helper"),
        prompt_conversation=[message_pb2.Message(role="user", content=prompt)],
        completion=[message_pb2.Message(role="assistant", content=answer or f"answer {name}")],
        **fields,
    )


def signal(name: str, of: str, kind: int, **fields: Any) -> pb.Signal:
    if kind == CORRECTION:
        fields["correction"] = [message_pb2.Message(role="assistant", content=fields.pop("text", f"better {of}"))]
    return pb.Signal(signal_id=name, interaction_id=of, kind=pb.SignalKind.Name(kind), **fields)


async def ingest(stub: Any, *interactions: pb.Interaction) -> int:
    return (await stub.IngestInteractions(pb.IngestInteractionsRequest(interactions=interactions))).num_added


async def record(stub: Any, *signals: pb.Signal) -> int:
    return (await stub.RecordSignals(pb.RecordSignalsRequest(signals=signals))).num_added


async def rated(stub: Any, scores: dict[str, float], **fields: Any) -> None:
    """Interactions with one rating each."""
    await ingest(stub, *(interaction(name, **fields) for name in scores))
    await record(stub, *(signal(f"s-{name}", name, RATING, value=value) for name, value in scores.items()))


async def quality(stub: Any, **fields: Any) -> pb.GetQualityMetricsResponse:
    return await stub.GetQualityMetrics(pb.GetQualityMetricsRequest(model_name="helper", **fields))


async def baseline(stub: Any, **fields: Any) -> pb.Baseline:
    request = pb.UpdateBaselineRequest(**{"request_id": str(uuid.uuid4()), "model_name": "helper", **fields})
    return (await stub.UpdateBaseline(request)).baseline


async def curate(stub: Any, **fields: Any) -> pb.Curation:
    request = pb.CurateExamplesRequest(**{"request_id": str(uuid.uuid4()), "model_name": "helper", **fields})
    return (await stub.CurateExamples(request)).curation


async def examples(stub: Any, curation: pb.Curation) -> list[pb.Example]:
    request = pb.ExportExamplesRequest(curation_id=curation.curation_id)
    return [each async for response in stub.ExportExamples(request) for each in response.examples]


async def pairs(stub: Any, **fields: Any) -> list[pb.PreferencePair]:
    request = pb.ExportPreferencePairsRequest(model_name="helper", **fields)
    return [each async for response in stub.ExportPreferencePairs(request) for each in response.pairs]


async def check(stub: Any, *triggers: pb.Trigger) -> list[bool]:
    request = pb.CheckTriggersRequest(model_name="helper", triggers=triggers)
    response = await stub.CheckTriggers(request)
    fired = [each.fired for each in response.results]
    assert response.should_retrain == any(fired) and all(each.explanation for each in response.results)
    return fired


async def test_interactions_and_signals_are_stored_once(stub: Any) -> None:
    first = interaction("a")
    assert await ingest(stub, first, interaction("b"), first) == 2
    assert await ingest(stub, first) == 0
    with refused(AlreadyExistsError, "INTERACTION_EXISTS", says="'a'"):
        await ingest(stub, interaction("c"), interaction("a", answer="other"))
    # All or nothing: c is not there.
    with refused(NotFoundError, "INTERACTION_NOT_FOUND", says="'c'"):
        await record(stub, signal("s", "a", UP), signal("t", "c", UP))
    assert await record(stub, signal("s", "a", UP)) == 1
    assert await record(stub, signal("s", "a", UP)) == 0
    with refused(AlreadyExistsError, "SIGNAL_EXISTS", says="'s'"):
        await record(stub, signal("s", "a", DOWN))
    metrics = await quality(stub)
    assert (metrics.num_interactions, metrics.num_scored, metrics.mean_score) == (2, 1, 1.0)


async def test_the_score_is_the_mean_of_the_signals(stub: Any) -> None:
    await ingest(stub, *(interaction(name) for name in "abcd"))
    await record(
        stub,
        *(signal(f"a{number}", "a", kind) for number, kind in enumerate((UP, DOWN, RETRY, FLAG))),
        signal("b0", "b", CORRECTION),
        signal("c0", "c", RATING, value=0.75),
        signal("c1", "c", UP),
    )
    metrics = await quality(stub)
    assert metrics.mean_score == pytest.approx((0.25 + 0 + 0.875) / 3)
    assert (metrics.num_interactions, metrics.num_scored) == (4, 3)
    assert {each.kind: each.count for each in metrics.signals} == {
        UP: 2,
        DOWN: 1,
        RATING: 1,
        CORRECTION: 1,
        RETRY: 1,
        FLAG: 1,
    }


async def test_signals_carry_what_their_kind_needs(stub: Any) -> None:
    await ingest(stub, interaction("a"))
    bad = {
        "signals[0].value": (signal("s", "a", RATING), signal("s", "a", UP, value=1.0)),
        "signals[0].correction": (pb.Signal(signal_id="s", interaction_id="a", kind=CORRECTION),),
        "signals[0].kind": (pb.Signal(signal_id="s", interaction_id="a"),),
    }
    for field, signals in bad.items():
        for each in signals:
            with refused(InvalidArgumentError, "FIELD_INVALID", field=field):
                await record(stub, each)
    with refused(InvalidArgumentError, "FIELD_INVALID", field="signals[0].value"):
        await record(stub, signal("s", "a", RATING, value=1.5))


async def test_a_model_line_that_nobody_wrote_to_is_empty(stub: Any) -> None:
    metrics = await quality(stub)
    assert (metrics.num_interactions, metrics.HasField("mean_score"), len(metrics.signals)) == (0, False, 0)
    assert await check(stub, pb.Trigger(min_new_interactions=1), pb.Trigger(mean_score_below=1)) == [False, False]
    assert (await curate(stub)).num_examples == 0 and await pairs(stub) == []
    with refused(FailedPreconditionError, "BASELINE_MISSING"):
        await stub.GetDriftStatus(pb.GetDriftStatusRequest(model_name="helper"))


async def test_quality_is_by_model_line_and_version(stub: Any) -> None:
    await ingest(stub, interaction("a", version_id="v1"), interaction("b", version_id="v2"))
    await ingest(stub, interaction("c", model_name="other"))
    assert (await quality(stub)).num_interactions == 2
    assert (await quality(stub, version_id="v1")).num_interactions == 1
    await baseline(stub)
    await ingest(stub, interaction("d", version_id="v1"))
    assert (await quality(stub, only_new=True)).num_interactions == 1
    assert (await quality(stub, version_id="v2", only_new=True)).num_interactions == 0


async def test_triggers_count_what_is_new(stub: Any) -> None:
    await rated(stub, {"a": 0.9, "b": 0.7})
    counts = pb.Trigger(min_new_interactions=2), pb.Trigger(min_new_interactions=3), pb.Trigger(min_new_signals=2)
    scores = pb.Trigger(mean_score_below=0.8), pb.Trigger(mean_score_below=0.81)
    assert await check(stub, *counts, *scores) == [True, False, True, False, True]
    await baseline(stub)
    assert await check(stub, *counts, *scores) == [False] * 5
    # A signal about what was there before is nothing new.
    await record(stub, signal("late", "a", DOWN))
    assert await check(stub, pb.Trigger(min_new_signals=1)) == [False]
    await rated(stub, {"c": 0.1, "d": 0.2})
    assert await check(stub, *counts, *scores) == [True, False, True, True, True]


async def test_triggers_without_anything_to_measure_do_not_fire(stub: Any) -> None:
    age, drift = pb.Trigger(baseline_older_than=Duration()), pb.Trigger(drift_above=0)
    request = pb.CheckTriggersRequest(model_name="helper", triggers=[age, drift, pb.Trigger(mean_score_below=1)])
    response = await stub.CheckTriggers(request)
    assert [(each.fired, each.HasField("value")) for each in response.results] == [(False, False)] * 3
    await baseline(stub)
    await ingest(stub, interaction("a"), interaction("b"))
    response = await stub.CheckTriggers(request)
    assert [(each.fired, each.HasField("value")) for each in response.results] == [(True, True), *[(False, False)] * 2]
    with refused(InvalidArgumentError, "FIELD_INVALID", field="triggers[0].condition"):
        await check(stub, pb.Trigger())
    with refused(InvalidArgumentError, "FIELD_INVALID", field="triggers"):
        await check(stub)


async def test_drift_is_measured_against_the_baseline(stub: Any) -> None:
    async def drift() -> pb.GetDriftStatusResponse:
        return await stub.GetDriftStatus(pb.GetDriftStatusRequest(model_name="helper"))

    await rated(stub, {"a": 0.8, "b": 0.6})
    line = await baseline(stub, version_id="v1")
    assert (line.num_interactions, line.version_id) == (2, "v1") and line.mean_score == pytest.approx(0.7)
    status = await drift()
    assert (status.state, status.num_new_interactions, len(status.drifts)) == (pb.DRIFT_STATE_TOO_LITTLE_DATA, 0, 0)
    assert status.baseline == line
    await rated(stub, {"c": 0.7, "d": 0.65})
    status = await drift()
    assert status.state == pb.DRIFT_STATE_STABLE and status.num_new_interactions == 2
    (measured,) = status.drifts
    assert measured.measure == "mean_score" and measured.drift == pytest.approx(0.025)
    assert (measured.baseline_value, measured.new_value) == pytest.approx((0.7, 0.675))
    await rated(stub, {"e": 0.0, "f": 0.0})
    status = await drift()
    assert status.state == pb.DRIFT_STATE_DRIFTED and status.drifts[0].drift > status.drifts[0].threshold
    assert await check(stub, pb.Trigger(drift_above=0.2), pb.Trigger(drift_above=0.4)) == [True, False]


async def test_a_baseline_is_set_once_for_a_request_id(stub: Any) -> None:
    await ingest(stub, interaction("a"))
    request_id = str(uuid.uuid4())
    first = await baseline(stub, request_id=request_id)
    await ingest(stub, interaction("b"))
    assert await baseline(stub, request_id=request_id) == first
    assert await check(stub, pb.Trigger(min_new_interactions=1)) == [True]
    with refused(InvalidArgumentError, "REQUEST_ID_REUSED"):
        await baseline(stub, request_id=request_id, version_id="v2")
    with refused(InvalidArgumentError, "FIELD_INVALID", field="request_id"):
        await baseline(stub, request_id="no uuid")


async def test_curation_chooses_by_score_best_first(stub: Any) -> None:
    await rated(stub, {"a": 0.2, "c": 0.9, "b": 0.9, "d": 0.5})
    await ingest(stub, interaction("e"), interaction("f"))
    await record(stub, signal("flag", "f", FLAG), signal("up", "f", UP), signal("up2", "f", UP))
    curation = await curate(stub, min_score=0.5)
    assert (curation.num_considered, curation.num_examples) == (6, 3)
    assert dict(curation.num_dropped) == {"flagged": 1, "no_score": 1, "low_score": 1}
    found = await examples(stub, curation)
    assert [(each.interaction_id, each.score) for each in found] == [("b", 0.9), ("c", 0.9), ("d", 0.5)]
    assert [each.content for each in found[0].messages] == ["question", "answer b"]
    # Without a least score those without any come last.
    everything = await curate(stub)
    assert [each.interaction_id for each in await examples(stub, everything)] == ["b", "c", "d", "a", "e"]
    assert not (await examples(stub, everything))[-1].HasField("score")
    best = await curate(stub, max_examples=1)
    assert [each.interaction_id for each in await examples(stub, best)] == ["b"] and best.num_dropped["over_limit"] == 4


async def test_a_curation_stays_what_it_was(stub: Any) -> None:
    await rated(stub, {"a": 0.9})
    request_id = str(uuid.uuid4())
    curation = await curate(stub, request_id=request_id, min_score=0.5)
    before = await examples(stub, curation)
    await record(stub, *(signal(f"down{number}", "a", DOWN) for number in range(5)))
    await rated(stub, {"b": 1.0})
    assert await examples(stub, curation) == before
    assert await curate(stub, request_id=request_id, min_score=0.5) == curation
    fresh = await curate(stub, min_score=0.5)
    assert fresh.curation_id != curation.curation_id and fresh.fingerprint != curation.fingerprint
    assert (await curate(stub, min_score=0.5)).fingerprint == fresh.fingerprint
    with refused(InvalidArgumentError, "REQUEST_ID_REUSED"):
        await curate(stub, request_id=request_id)
    with refused(NotFoundError, "CURATION_NOT_FOUND", says="'nope'"):
        await examples(stub, pb.Curation(curation_id="nope"))


async def test_corrections_take_the_place_of_answers(stub: Any) -> None:
    await ingest(stub, interaction("a", labels={"language": "en"}))
    await record(
        stub,
        signal("new", "a", CORRECTION, text="newest", time=Timestamp(seconds=200)),
        signal("old", "a", CORRECTION, text="older", time=Timestamp(seconds=100)),
    )
    (example,) = await examples(stub, await curate(stub, use_corrections=True, min_score=0.5))
    assert (example.messages[-1].content, example.score, example.corrected) == ("newest", 1.0, True)
    assert dict(example.labels) == {"language": "en"}
    (example,) = await examples(stub, await curate(stub))
    assert (example.messages[-1].content, example.score, example.corrected) == ("answer a", 0.0, False)


async def test_duplicates_and_what_is_not_new_can_be_left_out(stub: Any) -> None:
    await ingest(stub, interaction("b", answer="same"), interaction("a", answer="same"))
    curation = await curate(stub, remove_duplicates=True)
    assert [each.interaction_id for each in await examples(stub, curation)] == ["a"]
    assert dict(curation.num_dropped) == {"duplicate": 1}
    assert (await curate(stub)).num_examples == 2
    await baseline(stub)
    await ingest(stub, interaction("c"))
    curation = await curate(stub, only_new=True)
    assert curation.num_considered == 1 and [e.interaction_id for e in await examples(stub, curation)] == ["c"]


async def test_exports_come_in_batches(stub: Any) -> None:
    await ingest(stub, *(interaction(f"i{number:03}", prompt=f"q{number}") for number in range(600)))
    curation = await curate(stub)
    responses = [each async for each in stub.ExportExamples(pb.ExportExamplesRequest(curation_id=curation.curation_id))]
    assert [len(each.examples) for each in responses] == [256, 256, 88]
    ids = [each.interaction_id for response in responses for each in response.examples]
    assert ids == [f"i{number:03}" for number in range(600)]


async def test_answers_to_one_prompt_are_compared(stub: Any) -> None:
    await rated(stub, {"a": 0.2, "c": 0.9, "b": 0.3})
    await rated(stub, {"d": 0.5}, prompt="another question")
    await ingest(stub, interaction("e"))
    found = await pairs(stub)
    assert [(each.interaction_id_a, each.interaction_id_b) for each in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [each.labeled_comparison.label for each in found] == [B, B, B]
    assert [each.margin for each in found] == pytest.approx([0.1, 0.7, 0.6])
    comparison = found[1].labeled_comparison.comparison
    assert comparison.prompt_conversation[0].content == "question"
    assert (comparison.completion_a[0].content, comparison.completion_b[0].content) == ("answer a", "answer c")
    assert len(await pairs(stub, min_margin=0.5)) == 2
    ties = await pairs(stub, min_margin=0.5, include_ties=True)
    assert [each.labeled_comparison.label for each in ties] == [TIE, B, B]


async def test_equal_scores_are_a_tie_whatever_the_margin(stub: Any) -> None:
    await rated(stub, {"a": 0.5, "b": 0.5})
    for fields in ({}, {"min_margin": 0.0}):
        assert await pairs(stub, **fields) == []
        (tie,) = await pairs(stub, include_ties=True, **fields)
        assert (tie.labeled_comparison.label, tie.margin) == (TIE, 0)


async def test_a_correction_beats_the_answer(stub: Any) -> None:
    await ingest(stub, interaction("a"))
    await record(stub, signal("s", "a", CORRECTION))
    (pair,) = await pairs(stub)
    comparison = pair.labeled_comparison.comparison
    assert (pair.labeled_comparison.label, pair.margin) == (A, 1)
    assert (pair.interaction_id_a, pair.interaction_id_b) == ("a", "a")
    assert (comparison.completion_a[0].content, comparison.completion_b[0].content) == ("better a", "answer a")
    await baseline(stub)
    assert await pairs(stub, only_new=True) == []
    await rated(stub, {"b": 1.0})
    found = await pairs(stub, only_new=True)
    assert [(each.interaction_id_a, each.interaction_id_b) for each in found] == [("a", "b")]
