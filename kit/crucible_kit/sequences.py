"""Tokenised sequences: what batches are made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crucible.port.tokenizer.v1 import tokenizer_pb2
from crucible.type.v1 import datum_pb2
from crucible_kit.tensors import pack_tokens, to_tensor, unpack_tokens


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """One row as tokens, truncated to max_length.

    Attributes:
        tokens: ids of shape [n + 1], int32.
        mask: shape [n + 1], uint8; 1 where the token is trained on.
    """

    tokens: np.ndarray
    mask: np.ndarray

    @classmethod
    def from_rendered(cls, rendered: tokenizer_pb2.RenderedConversation, max_tokens: int) -> Sequence:
        """A rendered conversation, cut to its first `max_tokens` tokens."""
        return cls(
            tokens=unpack_tokens(rendered.tokens_int32)[:max_tokens],
            mask=np.frombuffer(rendered.train_mask_uint8, dtype=np.uint8)[:max_tokens],
        )

    @property
    def targets(self) -> np.ndarray:
        """Ids trained on, shape [trained_tokens]."""
        return self.tokens[1:][self.mask[1:] == 1]

    @property
    def trained_tokens(self) -> int:
        """Number of tokens trained on; the first token of a row has nothing before it and can't be."""
        return int(self.mask[1:].sum())

    @property
    def input_tokens(self) -> int:
        """Number of tokens the model reads."""
        return len(self.tokens) - 1

    def datum(self, weight: float) -> datum_pb2.Datum:
        """The datum: input tokens[:-1], targets tokens[1:], `weight` on each trained token and 0 on the others."""
        return datum_pb2.Datum(
            model_input=datum_pb2.ModelInput(
                chunks=[datum_pb2.ModelInputChunk(tokens_int32=pack_tokens(self.tokens[:-1]))]
            ),
            loss_fn_inputs={
                "target_tokens": to_tensor(self.tokens[1:]),
                "weights": to_tensor(self.mask[1:].astype(np.float32) * np.float32(weight)),
            },
        )


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The sequences of one optimizer step."""

    sequences: tuple[Sequence, ...]

    @property
    def trained_tokens(self) -> int:
        """Tokens trained on, over all sequences."""
        return sum(each.trained_tokens for each in self.sequences)

    @property
    def input_tokens(self) -> int:
        """Tokens the model reads, over all sequences."""
        return sum(each.input_tokens for each in self.sequences)

    def datums(self) -> list[datum_pb2.Datum]:
        """The datums, weighted by 1 / trained_tokens so that the summed loss is the batch's mean."""
        weight = 1.0 / self.trained_tokens
        return [each.datum(weight) for each in self.sequences]
