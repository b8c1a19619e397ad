"""Reward functions: a result for each completion, and none that spoils its batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from crucible.port.reward.v1 import reward_pb2 as pb
from crucible.type.v1 import message_pb2
from crucible_kit.adapter import to_struct
from crucible_kit.conformance.context import Context
from crucible_kit.conformance.expect import CheckSkipped, check, check_equal, check_refused
from crucible_kit.conformance.paging import Page, all_keys, check_names
from crucible_kit.conformance.requirement import Samples, Suite
from crucible_kit.conformance.settings import SuiteSettings

_TEXTS = ("2 + 2 = 4\n#### 4", "\\boxed{5}", "I don't know.", "#### 4", "")


class RewardSettings(SuiteSettings):
    """Settings of the suite of reward functions."""

    reward: str = Field(default="", description="Reward function to ask. Empty: the adapter's default.")
    question: str = Field(default="What is 2 + 2?", description="The prompt.")
    reference_answer: str = Field(default="4", description="Its right answer, in the form the reward takes it.")


SUITE = Suite(port="reward", settings=RewardSettings)
Rewards = Context[RewardSettings]


def item(context: Rewards, text: str, **fields: Any) -> pb.ScoreItem:
    """A completion of the prompt."""
    return pb.ScoreItem(
        prompt=[message_pb2.Message(role="user", content=context.settings.question)],
        completion=[message_pb2.Message(role="assistant", content=text)],
        **{"reference_answer": context.settings.reference_answer, **fields},
    )


async def score(context: Rewards, items: Sequence[pb.ScoreItem], **fields: Any) -> list[pb.ScoreResult]:
    """The results of completions, one for each."""
    request = pb.ScoreRequest(**{"reward": context.settings.reward, "items": items, **fields})
    results = list((await context.stub.Score(request)).results)
    check_equal(len(results), len(items), "the number of results, one for each item")
    return results


def pages(context: Rewards) -> Any:
    """What asks for a page of names."""

    async def page(size: int, token: str) -> Page:
        response = await context.stub.ListRewards(pb.ListRewardsRequest(page_size=size, page_token=token))
        return Page([reward.name for reward in response.rewards], response.next_page_token)

    return page


async def listed(context: Rewards) -> list[pb.Reward]:
    """The first 500 reward functions."""
    return list((await context.stub.ListRewards(pb.ListRewardsRequest(page_size=500))).rewards)


@SUITE.samples
async def _samples(context: Rewards) -> Samples:
    return {
        "Score": pb.ScoreRequest(reward=context.settings.reward, items=[item(context, "4")]),
        "ListRewards": pb.ListRewardsRequest(),
    }


@SUITE.pings
async def _ping(context: Rewards) -> None:
    await score(context, [item(context, "4")])


@SUITE.requirement(
    "RWD-LIST-01",
    "ListRewards MUST list the reward functions by name, each once, in pages of any size, each with its range and "
    "parts.",
    quote="ListRewards lists the reward functions, sorted by name.",
)
async def _lists(context: Rewards) -> None:
    names = await check_names(pages(context), "the reward functions")
    check(len(names) > 0, "at least one reward function", "none")
    for reward in await listed(context):
        good = math.isfinite(reward.min_reward) and reward.min_reward <= reward.max_reward < math.inf
        check(good, f"a finite range of {reward.name}", (reward.min_reward, reward.max_reward))
        check_equal(list(reward.parts), sorted(set(reward.parts)), f"the parts of {reward.name}, sorted and each once")


@SUITE.requirement(
    "RWD-SCORE-01",
    "Score MUST give a finite result within the listed range for each item, in order, its parts among the listed ones.",
    quote="The reward: finite, within the range that ListRewards tells; 0 for a failed item.",
)
async def _scores(context: Rewards) -> None:
    for reward in await listed(context):
        results = await score(context, [item(context, text) for text in _TEXTS], reward=reward.name)
        for text, result in zip(_TEXTS, results, strict=True):
            what = f"the reward {reward.name} of {text!r}"
            check(math.isfinite(result.reward), f"{what} to be finite", result.reward)
            if result.HasField("error"):
                check_equal(result.reward, 0.0, f"{what}, which could not be scored,")
                check_equal(
                    result.outcome, pb.OUTCOME_UNSPECIFIED, f"the outcome of {text!r}, which could not be scored,"
                )
            else:
                within = reward.min_reward <= result.reward <= reward.max_reward
                check(within, f"{what} to be within {reward.min_reward} and {reward.max_reward}", result.reward)
            check(set(result.parts) <= set(reward.parts), f"parts among {list(reward.parts)}", sorted(result.parts))


@SUITE.requirement(
    "RWD-SCORE-02",
    "The same completion MUST have the same reward, whatever is beside it and wherever it stands.",
    quote="No state, so it may be tried again.",
)
async def _alone(context: Rewards) -> None:
    items = [item(context, text) for text in _TEXTS]
    together = await score(context, items)
    for one, result in zip(items, together, strict=True):
        check_equal(_told(await score(context, [one])), _told([result]), "the result of a completion alone")
    check_equal(_told(await score(context, items[::-1])), _told(together[::-1]), "the results in another order")


def _told(results: Sequence[pb.ScoreResult]) -> list[tuple[float, int, str]]:
    return [(result.reward, result.outcome, result.answer) for result in results]


@SUITE.requirement(
    "RWD-SCORE-03",
    "One item that can't be scored MUST not fail its batch: without the reference answer that a reward needs it is "
    "an item's "
    "error REFERENCE_ANSWER_MISSING.",
    quote="One that can't be scored is a result like the others: it never fails its batch.",
)
async def _one_bad(context: Rewards) -> None:
    needing = [reward.name for reward in await listed(context) if reward.needs_reference_answer]
    if not needing:
        raise CheckSkipped("no reward function needs a reference answer")
    good, bad = item(context, _TEXTS[0]), item(context, _TEXTS[0])
    bad.ClearField("reference_answer")
    results = await score(context, [good, bad, good], reward=needing[0])
    check_equal([each.HasField("error") for each in results], [False, True, False], "which items have an error")
    check_equal(results[1].error.reason, "REFERENCE_ANSWER_MISSING", "the reason of the item's error")
    check_equal(_told([results[2]]), _told([results[0]]), "the result behind the bad item")


@SUITE.requirement(
    "RWD-SCORE-04",
    "An unknown reward function MUST be NOT_FOUND REWARD_NOT_FOUND; unknown options INVALID_ARGUMENT OPTIONS_INVALID.",
    quote="INVALID_ARGUMENT OPTIONS_INVALID",
)
async def _unknown(context: Rewards) -> None:
    call = score(context, [item(context, "4")], reward="no-reward-is-called-so")
    await check_refused(call, "NOT_FOUND", "REWARD_NOT_FOUND", what="an unknown reward function")
    for reward in await listed(context):
        schema = reward.options_schema
        if not reward.HasField("options_schema") or not schema.fields["additionalProperties"].bool_value:
            options = to_struct({"no_option_is_called_so": True})
            call = score(context, [item(context, "4")], reward=reward.name, options=options)
            await check_refused(call, "INVALID_ARGUMENT", "OPTIONS_INVALID", what=f"an unknown option of {reward.name}")


@SUITE.requirement(
    "RWD-SCORE-05",
    "Large batches MUST be answered in order.",
)
async def _large(context: Rewards) -> None:
    texts = [f"#### {number}" for number in range(256)]
    results = await score(context, [item(context, text) for text in texts])
    few = [3, 4, 5, 255]
    alone = await score(context, [item(context, texts[number]) for number in few])
    check_equal(_told([results[number] for number in few]), _told(alone), f"the results {few} of 256")
    check(len(await all_keys(pages(context), 0)) > 0, "reward functions after that", "none")
