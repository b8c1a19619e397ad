"""Defects seen in other servers of this kind, each with the test of ours that it would fail; "here" is this file.

- Sampling from an older checkpoint overwrote the live weights.
  test_service_sampling.py: test_sampling_from_a_checkpoint_leaves_the_live_weights (whole models)
  test_tenants.py: test_interleaved_tenants_end_with_the_bytes_they_have_alone (LoRA)
- A sampling client followed training instead of its checkpoint.
  test_service_sampling.py: test_sessions_are_pinned_or_follow (whole models)
  test_lora_sampling.py: test_a_pinned_session_stays_and_a_following_one_goes_along
- One tenant's weight decay moved other tenants' weights. Here.
- Optimizer memory grew with the number of slots instead of the tenant's rank.
  test_tenants.py: test_a_sessions_memory_is_that_of_its_rank
- Losses were divided by token or example count. Here.
- Ids outside the vocabulary gave NaN and spoiled the adapter; lengths that differ were padded or cut; missing loss
  inputs gave a silent zero gradient.
  test_service_refusals.py: test_bad_pass_is_refused_and_uses_no_number, test_nobody_notices_what_was_refused
- A retried request trained twice. Here, and
  test_service_training.py: test_repeat_gets_the_first_operation_and_applies_nothing
- Missing logprobs were filled with zeros. Here.
- AdamW options were dropped silently. Here.
- A killed engine took every unsaved adapter with it.
  ../system/test_ports.py: test_two_tokens_a_crash_and_a_restart
- Readiness said ok before the engine could serve.
  test_process.py: test_child_serves_and_ends_when_stdin_closes
- Polling loops cost 0.1 s a request. Here.
- A second key listed and sampled the first key's private checkpoints.
  ../relay/test_checkpoints.py: test_a_checkpoint_is_its_owner_s_alone
  ../system/test_ports.py: test_two_tokens_a_crash_and_a_restart
- Resume was inexact: a checkpoint labelled with a batch held later steps; the DPO reference became the resumed policy;
  rollout buffers and generators were not saved. Here; the engine has no buffer, and no generator but a request's seed.
- A row's tokens depended on its neighbours, because all drew from one stream. Here, and
  test_sampler.py: test_sample_does_not_depend_on_num_samples
"""

from __future__ import annotations

import asyncio
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from crucible.port.training.v1 import training_pb2 as tp
from crucible_adapters.torch_engine.batching import Datum
from crucible_adapters.torch_engine.engine import Engine
from crucible_adapters.torch_engine.loss import get_loss
from crucible_adapters.torch_engine.optimizer import AdamWOptions
from crucible_adapters.torch_engine.session import TrainingSession
from crucible_kit.tensors import from_tensor
from tests.engine.lora import adapt, frozen_base, groups, logprobs_of
from tests.engine.tenants import tensors_of
from tests.engine.test_service_checkpoints import load
from tests.engine.tiny import random_data
from tests.engine.wire import WAIT, Wire, sample_request, serve

LORA = tp.LoraConfig(rank=4, alpha=8.0, train_unembedding=True)
PROMPT = [5, 77, 12, 90]
TENSOR_FILES = ("adapter_model.safetensors", "optimizer.safetensors")


def test_the_tests_named_above_exist() -> None:
    named = re.findall(r"(\S+\.py): (.*)", __doc__ or "")
    assert len(named) > 10
    for file, tests in named:
        source = (Path(__file__).parent / file).read_text()
        for test in re.findall(r"test_\w+", tests):
            assert f"def {test}(" in source, test


def hashes(saved: tp.CheckpointResult) -> dict[str, str]:
    return {file.path: file.sha256 for file in saved.files if file.path in TENSOR_FILES}


