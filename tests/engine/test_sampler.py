"""Sampling against transformers' generate and a plain forward; independence of a sample from its neighbours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from crucible_adapters.torch_engine.loss import get_loss
from crucible_adapters.torch_engine.models import LoadedModel, load_model
from crucible_adapters.torch_engine.optimizer import AdamWOptions
from crucible_adapters.torch_engine.sampler import (
    SamplingCancelled,
    SamplingOptions,
    choose,
    compute_logprobs,
    sample,
)
from crucible_adapters.torch_engine.session import TrainingSession
from tests.engine.tiny import MAX_POSITIONS, VOCAB, random_data, threads

PROMPT = [5, 77, 12, 90, 3, 41]


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> LoadedModel:
    return load_model(tiny_folder, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def oracle(tiny_folder: Path) -> Any:
    """The same weights in transformers alone, with its own written-out attention."""
    return AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32, attn_implementation="eager").eval()


def plain_logprobs(net: Any, tokens: list[int]) -> np.ndarray:
    """log_softmax of one plain forward: logprob of tokens[1:]."""
    ids = torch.tensor(tokens)
    with torch.no_grad():
        logits = net(input_ids=ids[None], use_cache=False).logits[0, :-1]
    return logits.double().log_softmax(-1)[torch.arange(len(tokens) - 1), ids[1:]].numpy()


@pytest.mark.parametrize("prompt", [PROMPT, [9], list(range(40))])
def test_greedy_equals_transformers_generate(model: LoadedModel, oracle: Any, prompt: list[int]) -> None:
    ids = torch.tensor([prompt])
    expected = oracle.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0
    )[0, len(prompt) :]

    result = sample(model, prompt, 2, SamplingOptions(max_tokens=24, temperature=0))

    for completion in result.completions:
        assert completion.tokens.tolist() == expected.tolist()
        assert not completion.stopped


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_logprobs_are_those_of_a_plain_forward(model: LoadedModel, oracle: Any, temperature: float) -> None:
    options = SamplingOptions(max_tokens=20, temperature=temperature, top_k=50, top_p=0.9, seed=3)

    result = sample(model, PROMPT, 3, options, prompt_logprobs=True)

    for completion in result.completions:
        whole = plain_logprobs(oracle, PROMPT + completion.tokens.tolist())
        np.testing.assert_allclose(completion.logprobs, whole[len(PROMPT) - 1 :], atol=1e-5)
        assert result.prompt_logprobs is not None
        np.testing.assert_allclose(result.prompt_logprobs, whole[: len(PROMPT) - 1], atol=1e-5)


def test_compute_logprobs_is_that_of_a_plain_forward(model: LoadedModel, oracle: Any) -> None:
    actual = compute_logprobs(model, PROMPT)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, plain_logprobs(oracle, PROMPT), atol=1e-6)


@pytest.mark.parametrize(("thread_count", "most"), [(1, 70), (2, 20)])
def test_sample_does_not_depend_on_num_samples(model: LoadedModel, thread_count: int, most: int) -> None:
    stop = frozenset(range(0, VOCAB, 16))  # samples end at different lengths, so rows leave the batch
    options = SamplingOptions(max_tokens=30, seed=11, stop_tokens=stop)
    with threads(thread_count):
        many = sample(model, PROMPT, most, options).completions
        for count in (1, 2, 5):
            few = sample(model, PROMPT, count, options).completions
            for one, other in zip(few, many, strict=False):
                assert one.tokens.tolist() == other.tokens.tolist()
                assert one.logprobs.tobytes() == other.logprobs.tobytes()
    assert len({len(completion.tokens) for completion in many}) > 3
    assert len({completion.tokens.tobytes() for completion in many}) > most // 2


def test_seed_decides(model: LoadedModel) -> None:
    def draw(seed: int) -> list[bytes]:
        result = sample(model, PROMPT, 4, SamplingOptions(max_tokens=10, seed=seed))
        return [completion.tokens.tobytes() for completion in result.completions]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert draw(-1) == draw(-1)


def test_stop_token_ends_and_is_kept(model: LoadedModel) -> None:
    free = sample(model, PROMPT, 1, SamplingOptions(max_tokens=12, temperature=0)).completions[0].tokens.tolist()
    stop = free[5]
    cut = free.index(stop) + 1

    ended = sample(model, PROMPT, 1, SamplingOptions(max_tokens=12, temperature=0, stop_tokens=frozenset({stop})))

    assert ended.completions[0].tokens.tolist() == free[:cut]
    assert ended.completions[0].stopped


def test_completion_ends_at_the_models_longest_sequence(model: LoadedModel) -> None:
    prompt = [7] * (MAX_POSITIONS - 3)
    completion = sample(model, prompt, 1, SamplingOptions(max_tokens=50)).completions[0]
    assert len(completion.tokens) == 3
    assert not completion.stopped


def test_draws_follow_the_distribution() -> None:
    probs = torch.tensor([0.5, 0.2, 0.2, 0.1], dtype=torch.float64)
    grid = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    logits = probs.log().expand(1000, -1)

    def frequencies(**options: float) -> list[float]:
        drawn = choose(logits, SamplingOptions(max_tokens=1, **options), grid)  # type: ignore[arg-type]
        return (torch.bincount(drawn, minlength=4) / 1000).tolist()

    assert frequencies() == pytest.approx([0.5, 0.2, 0.2, 0.1], abs=0.001)
    assert frequencies(temperature=0.5) == pytest.approx(
        [0.25 / 0.34, 0.04 / 0.34, 0.04 / 0.34, 0.01 / 0.34], abs=0.001
    )
    assert frequencies(top_k=1) == [1, 0, 0, 0]
    assert frequencies(top_p=0.49) == [1, 0, 0, 0]
    assert frequencies(top_p=0.0) == [1, 0, 0, 0]
    assert frequencies(top_p=0.6) == pytest.approx([5 / 7, 2 / 7, 0, 0], abs=0.001)
    assert frequencies(top_k=3) == pytest.approx([5 / 9, 2 / 9, 2 / 9, 0], abs=0.001)
    # top_p counts what top_k left: 5/7 already reach 0.7
    assert frequencies(top_k=2, top_p=0.7) == [1, 0, 0, 0]


def test_last_number_below_one_draws_a_possible_token() -> None:
    logits = torch.tensor([[0.0, 0.0, -torch.inf]])
    almost_one = torch.tensor([np.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert choose(logits, SamplingOptions(max_tokens=1), almost_one).tolist() == [1]


def test_live_weights_are_sampled(tiny_folder: Path) -> None:
    session = TrainingSession(load_model(tiny_folder, device="cpu", dtype="float32"))
    before = compute_logprobs(session.model, PROMPT)
    session.forward_backward(random_data([20], seed=5), get_loss("cross_entropy"), {})
    session.optim_step(AdamWOptions(learning_rate=1e-2))
    after = compute_logprobs(session.model, PROMPT)
    assert not np.array_equal(before, after)
    np.testing.assert_allclose(after, plain_logprobs(session.model.net, PROMPT), atol=1e-5)


def test_cancel_stops_between_tokens(model: LoadedModel) -> None:
    answers = iter([False, False, True])
    with pytest.raises(SamplingCancelled):
        sample(model, PROMPT, 1, SamplingOptions(max_tokens=50), cancelled=lambda: next(answers))
