from crucible.type.v1 import constraints_pb2 as _constraints_pb2
from crucible.type.v1 import message_pb2 as _message_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetTokenizerInfoRequest(_message.Message):
    __slots__ = ("tokenizer",)
    TOKENIZER_FIELD_NUMBER: _ClassVar[int]
    tokenizer: str
    def __init__(self, tokenizer: _Optional[str] = ...) -> None: ...

class GetTokenizerInfoResponse(_message.Message):
    __slots__ = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "has_chat_template", "fingerprint", "end_of_turn_token_ids")
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    BOS_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    EOS_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    PAD_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    HAS_CHAT_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    END_OF_TURN_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    vocab_size: int
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int
    has_chat_template: bool
    fingerprint: str
    end_of_turn_token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, vocab_size: _Optional[int] = ..., bos_token_id: _Optional[int] = ..., eos_token_id: _Optional[int] = ..., pad_token_id: _Optional[int] = ..., has_chat_template: bool = ..., fingerprint: _Optional[str] = ..., end_of_turn_token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class EncodeBatchRequest(_message.Message):
    __slots__ = ("tokenizer", "texts", "add_special_tokens")
    TOKENIZER_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    ADD_SPECIAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    tokenizer: str
    texts: _containers.RepeatedScalarFieldContainer[str]
    add_special_tokens: bool
    def __init__(self, tokenizer: _Optional[str] = ..., texts: _Optional[_Iterable[str]] = ..., add_special_tokens: bool = ...) -> None: ...

class EncodeBatchResponse(_message.Message):
    __slots__ = ("sequences",)
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    sequences: _containers.RepeatedCompositeFieldContainer[TokenSequence]
    def __init__(self, sequences: _Optional[_Iterable[_Union[TokenSequence, _Mapping]]] = ...) -> None: ...

class TokenSequence(_message.Message):
    __slots__ = ("tokens_int32",)
    TOKENS_INT32_FIELD_NUMBER: _ClassVar[int]
    tokens_int32: bytes
    def __init__(self, tokens_int32: _Optional[bytes] = ...) -> None: ...

class DecodeBatchRequest(_message.Message):
    __slots__ = ("tokenizer", "sequences", "skip_special_tokens")
    TOKENIZER_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    SKIP_SPECIAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    tokenizer: str
    sequences: _containers.RepeatedCompositeFieldContainer[TokenSequence]
    skip_special_tokens: bool
    def __init__(self, tokenizer: _Optional[str] = ..., sequences: _Optional[_Iterable[_Union[TokenSequence, _Mapping]]] = ..., skip_special_tokens: bool = ...) -> None: ...

class DecodeBatchResponse(_message.Message):
    __slots__ = ("texts",)
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    texts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, texts: _Optional[_Iterable[str]] = ...) -> None: ...

class ApplyChatTemplateRequest(_message.Message):
    __slots__ = ("tokenizer", "conversations", "add_generation_prompt", "train_on", "plain_without_template")
    TOKENIZER_FIELD_NUMBER: _ClassVar[int]
    CONVERSATIONS_FIELD_NUMBER: _ClassVar[int]
    ADD_GENERATION_PROMPT_FIELD_NUMBER: _ClassVar[int]
    TRAIN_ON_FIELD_NUMBER: _ClassVar[int]
    PLAIN_WITHOUT_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    tokenizer: str
    conversations: _containers.RepeatedCompositeFieldContainer[_message_pb2.Conversation]
    add_generation_prompt: bool
    train_on: _message_pb2.TrainOn
    plain_without_template: bool
    def __init__(self, tokenizer: _Optional[str] = ..., conversations: _Optional[_Iterable[_Union[_message_pb2.Conversation, _Mapping]]] = ..., add_generation_prompt: bool = ..., train_on: _Optional[_Union[_message_pb2.TrainOn, str]] = ..., plain_without_template: bool = ...) -> None: ...

class ApplyChatTemplateResponse(_message.Message):
    __slots__ = ("rendered",)
    RENDERED_FIELD_NUMBER: _ClassVar[int]
    rendered: _containers.RepeatedCompositeFieldContainer[RenderedConversation]
    def __init__(self, rendered: _Optional[_Iterable[_Union[RenderedConversation, _Mapping]]] = ...) -> None: ...

class RenderedConversation(_message.Message):
    __slots__ = ("tokens_int32", "train_mask_uint8")
    TOKENS_INT32_FIELD_NUMBER: _ClassVar[int]
    TRAIN_MASK_UINT8_FIELD_NUMBER: _ClassVar[int]
    tokens_int32: bytes
    train_mask_uint8: bytes
    def __init__(self, tokens_int32: _Optional[bytes] = ..., train_mask_uint8: _Optional[bytes] = ...) -> None: ...
