"""The same, at Tinker itself: `make test-live`, with a key in the environment."""

from __future__ import annotations

import math
import os
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from crucible.port.sampling.v1 import sampling_pb2 as sp
from crucible.port.training.v1 import training_pb2 as pb
from crucible_adapters.tinker.options import TinkerOptions
from crucible_adapters.tinker.sampling import TinkerSampling
from crucible_adapters.tinker.training import TinkerTraining
from crucible_kit.adapter import AdapterContext
from crucible_kit.channel import ObjectChannel
from crucible_kit.conformance.training_session import LOSS, datum
from crucible_kit.errors import NotFoundError, UnauthenticatedError
from crucible_kit.ports import PORTS
from crucible_kitchen.ports.sampling import SamplingSession
from tests.contract.refusals import refused
from tests.tinker.conftest import LORA, AtTinker

pytestmark = [pytest.mark.live, pytest.mark.timeout(900)]
MODEL = os.environ.get("LIVE_MODEL_TINKER", "Qwen/Qwen3-8B")
ADAM = pb.AdamParams(learning_rate=1e-4, grad_clip_norm=1.0)


def open_adapters(folder: Path, key: str) -> AtTinker:
    context = AdapterContext(data_dir=folder, secrets={"api_key": key})
    both = tuple(kind(TinkerOptions(), context) for kind in (TinkerTraining, TinkerSampling))
    channel = ObjectChannel({PORTS[each.description.port].service.full_name: each for each in both}, serialise=True)
    return AtTinker(*(PORTS[port].stub(channel) for port in ("training", "sampling")), adapters=both)


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[AtTinker]:
    key = os.environ.get("TINKER_API_KEY", "")
    if not key:
        pytest.skip("TINKER_API_KEY is not set")
    at = open_adapters(tmp_path, key)
    yield at
    for adapter in at.adapters:
        await adapter.close()


async def test_it_learns_samples_and_goes_on_from_a_checkpoint(live: AtTinker) -> None:
    session = await live.session(base_model=MODEL, lora=LORA)
    tokens = np.arange(1000, 1033)
    data = [datum(tokens[:-1], tokens[1:], np.full(32, 1 / 32))]
    losses = []
    for _ in range(3):
        [sent] = await session.enqueue_forward_backward(data, LOSS)
        taken = await session.enqueue_optim_step(ADAM)
        losses.append((await session.result(sent)).forward.loss)
        step = (await session.result(taken)).optim_step
        # Told by a step that clips.
        assert step.grad_norm > 0 and not math.isnan(step.grad_norm)
    assert losses[2] < losses[0]
    sampler = await SamplingSession.follow(live.sampling, session.session_id)
    params = sp.SamplingParams(max_tokens=4, temperature=0.0)
    assert 0 < len(await sampler.sample(tokens[:8], params)) <= 4
    saved = await session.save_checkpoint("live", weights_only=False, ttl_seconds=3600)
    expected = (await session.forward(data, LOSS)).loss
    other = await live.session(base_model=MODEL, lora=LORA)
    await other.load_checkpoint(saved.uri, weights_only=False)
    assert (await other.forward(data, LOSS)).loss == pytest.approx(expected, rel=1e-2)
    await session.delete_checkpoint(saved.uri)


async def test_an_unknown_model_and_a_wrong_key_are_told(live: AtTinker, tmp_path: Path) -> None:
    with refused(NotFoundError, "MODEL_NOT_FOUND"):
        await live.session(base_model="no-such-owner/no-such-model")
    other = open_adapters(tmp_path, "tml-wrong-0123456789abcdefghij")
    with refused(UnauthenticatedError, "PROVIDER_CREDENTIALS"):
        await other.session(base_model=MODEL)
    for adapter in other.adapters:
        await adapter.close()
