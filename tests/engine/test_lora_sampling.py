"""Sampling with LoRA: what a session is pinned to, what it follows, and where a checkpoint's base model comes from.

Oracles: transformers' generate on peft's model for greedy tokens, peft's logprobs to 1e-5 in float32.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PhiConfig, PhiForCausalLM

from crucible.port.sampling.v1 import sampling_pb2 as sp
from crucible.port.training.v1 import training_pb2 as tp
from crucible_adapters.torch_engine.engine import Engine
from crucible_adapters.torch_engine.models import load_model
from crucible_adapters.torch_engine.sampler import SamplingOptions, compute_logprobs, sample
from crucible_kit.errors import FailedPreconditionError, InvalidArgumentError, KitchenError, NotFoundError
from crucible_kit.tensors import unpack_tokens
from tests.engine.lora import adapt, frozen_base, groups, in_peft, logprobs_of, randomise
from tests.engine.test_service_checkpoints import read_all, upload_messages
from tests.engine.tiny import random_data, save_tiny_model
from tests.engine.wire import Wire, serve

pytestmark = pytest.mark.filterwarnings(
    "ignore:Model has `tie_word_embeddings=True`", "ignore:`is_gradient_checkpointing` is deprecated"
)
PROMPT = [5, 77, 12, 90, 3, 41]
EVERYTHING = tp.LoraConfig(rank=4, alpha=8.0, train_unembedding=True)


async def step(wire: Wire, session_id: str, sequence: int) -> tp.OptimStepResult:
    """One step on data of its own, large enough to change tokens."""
    await wire.send_pass(session_id, sequence, random_data([20, 9], seed=sequence))
    return (await wire.result(session_id, await wire.send_step(session_id, sequence + 1, lr=5e-2))).optim_step


async def everything(wire: Wire, session_id: str, sequence: int) -> tuple[bytes, ...]:
    """Tokens and logprobs of samples and of a greedy completion, and scores: what a client can see of a model."""
    drawn = await wire.sample(session_id, sequence, PROMPT, num_samples=3, seed=7, max_tokens=10, prompt_logprobs=True)
    greedy = await wire.sample(session_id, sequence + 1, PROMPT, temperature=0.0, max_tokens=10)
    sequences = [*drawn.sequences, *greedy.sequences]
    scores = await wire.score(session_id, sequence + 2, PROMPT)
    parts = [each.tokens_int32 + each.logprobs_float32 for each in sequences]
    return (*parts, drawn.prompt_logprobs_float32, scores.tobytes())


@pytest.mark.parametrize("spec", [groups(1, "attention", alpha=3.0), groups(8, "attention", "mlp", "unembedding")])
@pytest.mark.parametrize("tied", [True, False])
def test_greedy_tokens_equal_generate_on_the_peft_model(
    tiny_folder: Path, untied_folder: Path, tied: bool, spec: Any
) -> None:
    model = randomise(adapt(frozen_base(tiny_folder if tied else untied_folder), spec))
    oracle = in_peft(model)
    for prompt in (PROMPT, [9], list(range(2, 40))):
        ids = torch.tensor([prompt])
        expected = oracle.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        result = sample(model, prompt, 2, SamplingOptions(max_tokens=24, temperature=0), prompt_logprobs=True)
        scores = logprobs_of(oracle, prompt + expected)
        for completion in result.completions:
            assert completion.tokens.tolist() == expected
            np.testing.assert_allclose(completion.logprobs, scores[len(prompt) - 1 :], rtol=0, atol=1e-5)
        assert result.prompt_logprobs is not None
        np.testing.assert_allclose(result.prompt_logprobs, scores[: len(prompt) - 1], rtol=0, atol=1e-5)


async def test_a_pinned_session_stays_and_a_following_one_goes_along(
    transport: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    async with serve(tmp_path / "work", transport=transport) as (_, wire):
        training = await wire.open(tiny_folder, lora=EVERYTHING)
        live = await wire.open_sampling(training_session_id=training)
        base = await wire.open_sampling(base_model=str(tiny_folder))
        untrained = await everything(wire, base, 1)
        # a fresh adapter changes nothing
        assert await everything(wire, live, 1) == untrained
        await step(wire, training, 1)
        saved = await wire.save(training, 3, "a")
        early = await wire.open_sampling(checkpoint_uri=saved.uri)
        expected = await everything(wire, early, 1)
        assert await everything(wire, live, 4) == expected != untrained

        for number in range(5):
            await step(wire, training, 4 + 2 * number)
            drawn = await wire.sample(live, 100 + number, PROMPT)
            assert drawn.weights_version == 2 + number
            assert (await wire.sample(early, 100 + number, PROMPT)).weights_version == 0

        late = await wire.open_sampling(checkpoint_uri=saved.uri)
        assert await everything(wire, early, 4) == expected
        assert await everything(wire, late, 1) == expected
        assert await everything(wire, base, 4) == untrained
        assert await everything(wire, live, 7) not in (expected, untrained)


async def test_logprobs_carry_the_version_of_the_weights_they_are_of(
    transport: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    async with serve(tmp_path / "work", transport=transport) as (_, wire):
        training = await wire.open(tiny_folder, lora=EVERYTHING)
        live = await wire.open_sampling(training_session_id=training)
        seen = []
        for version in range(3):
            if version:
                await step(wire, training, 2 * version - 1)
            request = sp.ComputeLogprobsRequest(
                session_id=live, sequence=version + 1, tokens_int32=np.array(PROMPT, "<i4").tobytes()
            )
            result = (await wire.sampled(live, (await wire.sampling.ComputeLogprobs(request)).operation)).logprobs
            assert result.weights_version == version
            seen.append(result.logprobs_float32)
        assert len(set(seen)) == 3


async def test_two_adapters_and_their_base_are_sampled_in_turns(
    transport: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    """Each as it is alone, although one module computes all three."""
    async with serve(tmp_path / "work", transport=transport) as (engine, wire):
        sessions = {"base": await wire.open_sampling(base_model=str(tiny_folder))}
        for name, lora in (("wide", EVERYTHING), ("narrow", tp.LoraConfig(rank=1, target_modules=["q_proj"]))):
            training = await wire.open(tiny_folder, lora=lora, seed=len(name))
            await step(wire, training, 1)
            saved = await wire.save(training, 3, name)
            await wire.training.CloseTrainingSession(tp.CloseTrainingSessionRequest(session_id=training))
            sessions[name] = await wire.open_sampling(checkpoint_uri=saved.uri)
        assert len(engine._shared) == 1
        alone = {name: await everything(wire, session_id, 1) for name, session_id in sessions.items()}
        assert len(set(alone.values())) == 3
        for sequence in (10, 20, 30):
            # many in the queues at a time
            sent = [
                (name, await wire.sampling.Sample(sample_of(session_id, sequence)))
                for name, session_id in sessions.items()
            ]
            for name, response in sent:
                drawn = (await wire.sampled(sessions[name], response.operation)).sample
                parts = tuple(each.tokens_int32 + each.logprobs_float32 for each in drawn.sequences)
                assert parts == alone[name][:3], name


def sample_of(session_id: str, sequence: int) -> sp.SampleRequest:
    """The first request of `everything`, without the prompt's logprobs."""
    return sp.SampleRequest(
        session_id=session_id,
        sequence=sequence,
        prompt_tokens_int32=np.array(PROMPT, "<i4").tobytes(),
        params=sp.SamplingParams(max_tokens=10, seed=7),
        num_samples=3,
    )


