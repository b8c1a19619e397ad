"""The fake of the tokenizer port: a token is a byte."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from crucible.port.tokenizer.v1 import tokenizer_pb2 as pb
from crucible.port.tokenizer.v1 import tokenizer_pb2_grpc
from crucible.type.v1 import message_pb2
from crucible_adapters.fakes.fixed import MODELS
from crucible_adapters.tokenizer.spans import trained_messages
from crucible_kit.adapter import AdapterContext, AdapterDescription, AdapterOptions
from crucible_kit.chunks import canonical_json
from crucible_kit.errors import (
    FailedPreconditionError,
    FieldViolation,
    InvalidArgumentError,
    NotFoundError,
    field_error,
)
from crucible_kit.messages import message_text, refuse_unusable
from crucible_kit.tensors import pack_tokens, unpack_tokens

SPECIAL = {256: "<|start|>", 257: "<|end|>", 258: "<|begin|>", 259: "<|pad|>"}
START, END, BEGIN, PAD = SPECIAL
ROLES = ("system", "user", "assistant", "tool")
_FILE = "tokenizer.json"


class FakeTokenizerOptions(AdapterOptions):
    """Which names it takes, and whether it has a chat template."""

    seed: int = Field(default=0, ge=0, description="Changes nothing: bytes are bytes.")
    tokenizers: tuple[str, ...] = Field(
        default=MODELS, description=f"Names there are, beside every folder that holds a {_FILE}."
    )
    chat_template: bool = Field(default=True, description="False: as a base model, without a chat template.")


class _Piece(NamedTuple):
    ids: list[int]
    trained: bool


class FakeTokenizer(tokenizer_pb2_grpc.TokenizerServiceServicer):
    """Ids 0 to 255 are the bytes of UTF-8, four more are special. Texts never make special tokens.

    The chat template puts `<|start|>role\\n` before a message's content, with ` name` behind the role where there is
    one, and `<|end|>\\n` after it.
    """

    description = AdapterDescription(name="fake-tokenizer", port="tokenizer", options=FakeTokenizerOptions)

    def __init__(self, options: FakeTokenizerOptions, context: AdapterContext) -> None:
        self._options = options

    async def close(self) -> None:
        """Nothing to free."""

    async def GetTokenizerInfo(self, request: pb.GetTokenizerInfoRequest, context: Any) -> pb.GetTokenizerInfoResponse:
        self._check(request.tokenizer)
        described = {"special": list(SPECIAL.items()), "chat_template": self._options.chat_template}
        return pb.GetTokenizerInfoResponse(
            vocab_size=256 + len(SPECIAL),
            bos_token_id=BEGIN,
            eos_token_id=END,
            pad_token_id=PAD,
            has_chat_template=self._options.chat_template,
            fingerprint=hashlib.sha256(canonical_json(described)).hexdigest(),
            end_of_turn_token_ids=[END],
        )

    async def EncodeBatch(self, request: pb.EncodeBatchRequest, context: Any) -> pb.EncodeBatchResponse:
        self._check(request.tokenizer)
        first = [BEGIN] if request.add_special_tokens else []
        return pb.EncodeBatchResponse(
            sequences=[pb.TokenSequence(tokens_int32=pack_tokens([*first, *text.encode()])) for text in request.texts]
        )

    async def DecodeBatch(self, request: pb.DecodeBatchRequest, context: Any) -> pb.DecodeBatchResponse:
        self._check(request.tokenizer)
        texts = []
        for number, sequence in enumerate(request.sequences):
            field = f"sequences[{number}].tokens_int32"
            ids = unpack_tokens(sequence.tokens_int32, field=field).tolist()
            if ids and min(ids) < 0:
                raise field_error(field, f"holds the id {min(ids)}: ids are 0 or more")
            texts.append(_decode(ids, skip_special_tokens=request.skip_special_tokens))
        return pb.DecodeBatchResponse(texts=texts)

    async def ApplyChatTemplate(
        self, request: pb.ApplyChatTemplateRequest, context: Any
    ) -> pb.ApplyChatTemplateResponse:
        self._check(request.tokenizer)
        if not self._options.chat_template and not request.plain_without_template:
            raise FailedPreconditionError(
                f"the tokenizer {request.tokenizer!r} has no chat template: name another, set plain_without_template, "
                "or set this adapter's option chat_template",
                reason="CHAT_TEMPLATE_MISSING",
                metadata={"tokenizer": request.tokenizer},
            )
        render = _chat if self._options.chat_template else _plain
        response = pb.ApplyChatTemplateResponse()
        for number, conversation in enumerate(request.conversations):
            field = f"conversations[{number}].messages"
            refuse_unusable(conversation.messages, port="tokenizer", field=field)
            pieces = list(render(conversation, _trained(request, number), number))
            if request.add_generation_prompt:
                pieces.append(_Piece(_GENERATION[render], False))
            ids = [each for piece in pieces for each in piece.ids]
            mask = bytes(piece.trained for piece in pieces for _ in piece.ids)
            if request.train_on == message_pb2.TRAIN_ON_ALL_TOKENS:
                mask = b"\1" * len(ids)
            response.rendered.add(tokens_int32=pack_tokens(ids), train_mask_uint8=mask)
        return response

    def _check(self, name: str) -> None:
        if name in self._options.tokenizers or (name.startswith("/") and (Path(name) / _FILE).is_file()):
            return
        raise NotFoundError(
            f"there is no tokenizer {name!r}, only folders that hold a {_FILE} and "
            f"{', '.join(self._options.tokenizers)}: see the option tokenizers",
            reason="TOKENIZER_NOT_FOUND",
            metadata={"tokenizer": name},
        )


def _trained(request: pb.ApplyChatTemplateRequest, number: int) -> set[int]:
    """Numbers of the messages whose content is trained on."""
    if request.train_on == message_pb2.TRAIN_ON_ALL_TOKENS:
        return set()
    try:
        return set(trained_messages(request.conversations[number], request.train_on))
    except ValueError as error:
        raise field_error(f"conversations[{number}].messages", str(error)) from error


def _chat(conversation: message_pb2.Conversation, trained: set[int], number: int) -> Iterable[_Piece]:
    for index, message in enumerate(conversation.messages):
        if message.role not in ROLES:
            description = f"the chat template refuses the conversation: the role {message.role!r} is none of {ROLES}"
            field = f"conversations[{number}]"
            raise InvalidArgumentError(
                f"{field}: {description}",
                reason="CHAT_TEMPLATE_REFUSED",
                metadata={"field": field, "index": number},
                fields=[FieldViolation(field, description)],
            )
        speaker = f"{message.role} {message.name}" if message.name else message.role
        yield _Piece([START, *f"{speaker}\n".encode()], False)
        yield _Piece([*message_text(message).encode(), END], index in trained)
        yield _Piece([*b"\n"], False)


def _plain(conversation: message_pb2.Conversation, trained: set[int], number: int) -> Iterable[_Piece]:
    yield _Piece([BEGIN], False)
    for index, message in enumerate(conversation.messages):
        by_assistant = message.role == "assistant"
        yield _Piece([*f"{message.role[:1].upper()}{message.role[1:]}:".encode()], False)
        # What sampling would give begins with the space.
        yield _Piece([*b" "], by_assistant and index in trained)
        yield _Piece([*message_text(message).encode(), *([END] if by_assistant else [])], index in trained)
        yield _Piece([*b"\n\n"], False)


_GENERATION = {_chat: [START, *b"assistant\n"], _plain: [*b"Assistant:"]}


def _decode(ids: Iterable[int], *, skip_special_tokens: bool) -> str:
    """The text; ids that no token has are left out, as models with a larger vocabulary may sample them."""
    texts, run = [], bytearray()
    for each in ids:
        if each < 256:
            run.append(each)
        elif each in SPECIAL and not skip_special_tokens:
            texts += [run.decode("utf-8", "replace"), SPECIAL[each]]
            run = bytearray()
    return "".join((*texts, run.decode("utf-8", "replace")))
