"""Tokenizers: texts to ids and back, and which tokens of a conversation are trained on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from crucible.port.tokenizer.v1 import tokenizer_pb2 as pb
from crucible.type.v1 import message_pb2
from crucible_kit.conformance.context import Context
from crucible_kit.conformance.expect import CheckSkipped, check, check_equal, check_refused, one_by_one
from crucible_kit.conformance.requirement import Samples, Suite
from crucible_kit.conformance.settings import SuiteSettings, builtin_folder
from crucible_kit.tensors import pack_tokens, unpack_tokens

_TEXTS = (
    "2 + 2 = 4",
    "Ada has 12 apples.\n\n  2 * 3 = 6",
    "The quick brown fox jumps over the lazy dog.",
    "h\u00e9llo \U0001f389\U0001f468\u200d\U0001f469\u200d\U0001f467 \u4f60\u597d",
    "word " * 200 + "end",
)


class TokenizerSettings(SuiteSettings):
    """Settings of the suite of tokenizers."""

    tokenizer: str = Field(
        default_factory=lambda: builtin_folder("tiny-qwen3"),
        description="Tokenizer to use, as the port's requests name it.",
    )
    lossless: bool = Field(default=True, description="Whether decoding gives back every text that was encoded.")


SUITE = Suite(port="tokenizer", settings=TokenizerSettings)
Tokenizer = Context[TokenizerSettings]
Tokens = list[list[int]]


async def info(context: Tokenizer) -> pb.GetTokenizerInfoResponse:
    """What the tokenizer is."""
    request = pb.GetTokenizerInfoRequest(tokenizer=context.settings.tokenizer)
    return await context.stub.GetTokenizerInfo(request)


async def encode(context: Tokenizer, texts: Sequence[str], **fields: Any) -> Tokens:
    """The ids of each text."""
    request = pb.EncodeBatchRequest(tokenizer=context.settings.tokenizer, texts=texts, **fields)
    response = await context.stub.EncodeBatch(request)
    check_equal(len(response.sequences), len(texts), "the number of sequences, one for each text")
    return [unpack_tokens(each.tokens_int32).tolist() for each in response.sequences]


async def decode(context: Tokenizer, sequences: Sequence[Sequence[int]], **fields: Any) -> list[str]:
    """The text of each sequence."""
    packed = [pb.TokenSequence(tokens_int32=pack_tokens(each)) for each in sequences]
    request = pb.DecodeBatchRequest(tokenizer=context.settings.tokenizer, sequences=packed, **fields)
    response = await context.stub.DecodeBatch(request)
    check_equal(len(response.texts), len(sequences), "the number of texts, one for each sequence")
    return list(response.texts)


def conversation(*messages: tuple[str, str], trainable: Sequence[int] = ()) -> message_pb2.Conversation:
    """A conversation of (role, content); `trainable` are the numbers of messages marked so."""
    built = message_pb2.Conversation()
    for number, (role, content) in enumerate(messages):
        message = built.messages.add(role=role, content=content)
        if number in trainable:
            message.trainable = True
    return built


CHAT = conversation(
    ("user", "How many?"), ("assistant", "Six apples."), ("user", "Sure?"), ("assistant", "Yes, quite sure.")
)


async def render(
    context: Tokenizer, *conversations: message_pb2.Conversation, **fields: Any
) -> list[pb.RenderedConversation]:
    """Each conversation as ids. Raises CheckSkipped when the tokenizer has no chat template."""
    if not (await info(context)).has_chat_template:
        raise CheckSkipped("the tokenizer has no chat template")
    return await apply(context, *conversations, **fields)


async def apply(
    context: Tokenizer, *conversations: message_pb2.Conversation, **fields: Any
) -> list[pb.RenderedConversation]:
    """Each conversation as ids, with or without a template."""
    request = pb.ApplyChatTemplateRequest(tokenizer=context.settings.tokenizer, conversations=conversations, **fields)
    response = await context.stub.ApplyChatTemplate(request)
    check_equal(len(response.rendered), len(conversations), "the number of rendered conversations")
    return list(response.rendered)


def trained(rendered: pb.RenderedConversation) -> set[int]:
    """The places of tokens that are trained on, after looking at the mask."""
    count = len(unpack_tokens(rendered.tokens_int32))
    check_equal(len(rendered.train_mask_uint8), count, "the number of bytes of the mask, one for each token")
    check(set(rendered.train_mask_uint8) <= {0, 1}, "a mask of 0 and 1", sorted(set(rendered.train_mask_uint8)))
    return {place for place, byte in enumerate(rendered.train_mask_uint8) if byte}


async def trained_text(context: Tokenizer, rendered: pb.RenderedConversation) -> str:
    """The text of the tokens that are trained on."""
    tokens = unpack_tokens(rendered.tokens_int32).tolist()
    [text] = await decode(context, [[tokens[place] for place in sorted(trained(rendered))]])
    return text


@SUITE.samples
async def _samples(context: Tokenizer) -> Samples:
    name, one = context.settings.tokenizer, pb.TokenSequence(tokens_int32=pack_tokens([1]))
    return {
        "GetTokenizerInfo": pb.GetTokenizerInfoRequest(tokenizer=name),
        "EncodeBatch": pb.EncodeBatchRequest(tokenizer=name, texts=["a"]),
        "DecodeBatch": pb.DecodeBatchRequest(tokenizer=name, sequences=[one]),
        "ApplyChatTemplate": pb.ApplyChatTemplateRequest(
            tokenizer=name, conversations=[CHAT], plain_without_template=True
        ),
    }


@SUITE.pings
async def _ping(context: Tokenizer) -> None:
    await encode(context, ["a"])


@SUITE.requirement(
    "TOK-INFO-01",
    "GetTokenizerInfo MUST give the number of ids, special ids below it, end-of-turn ids sorted, and a fingerprint "
    "that stays.",
    quote="Ids that end a turn, sorted",
)
async def _described(context: Tokenizer) -> None:
    described = await info(context)
    size = described.vocab_size
    check(size > 0, "vocab_size above 0", size)
    check(bool(described.fingerprint), "a fingerprint", "an empty one")
    check_equal((await info(context)).fingerprint, described.fingerprint, "the fingerprint when asked again")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if described.HasField(name):
            check(0 <= getattr(described, name) < size, f"{name} below vocab_size {size}", getattr(described, name))
    ends = list(described.end_of_turn_token_ids)
    check_equal(ends, sorted(set(ends)), "end_of_turn_token_ids, sorted and each once")
    check(all(0 <= each < size for each in ends), f"end_of_turn_token_ids below {size}", ends)


@SUITE.requirement(
    "TOK-INFO-02",
    "An unknown tokenizer MUST be NOT_FOUND TOKENIZER_NOT_FOUND.",
    quote="NOT_FOUND TOKENIZER_NOT_FOUND",
)
async def _unknown(context: Tokenizer) -> None:
    local = context.settings.tokenizer.startswith("/")
    name = "/no-such-folder-of-conformance" if local else "no-such-owner/no-such-tokenizer"
    calls = {
        "GetTokenizerInfo": context.stub.GetTokenizerInfo(pb.GetTokenizerInfoRequest(tokenizer=name)),
        "EncodeBatch": context.stub.EncodeBatch(pb.EncodeBatchRequest(tokenizer=name, texts=["a"])),
        "DecodeBatch": context.stub.DecodeBatch(pb.DecodeBatchRequest(tokenizer=name, sequences=[pb.TokenSequence()])),
        "ApplyChatTemplate": context.stub.ApplyChatTemplate(
            pb.ApplyChatTemplateRequest(tokenizer=name, conversations=[CHAT])
        ),
    }
    for what, call in one_by_one(calls):
        await check_refused(call, "NOT_FOUND", "TOKENIZER_NOT_FOUND", what=f"{what} of an unknown tokenizer")


@SUITE.requirement(
    "TOK-ENCODE-01",
    "EncodeBatch MUST give one sequence of ids of the vocabulary for each text, in order, the same each time.",
    quote="One sequence for each text, in order.",
)
async def _encodes(context: Tokenizer) -> None:
    size = (await info(context)).vocab_size
    sequences = await encode(context, _TEXTS)
    for text, tokens in zip(_TEXTS, sequences, strict=True):
        check(len(tokens) > 0, f"tokens of {text[:40]!r}", "none")
        check(all(0 <= each < size for each in tokens), f"ids below {size}", tokens)
    check_equal(await encode(context, _TEXTS), sequences, "the ids when asked again")
    for text, tokens in zip(_TEXTS, sequences, strict=True):
        check_equal(await encode(context, [text]), [tokens], f"the ids of {text[:40]!r} alone")


@SUITE.requirement(
    "TOK-ENCODE-02",
    "A text's ids MUST not depend on the texts beside it, nor on calls at the same time.",
)
async def _alone(context: Tokenizer) -> None:
    together = await encode(context, _TEXTS)
    alone = await asyncio.gather(*(encode(context, [text]) for text in _TEXTS * 4))
    check_equal([each for [each] in alone], together * 4, "the ids of texts in calls of their own")


@SUITE.requirement(
    "TOK-ENCODE-03",
    "Special tokens MUST not be added unless asked for: an empty text has no ids.",
    quote="Special tokens are never added unless asked for.",
)
async def _nothing(context: Tokenizer) -> None:
    check_equal(await encode(context, ["", "a", ""]), [[], (await encode(context, ["a"]))[0], []], "the ids of nothing")
    plain = (await encode(context, _TEXTS))[0]
    added = (await encode(context, _TEXTS, add_special_tokens=True))[0]
    inside = any(added[start : start + len(plain)] == plain for start in range(len(added) - len(plain) + 1))
    check(inside, f"the plain ids {plain} within those with special tokens", added)


@SUITE.requirement(
    "TOK-DECODE-01",
    "DecodeBatch MUST give back each text that EncodeBatch made ids of (with the setting lossless), in order.",
    quote="One text for each sequence, in order.",
)
async def _round_trip(context: Tokenizer) -> None:
    if not context.settings.lossless:
        raise CheckSkipped("the setting lossless is false")
    check_equal(await decode(context, await encode(context, _TEXTS)), list(_TEXTS), "the texts of their ids")
    check_equal(await decode(context, [[], *await encode(context, ["a"]), []]), ["", "a", ""], "the text of no ids")


@SUITE.requirement(
    "TOK-DECODE-02",
    "skip_special_tokens MUST leave special tokens out of the text.",
    quote="Leave special tokens out of the text. Absent: false.",
)
async def _skips_special(context: Tokenizer) -> None:
    described = await info(context)
    if not described.HasField("eos_token_id"):
        raise CheckSkipped("the tokenizer has no end-of-sequence token")
    [tokens] = await encode(context, ["2 + 2 = 4"])
    [plain] = await decode(context, [tokens])
    whole = [*tokens, described.eos_token_id]
    check_equal(await decode(context, [whole], skip_special_tokens=True), [plain], "the text without special tokens")
    [kept] = await decode(context, [whole])
    check(kept != plain, "a text with the special token in it", kept)


@SUITE.requirement(
    "TOK-DECODE-03",
    "What is no sequence of ids MUST be INVALID_ARGUMENT FIELD_INVALID: an id below 0, half an id.",
    quote="The ids as little-endian int32.",
)
async def _no_ids(context: Tokenizer) -> None:
    for what, packed in (("an id below 0", pack_tokens([1, -1])), ("3 bytes", b"\0\0\0")):
        request = pb.DecodeBatchRequest(
            tokenizer=context.settings.tokenizer,
            sequences=[pb.TokenSequence(), pb.TokenSequence(tokens_int32=packed)],
        )
        call = context.stub.DecodeBatch(request)
        await check_refused(call, "INVALID_ARGUMENT", "FIELD_INVALID", what=f"a sequence with {what}")


@SUITE.requirement(
    "TOK-CHAT-01",
    "ApplyChatTemplate MUST give one mask byte for each token, 0 or 1, and the tokens of a conversation whatever is "
    "trained on.",
    quote="One byte for each token: 1 when it is to be trained on, otherwise 0.",
)
async def _masks(context: Tokenizer) -> None:
    tokens = None
    for number, value in message_pb2.TrainOn.items():
        if value == message_pb2.TRAIN_ON_CUSTOMIZED:
            continue
        [rendered] = await render(context, CHAT, train_on=value)
        places = trained(rendered)
        tokens = tokens or rendered.tokens_int32
        check_equal(rendered.tokens_int32, tokens, f"the tokens with {number}")
        check(len(places) > 0, f"tokens that are trained on with {number}", "none")
    [everything] = await render(context, CHAT, train_on=message_pb2.TRAIN_ON_ALL_TOKENS)
    check_equal(set(everything.train_mask_uint8), {1}, "the mask of TRAIN_ON_ALL_TOKENS")


@SUITE.requirement(
    "TOK-CHAT-02",
    "The tokens that are trained on MUST be those of the messages that `train_on` names: with their content, and "
    "without "
    "the others'.",
    quote="The content and the end-of-turn token of every assistant message.",
)
async def _trains_on(context: Tokenizer) -> None:
    cases = {
        message_pb2.TRAIN_ON_UNSPECIFIED: [1, 3],
        message_pb2.TRAIN_ON_ALL_ASSISTANT_MESSAGES: [1, 3],
        message_pb2.TRAIN_ON_LAST_ASSISTANT_MESSAGE: [3],
        message_pb2.TRAIN_ON_ALL_MESSAGES: [0, 1, 2, 3],
        message_pb2.TRAIN_ON_ALL_USER_AND_SYSTEM_MESSAGES: [0, 2],
    }
    for train_on, numbers in cases.items():
        [rendered] = await render(context, CHAT, train_on=train_on)
        await _check_trained(context, rendered, numbers, message_pb2.TrainOn.Name(train_on))
    marked = conversation(*((each.role, each.content) for each in CHAT.messages), trainable=[2])
    [rendered] = await render(context, marked, train_on=message_pb2.TRAIN_ON_CUSTOMIZED)
    await _check_trained(context, rendered, [2], "TRAIN_ON_CUSTOMIZED")


async def _check_trained(
    context: Tokenizer, rendered: pb.RenderedConversation, numbers: Sequence[int], what: str
) -> None:
    text = await trained_text(context, rendered)
    for number, message in enumerate(CHAT.messages):
        if number in numbers:
            check(message.content in text, f"{message.content!r} to be trained on with {what}", repr(text))
        else:
            check(message.content not in text, f"{message.content!r} not to be trained on with {what}", repr(text))


@SUITE.requirement(
    "TOK-CHAT-03",
    "A generation prompt MUST be added at the end, and conversations be rendered each for itself.",
    quote="End with the header of an assistant's turn, for sampling. Absent: false.",
)
async def _prompts(context: Tokenizer) -> None:
    question = conversation(("user", "How many?"))
    [plain] = await render(context, question)
    [prompt] = await render(context, question, add_generation_prompt=True)
    check(prompt.tokens_int32 != plain.tokens_int32, "other tokens with a generation prompt", "the same")
    both = await render(context, CHAT, question)
    [alone] = await render(context, CHAT)
    check_equal([each.tokens_int32 for each in both], [alone.tokens_int32, plain.tokens_int32], "two conversations")


@SUITE.requirement(
    "TOK-CHAT-04",
    "Without a chat template ApplyChatTemplate MUST be FAILED_PRECONDITION CHAT_TEMPLATE_MISSING, or with "
    "plain_without_template render as the contract says.",
    quote="FAILED_PRECONDITION CHAT_TEMPLATE_MISSING unless plain_without_template is set",
)
async def _without_a_template(context: Tokenizer) -> None:
    described = await info(context)
    if described.has_chat_template:
        raise CheckSkipped("the tokenizer has a chat template; give one without it with --set tokenizer=...")
    await check_refused(apply(context, CHAT), "FAILED_PRECONDITION", "CHAT_TEMPLATE_MISSING", what="no template")
    [rendered] = await apply(context, CHAT, plain_without_template=True, add_generation_prompt=True)
    ends = [described.eos_token_id] if described.HasField("eos_token_id") else []
    begins = [described.bos_token_id] if described.HasField("bos_token_id") else []
    [begin, end] = await decode(context, [begins, ends])
    parts = [
        f"{each.role.capitalize()}: {each.content}{end if each.role == 'assistant' else ''}\n\n"
        for each in CHAT.messages
    ]
    [text] = await decode(context, [unpack_tokens(rendered.tokens_int32).tolist()])
    check_equal(text, begin + "".join(parts) + "Assistant:", "the plain rendering")
