"""Feedback stores: reasons to train again, and what to train on."""

from __future__ import annotations

import uuid
from typing import Any

from crucible.port.feedback.v1 import feedback_pb2 as pb
from crucible.type.v1 import comparison_pb2
from crucible_kit.conformance.expect import check, check_close, check_equal, check_refused, collect
from crucible_kit.conformance.feedback import (
    FLAG,
    SUITE,
    UP,
    Feedback,
    baseline,
    correction,
    ingest,
    interaction,
    new_line,
    quality,
    rating,
    record,
    scored,
    signal,
)

_A, _B, _TIE = (
    comparison_pb2.COMPARISON_LABEL_A,
    comparison_pb2.COMPARISON_LABEL_B,
    comparison_pb2.COMPARISON_LABEL_TIE,
)
_BATCH = 256


def new_id() -> str:
    """A request's id."""
    return str(uuid.uuid4())


async def curate(context: Feedback, line: str, **fields: Any) -> pb.Curation:
    """A choice of examples."""
    request = pb.CurateExamplesRequest(**{"request_id": new_id(), "model_name": line, **fields})
    return (await context.stub.CurateExamples(request)).curation


async def export(context: Feedback, curation: pb.Curation) -> list[pb.Example]:
    """The examples of a curation."""
    messages = await collect(context.stub.ExportExamples(pb.ExportExamplesRequest(curation_id=curation.curation_id)))
    check(all(len(each.examples) <= _BATCH for each in messages), f"at most {_BATCH} examples in a message", "more")
    examples = [example for message in messages for example in message.examples]
    check_equal(len(examples), curation.num_examples, "the number of exported examples, as the curation says,")
    return examples


async def pairs(context: Feedback, line: str, **fields: Any) -> list[tuple[str, str, int, float]]:
    """(number of A, number of B, label, margin) of each comparison."""
    request = pb.ExportPreferencePairsRequest(model_name=line, **fields)
    messages = await collect(context.stub.ExportPreferencePairs(request))
    check(all(len(each.pairs) <= _BATCH for each in messages), f"at most {_BATCH} pairs in a message", "more")
    return [
        (
            pair.interaction_id_a.rpartition("/")[2],
            pair.interaction_id_b.rpartition("/")[2],
            pair.labeled_comparison.label,
            round(pair.margin, 9),
        )
        for message in messages
        for pair in message.pairs
    ]


async def fired(context: Feedback, line: str, *triggers: pb.Trigger) -> tuple[bool, list[bool]]:
    """Whether to train again, and which triggers have fired."""
    response = await context.stub.CheckTriggers(pb.CheckTriggersRequest(model_name=line, triggers=triggers))
    return response.should_retrain, [each.fired for each in response.results]


@SUITE.requirement(
    "FBK-TRIGGER-01",
    "CheckTriggers MUST fire on what is new: so many interactions or signals, a low mean score; never without "
    "anything to "
    "measure. It changes nothing.",
    quote="CheckTriggers says whether there is reason to train again. Changes nothing.",
)
async def _triggers(context: Feedback) -> None:
    line = new_line(context)
    reasons = (
        pb.Trigger(min_new_interactions=2),
        pb.Trigger(min_new_signals=2),
        pb.Trigger(mean_score_below=0.5),
        pb.Trigger(drift_above=0.0),
        pb.Trigger(min_new_interactions=3),
    )
    check_equal(await fired(context, line, *reasons), (False, [False] * 5), "(retrain, fired) of an empty line")
    several = [interaction(line, number) for number in range(2)]
    await ingest(context, *several)
    expected = (True, [True, False, False, False, False])
    check_equal(await fired(context, line, *reasons), expected, "(retrain, fired) of two interactions")
    await record(context, *scored(several, [0.0, 0.5]))
    expected = (True, [True, True, True, False, False])
    for _ in range(2):
        check_equal(await fired(context, line, *reasons), expected, "(retrain, fired) with two low ratings")
    await baseline(context, new_id(), line)
    check_equal(await fired(context, line, *reasons), (False, [False] * 5), "(retrain, fired) after a baseline")
    call = fired(context, line, pb.Trigger())
    await check_refused(call, "INVALID_ARGUMENT", "FIELD_INVALID", what="a trigger of nothing")


