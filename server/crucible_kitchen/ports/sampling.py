"""A sampling session as the runtime drives it."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
from google.protobuf import duration_pb2

from crucible.port.sampling.v1 import sampling_pb2
from crucible.type.v1 import operation_pb2
from crucible_kit.tensors import pack_tokens, unpack_tokens
from crucible_kit.training import check_finished

_POLL_SECONDS = 20
# An adapter that is so late with its answer to a poll hangs.
_SILENCE_SECONDS = 10


class SamplingSession:
    """One open session of the sampling port."""

    def __init__(self, stub: Any, session_id: str) -> None:
        self._stub = stub
        self.session_id = session_id
        self._next = 1

    @classmethod
    async def follow(cls, stub: Any, training_session_id: str) -> SamplingSession:
        """A session on a training session's live weights."""
        request = sampling_pb2.CreateSamplingSessionRequest(
            request_id=str(uuid.uuid4()), training_session_id=training_session_id
        )
        return cls(stub, (await stub.CreateSamplingSession(request)).session_id)

    async def sample(self, prompt: np.ndarray, params: sampling_pb2.SamplingParams) -> np.ndarray:
        """One completion of a prompt: token ids of shape [n]."""
        request = sampling_pb2.SampleRequest(
            session_id=self.session_id,
            sequence=self._next,
            prompt_tokens_int32=pack_tokens(prompt),
            params=params,
            num_samples=1,
        )
        self._next += 1
        operation_id = (await self._stub.Sample(request)).operation.id
        poll = sampling_pb2.AwaitOperationRequest(
            session_id=self.session_id, operation_id=operation_id, wait=duration_pb2.Duration(seconds=_POLL_SECONDS)
        )
        while True:
            response = await self._stub.AwaitOperation(poll, timeout=_POLL_SECONDS + _SILENCE_SECONDS)
            check_finished(response.operation, port="sampling")
            if response.operation.state == operation_pb2.OPERATION_STATE_SUCCEEDED:
                return unpack_tokens(response.sample.sequences[0].tokens_int32)

    async def close(self) -> None:
        """Frees the session."""
        await self._stub.CloseSamplingSession(
            sampling_pb2.CloseSamplingSessionRequest(session_id=self.session_id), timeout=10.0
        )
