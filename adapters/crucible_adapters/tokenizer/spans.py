"""Which characters of a rendered conversation each message's content and end-of-turn token take."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crucible.type.v1 import message_pb2
from crucible_adapters.tokenizer.template import ChatMessage, ChatTemplate, TemplateRefusal

_ADVICE = (
    "so the tokens to train on can't be told apart; use train_on all_tokens, or a template that renders every message "
    "the same whatever comes after it"
)
# Private-use characters: no tokenizer or template gives them a meaning.
_MARK = "\ue0c1\ue0c2"
_MARK_MORE = "\ue0c3"


def trained_messages(conversation: message_pb2.Conversation, train_on: int) -> list[int]:
    """Numbers of the messages whose content is trained on; TRAIN_ON_ALL_TOKENS is no matter of messages.

    Raises:
        ValueError: the last message must be an assistant's and is not.
    """
    messages = conversation.messages
    match train_on:
        case message_pb2.TRAIN_ON_LAST_ASSISTANT_MESSAGE:
            if messages[-1].role != "assistant":
                raise ValueError(
                    f"the last message is of role {messages[-1].role!r}, but train_on last_assistant_message needs an "
                    "assistant's"
                )
            return [len(messages) - 1]
        case message_pb2.TRAIN_ON_UNSPECIFIED | message_pb2.TRAIN_ON_ALL_ASSISTANT_MESSAGES:
            return [i for i, message in enumerate(messages) if message.role == "assistant"]
        case message_pb2.TRAIN_ON_ALL_MESSAGES:
            return list(range(len(messages)))
        case message_pb2.TRAIN_ON_ALL_USER_AND_SYSTEM_MESSAGES:
            return [i for i, message in enumerate(messages) if message.role in ("user", "system")]
        case message_pb2.TRAIN_ON_CUSTOMIZED:
            return [i for i, message in enumerate(messages) if message.trainable]
        case _:
            raise AssertionError(f"no message decides under train_on {train_on}")


class RenderedChat:
    """One rendered conversation and where its messages are in the text.

    A message's place is found by rendering the conversation again: with a mark instead of the message's content, which
    shows what the template puts before and after it, and, for an assistant's header, without the message and the rest.

    Raises:
        TemplateRefusal: the template does not take the conversation.
    """

    def __init__(self, template: ChatTemplate, messages: Sequence[ChatMessage], *, add_generation_prompt: bool) -> None:
        self._template = template
        self._messages = list(messages)
        self._add_generation_prompt = add_generation_prompt
        self.text = template.render(messages, add_generation_prompt=add_generation_prompt)
        self._mark = _MARK
        while self._mark in self.text:
            self._mark += _MARK_MORE
        self._around: dict[int, tuple[str, str]] = {}

    def content(self, index: int) -> tuple[int, int]:
        """Start and end of what message `index` says, in characters. An assistant's begins where sampling would begin.

        Raises:
            TemplateRefusal: the template renders the message differently from one context to another.
        """
        before, after = self._surroundings(index)
        if self._messages[index]["role"] == "assistant" and index > 0:
            before = self._template.render(self._messages[:index], add_generation_prompt=True)
        start, end = len(before), len(self.text) - len(after)
        if not self.text.startswith(before):
            raise TemplateRefusal(
                f"the template renders what comes before message {index} differently when it follows, {_ADVICE}"
            )
        if not self.text.endswith(after) or end < start:
            raise TemplateRefusal(
                f"the template renders what comes after message {index} differently for other contents, {_ADVICE}"
            )
        return start, end

    def turn_end(self, index: int) -> int:
        """Before this character the end-of-turn token of message `index` stands: the next content's start."""
        if index + 1 == len(self._messages):
            return len(self.text)
        before, _ = self._surroundings(index + 1)
        if self.text.startswith(before):
            return len(before)
        pairs = enumerate(zip(before, self.text, strict=False))
        return next((place for place, (one, other) in pairs if one != other), len(self.text))

    def _surroundings(self, index: int) -> tuple[str, str]:
        """The text before and after the content of message `index`."""
        if index not in self._around:
            messages = list(self._messages)
            messages[index] = {**messages[index], "content": self._mark}
            text = self._template.render(messages, add_generation_prompt=self._add_generation_prompt)
            if self._mark not in text:
                raise TemplateRefusal(f"the template leaves out the content of message {index}, {_ADVICE}")
            self._around[index] = (text[: text.index(self._mark)], text[text.rindex(self._mark) + len(self._mark) :])
        return self._around[index]


def text_after_turn(template: ChatTemplate) -> str:
    """What the template puts after an assistant's content; empty when it takes no plain question and answer."""
    messages = [{"role": "user", "content": _MARK}, {"role": "assistant", "content": _MARK + _MARK_MORE}]
    try:
        text = template.render(messages, add_generation_prompt=False)
    except TemplateRefusal:
        return ""
    return text.rpartition(_MARK + _MARK_MORE)[2]


def train_mask(
    chat: RenderedChat, trained: Sequence[int], ids: np.ndarray, offsets: np.ndarray, end_of_turn: np.ndarray
) -> np.ndarray:
    """One uint8 for each token, 1 when it is trained on; shape [n].

    A token is trained on when one of its characters lies in a trained content or the end-of-turn token after it.

    Args:
        trained: numbers of the messages to train on.
        ids: shape [n].
        offsets: first character and the one after the last of each token, shape [n, 2].
        end_of_turn: ids that end a turn, shape [k].

    Raises:
        TemplateRefusal: the template is not consistent enough to tell.
    """
    mask = np.zeros(len(ids), dtype=np.uint8)
    starts, ends = offsets[:, 0], offsets[:, 1]
    ending = np.isin(ids, end_of_turn)
    for index in trained:
        start, end = chat.content(index)
        closing = np.flatnonzero(ending & (ends > end) & (starts < chat.turn_end(index)))
        if len(closing):
            end = ends[closing[0]]
        mask[(ends > start) & (starts < end)] = 1
    return mask