@SUITE.requirement(
    "FBK-CURATE-01",
    "A curation MUST hold the interactions with the score that is asked for, best first, equal ones by id, those "
    "without a "
    "score last; flagged ones never.",
    quote="those with the best scores, those without a score last, equal ones by id.",
)
async def _curates(context: Feedback) -> None:
    line = new_line(context)
    several = [interaction(line, number, labels={"n": str(number)}) for number in range(6)]
    await ingest(context, *several)
    await record(context, *scored(several[:4], [0.5, 1.0, 0.5, 0.25]), signal(several[5], "flag", FLAG))
    everything = await curate(context, line)
    got = [example.interaction_id.rpartition("/")[2] for example in await export(context, everything)]
    check_equal(got, ["001", "000", "002", "003", "004"], "the numbers of all examples")
    counts = (everything.num_considered, everything.num_examples, dict(everything.num_dropped))
    check_equal(counts, (6, 5, {"flagged": 1}), "(num_considered, num_examples, num_dropped)")
    good = await curate(context, line, min_score=0.5)
    examples = await export(context, good)
    got = [example.interaction_id.rpartition("/")[2] for example in examples]
    check_equal(got, ["001", "000", "002"], "the numbers of examples with a score of 0.5 or more")
    check_equal(dict(good.num_dropped), {"flagged": 1, "low_score": 1, "no_score": 1}, "num_dropped")
    check_equal([example.score for example in examples], [1.0, 0.5, 0.5], "their scores")
    check_equal(dict(examples[0].labels), {"n": "1"}, "the labels of an example")
    texts = [message.content for message in examples[0].messages]
    check_equal(texts, ["question 1", "answer 1"], "the prompt and then the completion")
    few = await curate(context, line, max_examples=2)
    got = [example.interaction_id.rpartition("/")[2] for example in await export(context, few)]
    check_equal(got, ["001", "000"], "the numbers of at most two examples")
    check_equal(few.num_dropped["over_limit"], 3, "num_dropped over the limit")


@SUITE.requirement(
    "FBK-CURATE-02",
    "A curation MUST take the newest correction in place of the answer where asked for, with score 1, and keep one "
    "of equal "
    "examples.",
    quote="Take a corrected answer in place of the answer, the newest of several; it counts as score 1.",
)
async def _corrects(context: Feedback) -> None:
    line = new_line(context)
    corrected, twin, other = interaction(line, 1), interaction(line, 2, prompt="q", answer="a"), interaction(line, 3)
    same = interaction(line, 4, prompt="q", answer="a")
    await ingest(context, corrected, twin, other, same)
    for seconds, text in ((20, "newest"), (10, "older")):
        fix = signal(corrected, text, pb.SIGNAL_KIND_CORRECTION, correction=correction(corrected, text).correction)
        fix.time.seconds = 1_700_000_000 + seconds
        await record(context, fix)
    curation = await curate(context, line, use_corrections=True, remove_duplicates=True)
    examples = {each.interaction_id.rpartition("/")[2]: each for each in await export(context, curation)}
    check_equal(sorted(examples), ["001", "002", "003"], "the numbers of the examples")
    check_equal(dict(curation.num_dropped), {"duplicate": 1}, "num_dropped")
    fixed = examples["001"]
    got = (fixed.messages[-1].content, fixed.corrected, fixed.score)
    check_equal(got, ("newest", True, 1.0), "(completion, corrected, score) of the corrected example")
    plain = {
        each.interaction_id.rpartition("/")[2]: each for each in await export(context, await curate(context, line))
    }
    got = (plain["001"].messages[-1].content, plain["001"].corrected, plain["001"].score)
    check_equal(got, ("answer 1", False, 0.0), "(completion, corrected, score) without corrections")


