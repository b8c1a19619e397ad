"""Reward: right, wrong, unparseable and timed out are different, and one bad item fails nobody else."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct

from crucible.port.reward.v1 import reward_pb2 as pb
from crucible.type.v1 import message_pb2
from crucible_adapters.fakes.reward import FakeReward, FakeRewardOptions
from crucible_kit.adapter import AdapterContext
from crucible_kit.errors import InvalidArgumentError, NotFoundError, from_failure
from tests.contract.conftest import Binding
from tests.contract.listing import assert_pages
from tests.contract.refusals import refused


@pytest.fixture
async def stub(binding: Binding, context: AdapterContext) -> Any:
    return await binding.stub(FakeReward(FakeRewardOptions(), context))


def item(text: str, reference: str | None = "42", **fields: Any) -> pb.ScoreItem:
    return pb.ScoreItem(
        prompt=[message_pb2.Message(role="user", content="What is 6 x 7?")],
        completion=[message_pb2.Message(role="assistant", content=text)],
        reference_answer=reference,
        **fields,
    )


def struct(**values: Any) -> Struct:
    return ParseDict(values, Struct())


async def score(stub: Any, *items: pb.ScoreItem, **fields: Any) -> list[pb.ScoreResult]:
    return list((await stub.Score(pb.ScoreRequest(items=items, **fields))).results)


ANSWERS = {
    "6 x 7 = 42 #### 42": (pb.OUTCOME_CORRECT, 1.0, "42"),
    "#### 41": (pb.OUTCOME_WRONG, 0.0, "41"),
    "it is 42": (pb.OUTCOME_UNPARSEABLE, 0.0, ""),
    "####": (pb.OUTCOME_UNPARSEABLE, 0.0, ""),
    "#### 41\nno: #### 42.\nbye": (pb.OUTCOME_CORRECT, 1.0, "42"),
}


async def test_outcomes_are_told_apart(stub: Any) -> None:
    results = await score(stub, *(item(text) for text in ANSWERS))
    for result, (outcome, reward, answer) in zip(results, ANSWERS.values(), strict=True):
        assert (result.outcome, result.reward, result.answer) == (outcome, reward, answer)
        assert result.parts["correct"] == reward and result.parts["format"] == bool(answer)
        assert result.explanation and not result.HasField("error")


async def test_the_reference_may_be_a_whole_solution(stub: Any) -> None:
    results = await score(stub, item("#### 1,234", "We add. #### 1234"), item("#### 1234", "1,234"))
    assert [each.outcome for each in results] == [pb.OUTCOME_CORRECT] * 2


async def test_results_do_not_depend_on_the_batch(stub: Any) -> None:
    items = [item(text) for text in ANSWERS]
    assert await score(stub, *items) == [(await score(stub, each))[0] for each in items]


async def test_one_that_takes_too_long_is_timed_out_and_no_other(stub: Any) -> None:
    slow = item("#### 42", metadata=struct(seconds=3))
    results = await score(stub, slow, item("#### 42"), item_timeout=Duration(seconds=2))
    assert [(each.outcome, each.reward) for each in results] == [(pb.OUTCOME_TIMED_OUT, 0), (pb.OUTCOME_CORRECT, 1)]
    assert [each.outcome for each in await score(stub, slow)] == [pb.OUTCOME_CORRECT]
    # Longer than the adapter's own limit is cut to it.
    slowest = item("#### 42", metadata=struct(seconds=11))
    assert (await score(stub, slowest, item_timeout=Duration(seconds=3600)))[0].outcome == pb.OUTCOME_TIMED_OUT
    with refused(InvalidArgumentError, "FIELD_INVALID", field="item_timeout"):
        await score(stub, slow, item_timeout=Duration())


async def test_an_item_that_can_t_be_scored_fails_alone(stub: Any) -> None:
    image = message_pb2.ContentPart(media=message_pb2.Media(media_type="image/png", data=b"x"))
    odd = pb.ScoreItem(completion=[message_pb2.Message(role="assistant", parts=[image])], reference_answer="42")
    results = await score(stub, item("#### 42", None), odd, item("#### 42"))
    assert [each.HasField("error") for each in results] == [True, True, False]
    reasons = [from_failure(each.error).reason for each in results[:2]]
    assert reasons == ["REFERENCE_ANSWER_MISSING", "CAPABILITY_MISSING"]
    assert [(each.reward, each.outcome) for each in results[:2]] == [(0, pb.OUTCOME_UNSPECIFIED)] * 2
    assert results[2].outcome == pb.OUTCOME_CORRECT


async def test_a_reward_without_right_and_wrong_has_no_outcome(stub: Any) -> None:
    results = await score(stub, item("one two", None), item("word " * 40, None), reward="length")
    assert [(each.outcome, each.reward) for each in results] == [(pb.OUTCOME_UNSPECIFIED, r) for r in (0.125, 1.0)]
    (half,) = await score(stub, item("one two", None), reward="length", options=struct(full_tokens=4))
    assert (half.reward, half.parts["length"]) == (0.5, 0.5)


async def test_options_are_checked(stub: Any) -> None:
    (result,) = await score(stub, item("#### 41"), options=struct(format_weight=0.25))
    assert (result.reward, result.outcome) == (0.25, pb.OUTCOME_WRONG)
    for options, field in ((struct(format_weight=2), "options.format_weight"), (struct(weight=1), "options.weight")):
        with refused(InvalidArgumentError, "OPTIONS_INVALID", field=field):
            await score(stub, item("x"), options=options)


async def test_bad_requests_name_their_field(stub: Any) -> None:
    with refused(NotFoundError, "REWARD_NOT_FOUND", says="exact_match"):
        await score(stub, item("x"), reward="beauty")
    with refused(InvalidArgumentError, "FIELD_INVALID", field="items"):
        await score(stub)
    with refused(InvalidArgumentError, "FIELD_INVALID", field="items[1].completion"):
        await score(stub, item("x"), pb.ScoreItem(reference_answer="1"))


async def test_rewards_are_listed_and_keep_their_range(stub: Any) -> None:
    rewards = (await stub.ListRewards(pb.ListRewardsRequest())).rewards
    assert [each.name for each in rewards] == ["exact_match", "length"]
    assert [each.needs_reference_answer for each in rewards] == [True, False]
    await assert_pages(stub.ListRewards, pb.ListRewardsRequest(), "rewards")
    for reward in rewards:
        for result in await score(stub, *(item(text) for text in ANSWERS), reward=reward.name):
            assert reward.min_reward <= result.reward <= reward.max_reward
            assert sorted(result.parts) == list(reward.parts)