async def lora_checkpoint(wire: Wire, base_folder: Path, name: str = "a", **fields: Any) -> tp.CheckpointResult:
    training = await wire.open(base_folder, lora=EVERYTHING, **fields)
    await step(wire, training, 1)
    saved = await wire.save(training, 3, name)
    await wire.training.CloseTrainingSession(tp.CloseTrainingSessionRequest(session_id=training))
    return saved


def peft_scores(base_folder: Path, adapter_folder: Path) -> np.ndarray:
    base = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    return logprobs_of(PeftModel.from_pretrained(base, str(adapter_folder)), PROMPT)


def stored(tmp_path: Path, name: str = "a") -> Path:
    return tmp_path / "work" / "checkpoints" / name


async def test_the_base_that_a_checkpoint_records_is_used(wire: Wire, tiny_folder: Path, tmp_path: Path) -> None:
    # other tools are told another name, which the engine does not look for
    saved = await lora_checkpoint(wire, tiny_folder, base_model_name="owner/name")
    assert json.loads((stored(tmp_path) / "adapter_config.json").read_text())["base_model_name_or_path"] == "owner/name"
    assert saved.base_model == str(tiny_folder)
    session_id = await wire.open_sampling(checkpoint_uri=saved.uri)
    expected = peft_scores(tiny_folder, stored(tmp_path))
    np.testing.assert_allclose(await wire.score(session_id, 1, PROMPT), expected, rtol=0, atol=1e-5)


async def test_a_base_that_is_gone_is_told_and_may_be_given(wire: Wire, tiny_folder: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_folder, tmp_path / "base"))
    saved = await lora_checkpoint(wire, base)
    expected = peft_scores(base, stored(tmp_path))
    base.rename(tmp_path / "moved")
    with pytest.raises(NotFoundError, match="no model folder") as caught:
        await wire.open_sampling(checkpoint_uri=saved.uri)
    assert caught.value.reason == "MODEL_NOT_FOUND"
    session_id = await wire.open_sampling(checkpoint_uri=saved.uri, checkpoint_base_model=str(tmp_path / "moved"))
    np.testing.assert_allclose(await wire.score(session_id, 1, PROMPT), expected, rtol=0, atol=1e-5)