@SUITE.requirement(
    "FBK-CURATE-03",
    "A curation MUST stay as it was made, be made once for a request_id, and have a fingerprint of its examples.",
    quote="CurateExamples chooses interactions to train on and keeps the choice: later signals do not change it.",
)
async def _keeps(context: Feedback) -> None:
    line, request_id = new_line(context), new_id()
    several = [interaction(line, number) for number in range(3)]
    await ingest(context, *several)
    await record(context, *scored(several, [0.5, 0.25, 1.0]))
    made = await curate(context, line, request_id=request_id, min_score=0.5)
    before = await export(context, made)
    same = await curate(context, line, min_score=0.5)
    check_equal(same.fingerprint, made.fingerprint, "the fingerprint of the same examples")
    await record(context, signal(several[1], "up", UP), signal(several[0], "flag", FLAG))
    check_equal(await curate(context, line, request_id=request_id, min_score=0.5), made, "the repeat of a request_id")
    check_equal(await export(context, made), before, "the examples after later signals")
    later = await curate(context, line, min_score=0.5)
    check(later.fingerprint != made.fingerprint, "another fingerprint of other examples", later.fingerprint)
    call = curate(context, line, request_id=request_id, min_score=0.25)
    await check_refused(call, "INVALID_ARGUMENT", "REQUEST_ID_REUSED", what="a request_id with another score")
    call = export(context, pb.Curation(curation_id="no-curation-is-called-so"))
    await check_refused(call, "NOT_FOUND", "CURATION_NOT_FOUND", what="an unknown curation")


@SUITE.requirement(
    "FBK-CURATE-04",
    "only_new MUST choose what was ingested after the baseline.",
    quote="Only what is new.",
)
async def _only_new(context: Feedback) -> None:
    line = new_line(context)
    await ingest(context, interaction(line, 1))
    await baseline(context, new_id(), line)
    await ingest(context, interaction(line, 2))
    for only_new, numbers in ((True, ["002"]), (False, ["001", "002"])):
        examples = await export(context, await curate(context, line, only_new=only_new))
        got = [each.interaction_id.rpartition("/")[2] for each in examples]
        check_equal(got, numbers, f"the numbers of examples with only_new {only_new}")


@SUITE.requirement(
    "FBK-PAIRS-01",
    "Pairs MUST be the scored interactions of the same prompt, the id that sorts first as A, the better one by at "
    "least "
    "min_margin winning; ties only when asked for.",
    quote="the one whose id sorts first as A",
)
async def _pairs(context: Feedback) -> None:
    line = new_line(context)
    several = [interaction(line, number, prompt="same", answer=f"a{number}") for number in range(4)]
    apart = interaction(line, 9, prompt="other")
    await ingest(context, *several, apart)
    await record(context, *scored(several[:3], [0.25, 0.75, 0.75]), rating(apart, 1.0))
    got = await pairs(context, line)
    check_equal(got, [("000", "001", _B, 0.5), ("000", "002", _B, 0.5)], "(A, B, label, margin) of the pairs")
    got = await pairs(context, line, include_ties=True)
    check_equal(got[-1], ("001", "002", _TIE, 0.0), "(A, B, label, margin) of a tie")
    got = await pairs(context, line, min_margin=0.6, include_ties=True)
    check_equal({label for _, _, label, _ in got}, {_TIE}, "the labels where no margin is large enough")
    await record(context, signal(several[3], "up", UP))
    await baseline(context, new_id(), line)
    await ingest(context, interaction(line, 5, prompt="same"))
    check_equal(await pairs(context, line, only_new=True), [], "the pairs with something new that has no score")
    await record(context, rating(interaction(line, 5), 0.0))
    got = [(a, b) for a, b, _, _ in await pairs(context, line, only_new=True)]
    check_equal(got, [("000", "005"), ("001", "005"), ("002", "005"), ("003", "005")], "the pairs with something new")