async def test_weight_decay_moves_nobody_elses_weights(transport: Any, tiny_folder: Path, tmp_path: Path) -> None:
    """A tenant that has trained, and waits with gradients, beside one that decays by half in every step."""
    async with serve(tmp_path / "work", transport=transport) as (engine, wire):
        waiting, decaying = [await wire.open(tiny_folder, lora=LORA, seed=seed) for seed in (1, 2)]
        await wire.train(waiting, 1, random_data([9, 5]))
        await wire.result(waiting, await wire.send_pass(waiting, 3, random_data([9, 5], seed=1)))
        session = engine.training._records[waiting].session
        net = session.model.net
        before = [tensor.detach().clone() for tensor in (*tensors_of(session), *net.state_dict().values())]
        other = engine.training._records[decaying].session.parameters
        largest = float(torch.cat([p.detach().flatten() for p in other.values()]).abs().max())
        for step in range(4):
            await wire.send_pass(decaying, 2 * step + 1, random_data([9], seed=step))
            sent = await wire.send_step(decaying, 2 * step + 2, lr=1e-9, weight_decay=0.5e9)
            await wire.result(decaying, sent)
        assert float(torch.cat([p.detach().flatten() for p in other.values()]).abs().max()) < 0.1 * largest
        after = [*tensors_of(session), *net.state_dict().values()]
        assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))


@pytest.mark.parametrize("lora", [None, LORA])
async def test_losses_are_sums(wire: Wire, tiny_folder: Path, lora: tp.LoraConfig | None) -> None:
    """Of w x -logprob over all tokens: neither their number nor that of the datums or of the calls divides anything."""

    async def send(data: list[Datum], calls: int = 1) -> tuple[float, list[np.ndarray], float]:
        session_id = await wire.open(tiny_folder, lora=lora, dtype="float64")
        parts = np.array_split(np.arange(len(data)), calls)
        sent = [await wire.send_pass(session_id, n + 1, [data[i] for i in part]) for n, part in enumerate(parts)]
        answers = [(await wire.result(session_id, operation)).forward for operation in sent]
        step = (await wire.result(session_id, await wire.send_step(session_id, calls + 1))).optim_step
        logprobs = [from_tensor(output.logprobs) for answer in answers for output in answer.outputs]
        return sum(answer.loss for answer in answers), logprobs, step.grad_norm

    short, long = random_data([3], seed=1), random_data([29], seed=2)
    loss, logprobs, norm = await send(short + long)
    expected = -sum(float(datum.inputs["weights"] @ row) for datum, row in zip(short + long, logprobs, strict=True))
    assert loss == pytest.approx(expected, rel=1e-5)
    assert loss == pytest.approx((await send(short))[0] + (await send(long))[0], rel=1e-12)
    # twice the data is twice the loss and the gradient, sent together or apart
    for calls in (1, 2, 4):
        twice = await send(2 * (short + long), calls)
        assert (twice[0], twice[2]) == pytest.approx((2 * loss, 2 * norm), rel=1e-12)
    # tokens of weight zero count for nothing
    padded = [
        Datum(
            tokens=np.concatenate([datum.tokens, [7] * 20]),
            targets=np.concatenate([datum.targets, [8] * 20]),
            inputs={"weights": np.concatenate([datum.inputs["weights"], np.zeros(20, np.float32)])},
        )
        for datum in short + long
    ]
    ignored = await send(padded)
    assert (ignored[0], ignored[2]) == pytest.approx((loss, norm), rel=1e-12)


async def test_every_call_of_a_step_may_be_repeated(wire: Wire, tiny_folder: Path) -> None:
    """As a client does that lost its answers: at once, after the results, and with later calls in between."""
    ends = []
    for times in (1, 3):
        session_id = await wire.open(tiny_folder, lora=LORA)
        for step in range(2):
            for _ in range(times):
                for number in (1, 2):
                    await wire.send_pass(session_id, 3 * step + number, random_data([9], seed=10 * step + number))
                operation = await wire.send_step(session_id, 3 * step + 3)
                result = (await wire.result(session_id, operation)).optim_step
            assert result.optim_steps == step + 1
        saved = [await wire.save(session_id, 7, f"repeated-{times}") for _ in range(times)]
        for _ in range(times):
            await load(wire, session_id, 8, saved[0].uri)
        assert (await wire.info(session_id)).weights_version == 3
        ends.append(hashes(saved[-1]))
    assert ends[0] == ends[1]


