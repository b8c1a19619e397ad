"""my-adapter: an adapter of the port reward. It rewards answers behind "####" that are the reference answer."""

from __future__ import annotations

from typing import Any

from crucible.port.reward.v1 import reward_pb2, reward_pb2_grpc
from crucible_kit import paging
from crucible_kit.author import run_adapter
from crucible_kit.errors import InvalidArgumentError, KitchenError, NotFoundError, field_error, to_failure
from crucible_kit.messages import message_text, refuse_unusable

MARK = "####"
EXACT_MATCH = reward_pb2.Reward(
    name="exact_match",
    description=f"1 when what stands behind the last {MARK} is the reference answer, otherwise 0.",
    min_reward=0,
    max_reward=1,
    parts=["correct"],
    needs_reference_answer=True,
)


class Rewards(reward_pb2_grpc.RewardServiceServicer):
    """RewardService with one reward."""

    async def Score(self, request: reward_pb2.ScoreRequest, context: Any) -> reward_pb2.ScoreResponse:
        if request.reward not in ("", EXACT_MATCH.name):
            raise NotFoundError(
                f"reward: there is no {request.reward!r}; there is {EXACT_MATCH.name}",
                reason="REWARD_NOT_FOUND",
                metadata={"reward": request.reward},
            )
        for key in request.options.fields:
            raise field_error(f"options.{key}", "unknown key: this reward has no options", reason="OPTIONS_INVALID")
        return reward_pb2.ScoreResponse(results=[result_of(item) for item in request.items])

    async def ListRewards(self, request: reward_pb2.ListRewardsRequest, context: Any) -> reward_pb2.ListRewardsResponse:
        # One reward fits every page, so a token can only be one that is already past it.
        past = paging.decode(request.page_token, "ListRewards")
        return reward_pb2.ListRewardsResponse(rewards=[] if past else [EXACT_MATCH])


def result_of(item: reward_pb2.ScoreItem) -> reward_pb2.ScoreResult:
    """The result of one item. What can't be scored fails alone, never its batch."""
    try:
        return score(item)
    except KitchenError as error:
        return reward_pb2.ScoreResult(error=to_failure(error, source="my-adapter"))


def score(item: reward_pb2.ScoreItem) -> reward_pb2.ScoreResult:
    """Your reward goes here."""
    refuse_unusable(item.completion, port="reward", usable=("tools", "thinking"), field="completion")
    if not item.HasField("reference_answer"):
        raise InvalidArgumentError(
            "reference_answer: is missing, and this reward compares with it", reason="REFERENCE_ANSWER_MISSING"
        )
    answer = behind_mark(message_text(item.completion[-1]))
    expected = behind_mark(item.reference_answer) or item.reference_answer.strip()
    if not answer:
        outcome, explanation = reward_pb2.OUTCOME_UNPARSEABLE, f"there is no answer behind {MARK}"
    elif answer == expected:
        outcome, explanation = reward_pb2.OUTCOME_CORRECT, ""
    else:
        outcome, explanation = reward_pb2.OUTCOME_WRONG, f"expected {expected}"
    reward = float(outcome == reward_pb2.OUTCOME_CORRECT)
    return reward_pb2.ScoreResult(
        reward=reward, parts={"correct": reward}, outcome=outcome, answer=answer, explanation=explanation
    )


def behind_mark(text: str) -> str:
    """The rest of the line behind the last mark; empty: there is none."""
    _, mark, after = text.rpartition(MARK)
    return after.strip().partition("\n")[0].strip() if mark else ""


if __name__ == "__main__":
    run_adapter(name="my-adapter", ports={"reward": Rewards()})