@SUITE.requirement(
    "FBK-PAIRS-02",
    "Every correction MUST be a pair of the corrected answer against the answer, with margin 1.",
    quote="for every CORRECTION",
)
async def _corrected_pairs(context: Feedback) -> None:
    line = new_line(context)
    wrong = interaction(line, 1)
    await ingest(context, wrong)
    await record(context, correction(wrong, "better"))
    request = pb.ExportPreferencePairsRequest(model_name=line)
    messages = await collect(context.stub.ExportPreferencePairs(request))
    found = [pair for message in messages for pair in message.pairs]
    check_equal(len(found), 1, "the number of pairs of one correction")
    [pair] = found
    comparison = pair.labeled_comparison.comparison
    better, worse = comparison.completion_a, comparison.completion_b
    if pair.labeled_comparison.label == _B:
        better, worse = worse, better
    got = (better[0].content, worse[0].content, pair.margin, pair.interaction_id_a == pair.interaction_id_b)
    check_equal(got, ("better", "answer 1", 1.0, True), "(better, worse, margin, whether both are of one interaction)")


@SUITE.requirement(
    "FBK-BASELINE-01",
    "UpdateBaseline MUST make what there is the baseline, once for a request_id, and count from there what is new.",
    quote="UpdateBaseline makes the interactions up to now the baseline of a model line",
)
async def _baselines(context: Feedback) -> None:
    line, request_id = new_line(context), new_id()
    several = [interaction(line, number) for number in range(2)]
    await ingest(context, *several)
    await record(context, *scored(several, [0.5, 1.0]))
    made = await baseline(context, request_id, line, version_id="v7")
    got = (made.model_name, made.version_id, made.num_interactions, made.mean_score)
    check_equal(got, (line, "v7", 2, 0.75), "(model_name, version_id, num_interactions, mean_score)")
    check(bool(made.baseline_id) and made.time.seconds > 0, "an id and a time", made)
    await ingest(context, interaction(line, 5))
    check_equal(await baseline(context, request_id, line, version_id="v7"), made, "the repeat of a request_id")
    check_equal((await quality(context, line, only_new=True)).num_interactions, 1, "what is new after a repeat")
    call = baseline(context, request_id, line, version_id="v8")
    await check_refused(call, "INVALID_ARGUMENT", "REQUEST_ID_REUSED", what="a request_id with another version")


@SUITE.requirement(
    "FBK-DRIFT-01",
    "GetDriftStatus MUST compare what is new with the baseline: FAILED_PRECONDITION BASELINE_MISSING without one, "
    "and too "
    "little data is said.",
    quote="FAILED_PRECONDITION BASELINE_MISSING.",
)
async def _drifts(context: Feedback) -> None:
    line = new_line(context)

    async def status() -> pb.GetDriftStatusResponse:
        return await context.stub.GetDriftStatus(pb.GetDriftStatusRequest(model_name=line))

    await check_refused(status(), "FAILED_PRECONDITION", "BASELINE_MISSING", what="the drift without a baseline")
    old = [interaction(line, number) for number in range(32)]
    await ingest(context, *old)
    await record(context, *scored(old, [1.0] * 32))
    made = await baseline(context, new_id(), line)
    little = await status()
    check_equal(little.state, pb.DRIFT_STATE_TOO_LITTLE_DATA, "the state with nothing new")
    check_equal((len(little.drifts), little.num_new_interactions), (0, 0), "(drifts, num_new_interactions)")
    check_equal(little.baseline, made, "the baseline")
    new = [interaction(line, 100 + number) for number in range(32)]
    await ingest(context, *new)
    await record(context, *scored(new, [0.25] * 32))
    now = await status()
    check_equal(now.num_new_interactions, 32, "num_new_interactions")
    measures = [each.measure for each in now.drifts]
    check_equal(measures, sorted(measures), "the measures, sorted")
    check("mean_score" in measures, "mean_score among the measures", measures)
    mean = now.drifts[measures.index("mean_score")]
    for name, expected in (("baseline_value", 1.0), ("new_value", 0.25), ("drift", 0.75)):
        check_close(getattr(mean, name), expected, f"{name} of mean_score", relative=1e-9)
    drifted = any(each.drift > each.threshold for each in now.drifts)
    expected = pb.DRIFT_STATE_DRIFTED if drifted else pb.DRIFT_STATE_STABLE
    check_equal(now.state, expected, "the state, by the drifts and their thresholds,")