async def test_a_base_known_by_a_hub_name_must_be_given(wire: Wire, tiny_folder: Path, tmp_path: Path) -> None:
    """As in a folder that came from another machine without a manifest."""
    files = await read_all(wire, await lora_checkpoint(wire, tiny_folder, base_model_name="owner/name"))
    expected = peft_scores(tiny_folder, stored(tmp_path))
    foreign = {name: files[name] for name in ("adapter_config.json", "adapter_model.safetensors")}
    uploaded = (await wire.training.UploadCheckpoint(upload_messages("foreign", foreign))).checkpoint
    assert uploaded.base_model == "owner/name"
    for given in ({}, {"checkpoint_base_model": "owner/name"}, {"checkpoint_base_model": "relative/folder"}):
        with pytest.raises(InvalidArgumentError) as caught:
            await wire.open_sampling(checkpoint_uri=uploaded.uri, **given)
        assert [each.field for each in caught.value.fields] == ["checkpoint_base_model"]
    session_id = await wire.open_sampling(checkpoint_uri=uploaded.uri, checkpoint_base_model=str(tiny_folder))
    np.testing.assert_allclose(await wire.score(session_id, 1, PROMPT), expected, rtol=0, atol=1e-5)


async def test_a_base_that_does_not_fit_is_refused_and_nothing_stays(
    wire: Wire, engine: Engine, tiny_folder: Path, tmp_path: Path
) -> None:
    saved = await lora_checkpoint(wire, tiny_folder)
    wide, other = save_tiny_model(tmp_path / "wide", hidden=48), tmp_path / "other"
    config = PhiConfig(vocab_size=64, hidden_size=32, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    PhiForCausalLM(config).save_pretrained(other)
    refusals: list[tuple[str, type[KitchenError], str]] = [
        (str(wide), FailedPreconditionError, "CHECKPOINT_MISMATCH"),
        (str(other), FailedPreconditionError, "CHECKPOINT_MISMATCH"),
        (str(tmp_path / "nowhere"), NotFoundError, "MODEL_NOT_FOUND"),
        (str(tmp_path), InvalidArgumentError, "FIELD_INVALID"),
        ("/model\0", InvalidArgumentError, "FIELD_INVALID"),
    ]
    for base_model, kind, reason in refusals:
        with pytest.raises(kind) as caught:
            await wire.open_sampling(checkpoint_uri=saved.uri, checkpoint_base_model=base_model)
        assert caught.value.reason == reason, base_model
    assert not engine._shared and not engine.sampling._creations
    # not pinned
    await wire.training.DeleteCheckpoint(tp.DeleteCheckpointRequest(uri=saved.uri))
    assert not stored(tmp_path).exists()


async def test_a_base_beside_what_needs_none_is_refused(wire: Wire, tiny_folder: Path) -> None:
    training = await wire.open(tiny_folder)
    whole = await wire.save(training, 1, "whole")
    for model in (
        {"base_model": str(tiny_folder)},
        {"training_session_id": training},
        {"checkpoint_uri": whole.uri},
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            await wire.open_sampling(**model, checkpoint_base_model=str(tiny_folder))
        assert [each.field for each in caught.value.fields] == ["checkpoint_base_model"]


async def test_a_sampled_lora_checkpoint_is_freed_with_its_session(
    wire: Wire, engine: Engine, tiny_folder: Path, tmp_path: Path
) -> None:
    saved = await lora_checkpoint(wire, tiny_folder)
    opened = [await wire.open_sampling(checkpoint_uri=saved.uri) for _ in range(2)]
    delete = tp.DeleteCheckpointRequest(uri=saved.uri)
    for session_id in opened:
        await wire.score(session_id, 1, PROMPT)
        with pytest.raises(FailedPreconditionError) as caught:
            await wire.training.DeleteCheckpoint(delete)
        assert caught.value.reason == "CHECKPOINT_IN_USE"
        await wire.sampling.CloseSamplingSession(sp.CloseSamplingSessionRequest(session_id=session_id))
    assert not engine._shared
    await wire.training.DeleteCheckpoint(delete)


async def test_a_checkpoint_is_the_same_model_in_a_whole_session_beside_it(
    wire: Wire, tiny_folder: Path, tmp_path: Path
) -> None:
    """A LoRA session on a folder does not change a full session's model of the same folder, nor the reverse."""
    full, lora = await wire.open(tiny_folder), await wire.open(tiny_folder, lora=EVERYTHING)
    expected = compute_logprobs(load_model(tiny_folder, device="cpu", dtype="float32"), PROMPT)
    await step(wire, full, 1)
    live = await wire.open_sampling(training_session_id=lora)
    np.testing.assert_array_equal(await wire.score(live, 1, PROMPT), expected)
    other = await wire.open_sampling(training_session_id=full)
    after = await wire.score(other, 1, PROMPT)
    assert not np.array_equal(after, expected)
    await step(wire, lora, 1)
    np.testing.assert_array_equal(await wire.score(other, 2, PROMPT), after)
    assert unpack_tokens((await wire.sample(live, 2, PROMPT)).sequences[0].tokens_int32).size