async def test_no_logprob_is_filled_in(wire: Wire, tiny_folder: Path) -> None:
    """Tokens without weight have their true logprobs, and what was not asked for is absent. Oracle: transformers."""
    net = frozen_base(tiny_folder).net
    training = await wire.open(tiny_folder, lora=LORA)
    (datum,) = random_data([12], prompt=12)
    assert not datum.inputs["weights"].any()
    whole = [*datum.tokens.tolist(), int(datum.targets[-1])]
    answer = (await wire.result(training, await wire.send_pass(training, 1, [datum]))).forward
    row = from_tensor(answer.outputs[0].logprobs)
    np.testing.assert_allclose(row, logprobs_of(net, whole), rtol=0, atol=1e-5)
    assert (row < -0.1).all()
    assert answer.loss == 0

    sampling = await wire.open_sampling(base_model=str(tiny_folder))
    without = await wire.sample(sampling, 1, PROMPT)
    given = await wire.sample(sampling, 2, PROMPT, prompt_logprobs=True)
    assert not without.HasField("prompt_logprobs_float32")
    # the first token has none: one fewer, not a zero
    scores = np.frombuffer(given.prompt_logprobs_float32, "<f4")
    np.testing.assert_allclose(scores, logprobs_of(net, PROMPT), rtol=0, atol=1e-5)
    assert len(scores) == len(PROMPT) - 1


ADAM = {"learning_rate": 2e-2, "beta1": 0.7, "beta2": 0.8, "eps": 1e-2, "weight_decay": 0.3, "grad_clip_norm": 0.25}


async def test_no_option_of_adamw_is_dropped(wire: Wire, tiny_folder: Path) -> None:
    """Each alone and all together change two steps, to what the core does with that option; test_optimizer holds the
    core to a float64 AdamW written by hand.
    """
    base = frozen_base(tiny_folder)
    norms = set()
    for given in ({}, *({name: value} for name, value in ADAM.items()), ADAM):
        options = {"learning_rate": 1e-2, **given}
        core = TrainingSession(adapt(base, groups(4, "attention", "mlp", "unembedding", alpha=8.0)))
        session_id = await wire.open(tiny_folder, lora=LORA)
        for step in range(2):
            data = random_data([9, 5], seed=step)
            core.forward_backward(data, get_loss("cross_entropy"), {})
            expected = core.optim_step(AdamWOptions(**options))
            await wire.send_pass(session_id, 2 * step + 1, data)
            request = tp.OptimStepRequest(session_id=session_id, sequence=2 * step + 2, adam=tp.AdamParams(**options))
            operation = (await wire.training.OptimStep(request)).operation
            result = (await wire.result(session_id, operation)).optim_step
            assert (result.grad_norm, result.update_norm) == (expected.grad_norm, expected.update_norm), given
            assert result.learning_rate == options["learning_rate"]
        norms.add(result.update_norm)
    assert len(norms) == 2 + len(ADAM)


