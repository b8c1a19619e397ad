"""TokenizerClient over model folders, with the `tokenizers` library."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from crucible.port.tokenizer.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from crucible.type.v1 import message_pb2
from crucible_adapters.threads import Threads
from crucible_adapters.tokenizer.folder import FILES, TOKENIZER, FolderTokenizer
from crucible_adapters.tokenizer.spans import RenderedChat, train_mask, trained_messages
from crucible_adapters.tokenizer.template import ChatTemplate, TemplateRefusal
from crucible_kit.adapter import AdapterContext, AdapterDescription, AdapterOptions
from crucible_kit.errors import (
    FailedPreconditionError,
    FieldViolation,
    InvalidArgumentError,
    NotFoundError,
    field_error,
)
from crucible_kit.messages import message_text, refuse_unusable
from crucible_kit.tensors import pack_tokens, unpack_tokens

_THREADS = 2
_KEPT = 8


class TokenizersFolder(tokenizer_pb2_grpc.TokenizerServiceServicer):
    """Tokenizers of folders with a tokenizer.json."""

    description = AdapterDescription(name="tokenizers-folder", port="tokenizer")

    def __init__(self, options: AdapterOptions, context: AdapterContext) -> None:
        self._context = context
        self._kept: OrderedDict[tuple, FolderTokenizer] = OrderedDict()
        self._lock = threading.Lock()
        self._threads = Threads("tokenizer", _THREADS)

    async def close(self) -> None:
        """Forgets the tokenizers and ends the threads."""
        await self._threads.close()
        self._kept.clear()

    async def GetTokenizerInfo(
        self, request: tokenizer_pb2.GetTokenizerInfoRequest, context: Any
    ) -> tokenizer_pb2.GetTokenizerInfoResponse:
        return await self._threads.run(self._info, request)

    def _info(self, request: tokenizer_pb2.GetTokenizerInfoRequest) -> tokenizer_pb2.GetTokenizerInfoResponse:
        tokenizer = self._tokenizer(request.tokenizer)
        return tokenizer_pb2.GetTokenizerInfoResponse(
            vocab_size=tokenizer.vocab_size,
            bos_token_id=tokenizer.token_id("bos_token"),
            eos_token_id=tokenizer.token_id("eos_token"),
            pad_token_id=tokenizer.token_id("pad_token"),
            has_chat_template=tokenizer.template_source is not None,
            fingerprint=tokenizer.fingerprint,
            end_of_turn_token_ids=tokenizer.end_of_turn.tolist(),
        )

    async def EncodeBatch(
        self, request: tokenizer_pb2.EncodeBatchRequest, context: Any
    ) -> tokenizer_pb2.EncodeBatchResponse:
        return await self._threads.run(self._encode, request)

    def _encode(self, request: tokenizer_pb2.EncodeBatchRequest) -> tokenizer_pb2.EncodeBatchResponse:
        tokenizer = self._tokenizer(request.tokenizer)
        encoded = tokenizer.encode(request.texts, add_special_tokens=request.add_special_tokens)
        return tokenizer_pb2.EncodeBatchResponse(
            sequences=[tokenizer_pb2.TokenSequence(tokens_int32=pack_tokens(ids)) for ids in encoded]
        )

    async def DecodeBatch(
        self, request: tokenizer_pb2.DecodeBatchRequest, context: Any
    ) -> tokenizer_pb2.DecodeBatchResponse:
        return await self._threads.run(self._decode, request)

    def _decode(self, request: tokenizer_pb2.DecodeBatchRequest) -> tokenizer_pb2.DecodeBatchResponse:
        tokenizer = self._tokenizer(request.tokenizer)
        sequences = []
        for number, sequence in enumerate(request.sequences):
            field = f"sequences[{number}].tokens_int32"
            ids = unpack_tokens(sequence.tokens_int32, field=field)
            if len(ids) and ids.min() < 0:
                raise field_error(field, f"holds the id {ids.min()}: ids are 0 or more")
            sequences.append(ids.tolist())
        return tokenizer_pb2.DecodeBatchResponse(
            texts=tokenizer.decode(sequences, skip_special_tokens=request.skip_special_tokens)
        )

    async def ApplyChatTemplate(
        self, request: tokenizer_pb2.ApplyChatTemplateRequest, context: Any
    ) -> tokenizer_pb2.ApplyChatTemplateResponse:
        return await self._threads.run(self._apply_chat_template, request)

    def _apply_chat_template(
        self, request: tokenizer_pb2.ApplyChatTemplateRequest
    ) -> tokenizer_pb2.ApplyChatTemplateResponse:
        tokenizer = self._tokenizer(request.tokenizer)
        try:
            template = tokenizer.template
        except TemplateRefusal as error:
            raise _refused("tokenizer", str(error)) from error
        if template is None and request.plain_without_template:
            template = tokenizer.plain_template
        if template is None:
            raise FailedPreconditionError(
                f"the tokenizer in {request.tokenizer!r} has no chat template: add a chat_template.jinja to that "
                "folder, name another tokenizer, or set plain_without_template",
                reason="CHAT_TEMPLATE_MISSING",
                metadata={"tokenizer": request.tokenizer},
            )
        chats = [_render(template, each, number, request) for number, each in enumerate(request.conversations)]
        response = tokenizer_pb2.ApplyChatTemplateResponse()
        for number, encoded in enumerate(tokenizer.encode_with_offsets([chat.text for chat in chats])):
            if request.train_on == message_pb2.TRAIN_ON_ALL_TOKENS:
                mask = np.ones(len(encoded.ids), dtype=np.uint8)
            else:
                trained = _trained(request, number)
                try:
                    mask = train_mask(chats[number], trained, encoded.ids, encoded.offsets, tokenizer.end_of_turn)
                except TemplateRefusal as error:
                    raise _refused(f"conversations[{number}]", str(error), index=number) from error
            response.rendered.add(tokens_int32=pack_tokens(encoded.ids), train_mask_uint8=mask.tobytes())
        return response

    def _tokenizer(self, name: str) -> FolderTokenizer:
        folder = self._readable(name)
        if not (folder / TOKENIZER).is_file():
            raise NotFoundError(
                f"{name!r} holds no {TOKENIZER}: give a folder in transformers' format with a fast tokenizer",
                reason="TOKENIZER_NOT_FOUND",
                metadata={"tokenizer": name},
            )
        key = (folder, *(_stamp(folder / file) for file in FILES))
        with self._lock:  # two calls would load one tokenizer twice
            tokenizer = self._kept.get(key)
            if tokenizer is None:
                tokenizer = self._kept[key] = FolderTokenizer(folder)
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
        return tokenizer

    def _readable(self, name: str) -> Path:
        resolved = replace(self._context, read_roots=None).readable(name, field="tokenizer")
        # What the hub has put into the data folder may be read whatever the allowed folders are.
        if resolved.is_relative_to(self._context.data_dir.resolve()):
            return resolved
        return self._context.readable(name, field="tokenizer")


def _render(
    template: ChatTemplate,
    conversation: message_pb2.Conversation,
    number: int,
    request: tokenizer_pb2.ApplyChatTemplateRequest,
) -> RenderedChat:
    refuse_unusable(conversation.messages, port="tokenizer", field=f"conversations[{number}].messages")
    messages = [
        {"role": message.role, "content": message_text(message)} | ({"name": message.name} if message.name else {})
        for message in conversation.messages
    ]
    try:
        return RenderedChat(template, messages, add_generation_prompt=request.add_generation_prompt)
    except TemplateRefusal as error:
        description = f"the chat template refuses the conversation: {error}"
        raise _refused(f"conversations[{number}]", description, index=number) from error


def _trained(request: tokenizer_pb2.ApplyChatTemplateRequest, number: int) -> list[int]:
    try:
        return trained_messages(request.conversations[number], request.train_on)
    except ValueError as error:
        raise field_error(f"conversations[{number}].messages", str(error)) from error


def _refused(field: str, description: str, **metadata: object) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{field}: {description}",
        reason="CHAT_TEMPLATE_REFUSED",
        metadata={"field": field, **metadata},
        fields=[FieldViolation(field, description)],
    )


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_size, status.st_mtime_ns