async def test_a_result_is_answered_when_it_is_there(
    wire: Wire, engine: Engine, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call waits for one operation, and nothing sleeps between looks."""
    slept = []
    sleep = asyncio.sleep

    async def counted(seconds: float, *arguments: Any) -> Any:
        slept.append(seconds)
        return await sleep(seconds, *arguments)

    session_id = await wire.open(tiny_folder, lora=LORA)
    sampling = await wire.open_sampling(training_session_id=session_id)
    go_on = threading.Event()
    engine.compute.submit(go_on.wait)
    monkeypatch.setattr(asyncio, "sleep", counted)
    operation = await wire.send_pass(session_id, 1, random_data([4]))
    sampled = (await wire.sampling.Sample(sample_request(sampling, 1, PROMPT))).operation
    waits = [
        asyncio.ensure_future(wire.result(session_id, operation)),
        asyncio.ensure_future(wire.sampled(sampling, sampled)),
    ]
    await wire.info(session_id)
    assert not any(each.done() for each in waits)
    go_on.set()
    # each is one AwaitOperation, which would else answer the unfinished operation only after WAIT
    await asyncio.wait_for(asyncio.gather(*waits), WAIT.seconds / 2)
    assert slept == []


async def test_a_checkpoint_holds_the_steps_before_it_and_no_later_ones(
    transport: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    """Asked for in the middle of a pipeline, whose later steps already wait in the engine."""
    async with serve(tmp_path / "work", transport=transport) as (_, wire):

        async def steps(session_id: str, first: int, sequence: int) -> None:
            for step in range(first, first + 2):
                await wire.send_pass(session_id, sequence, random_data([9, 5], seed=step))
                await wire.send_step(session_id, sequence + 1, weight_decay=0.1)
                sequence += 2

        stopped = await wire.open(tiny_folder, lora=LORA)
        await steps(stopped, 0, 1)
        expected = await wire.save(stopped, 5, "stopped")

        running = await wire.open(tiny_folder, lora=LORA)
        await steps(running, 0, 1)
        request = tp.SaveCheckpointRequest(session_id=running, sequence=5, name="running")
        saving = (await wire.training.SaveCheckpoint(request)).operation
        await steps(running, 2, 6)
        # loads what is saved only now, behind the later steps
        request = tp.LoadCheckpointRequest(session_id=running, sequence=10, uri="torch-engine:running")
        loading = (await wire.training.LoadCheckpoint(request)).operation
        again = await wire.save(running, 11, "again")

        saved = (await wire.result(running, saving)).checkpoint
        assert (saved.optim_steps, saved.weights_version) == (2, 2)
        assert hashes(saved) == hashes(expected)
        assert (await wire.result(running, loading)).checkpoint.uri == saved.uri
        assert (again.optim_steps, again.weights_version) == (2, 5)
        assert hashes(again) == hashes(expected)


async def test_a_reference_stays_what_it_was_when_a_policy_resumes(tiny_folder: Path, tmp_path: Path) -> None:
    """The base model, and a checkpoint, as references of a preference loss; across a resume in a new engine too."""
    scores = []
    for name in ("first", "resumed"):
        async with serve(tmp_path / "work", transport="object") as (_, wire):
            policy = await wire.open(tiny_folder, lora=LORA)
            if name == "first":
                start = await wire.save(policy, 1, "start")
                trained = await wire.train(policy, 2, random_data([9], seed=1))
                assert trained.optim_steps == 1
                saved = await wire.save(policy, 4, "later")
            references = [
                await wire.open_sampling(base_model=str(tiny_folder)),
                await wire.open_sampling(checkpoint_uri=start.uri),
            ]
            if name == "resumed":
                await load(wire, policy, 1, saved.uri)
            live = await wire.open_sampling(training_session_id=policy)
            scores.append([(await wire.score(each, 1, PROMPT)).tobytes() for each in (*references, live)])
    assert scores[0] == scores[1]
    base, start_scores, policy_scores = scores[0]
    assert base == start_scores != policy_scores


async def test_samples_are_those_of_their_seed_whatever_was_drawn_before(tiny_folder: Path, tmp_path: Path) -> None:
    """In another engine, after other draws and beside other requests: there is no generator that could be lost."""
    drawn = []
    for crowd in (0, 3):
        async with serve(tmp_path / str(crowd), transport="object") as (_, wire):
            sampling = await wire.open_sampling(base_model=str(tiny_folder))
            neighbours = [
                await wire.sampling.Sample(sample_request(sampling, 10 + n, [n + 2] * 9, num_samples=5, seed=n))
                for n in range(crowd)
            ]
            torch.manual_seed(crowd)
            np.random.seed(crowd)  # the global one is meant
            result = await wire.sample(sampling, 1, PROMPT, num_samples=6, seed=42, max_tokens=12)
            drawn.append([(each.tokens_int32, each.logprobs_float32) for each in result.sequences])
            assert len(neighbours) == crowd
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) > 1
