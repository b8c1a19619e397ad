"""Losses and gradients against plain autograd over the same module, and against other ways to cut the same batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from crucible_adapters.torch_engine import loss as loss_module
from crucible_adapters.torch_engine.batching import Datum, plan_micro_batches
from crucible_adapters.torch_engine.loss import Head, get_loss, target_logprobs, token_loss_gradients
from crucible_adapters.torch_engine.models import LoadedModel, load_model
from crucible_adapters.torch_engine.session import TrainingSession
from crucible_kit.errors import InvalidArgumentError
from tests.engine.tiny import VOCAB, random_data

LENGTHS = [7, 1, 30, 13, 30, 4, 22]


def gradients(session: TrainingSession) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in session.model.named_parameters().items() if p.grad is not None}


def autograd_oracle(model: LoadedModel, data: list[Datum]) -> tuple[float, list[np.ndarray], dict[str, torch.Tensor]]:
    """Loss, logprobs and gradients of the plain formula: one unpadded row at a time, full logits, torch's autograd."""
    model.net.zero_grad()
    total = torch.zeros((), dtype=model.dtype)
    logprobs = []
    for datum in data:
        logits = model.net(input_ids=torch.from_numpy(datum.tokens)[None], use_cache=False).logits[0]
        row = logits.log_softmax(-1)[torch.arange(len(datum.targets)), torch.from_numpy(datum.targets)]
        total = total - (torch.from_numpy(datum.inputs["weights"]).to(model.dtype) * row).sum()
        logprobs.append(row.detach().numpy())
    total.backward()
    found = {name: p.grad.clone() for name, p in model.net.named_parameters() if p.grad is not None}
    model.net.zero_grad()
    return total.item(), logprobs, found


def assert_same_gradients(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-12, atol=1e-12, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("prompt", [0, 3])
@pytest.mark.parametrize("tied", [True, False])
def test_gradients_match_autograd_in_float64(tiny_folder: Path, untied_folder: Path, tied: bool, prompt: int) -> None:
    model = load_model(tiny_folder if tied else untied_folder, device="cpu", dtype="float64")
    data = random_data(LENGTHS, prompt=prompt)
    loss, logprobs, expected = autograd_oracle(model, data)
    session = TrainingSession(model)

    result = session.forward_backward(data, get_loss("cross_entropy"), {})

    assert result.loss == pytest.approx(loss, rel=1e-12, abs=1e-12)
    for actual, row in zip(result.logprobs, logprobs, strict=True):
        np.testing.assert_allclose(actual, row, rtol=1e-12, atol=1e-12)
    assert_same_gradients(gradients(session), expected)


@pytest.mark.parametrize("calls", [1, 2, 7])
@pytest.mark.parametrize("micro_batch_tokens", [1, 60, 10_000])
def test_cutting_the_batch_changes_no_gradient(tiny_folder: Path, calls: int, micro_batch_tokens: int) -> None:
    model = load_model(tiny_folder, device="cpu", dtype="float64")
    data = random_data(LENGTHS, seed=1)
    _, _, expected = autograd_oracle(model, data)
    session = TrainingSession(model, micro_batch_tokens=micro_batch_tokens)

    for part in np.array_split(np.arange(len(data)), calls):
        session.forward_backward([data[i] for i in part], get_loss("cross_entropy"), {})

    assert_same_gradients(gradients(session), expected)


@pytest.mark.parametrize("chunk", [1, 5, 64, 1000])
def test_chunking_changes_neither_loss_nor_gradients(chunk: int) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(64, 16, dtype=torch.float64, generator=generator)
    weight = torch.randn(50, 16, dtype=torch.float64, generator=generator)
    bias = torch.randn(50, dtype=torch.float64, generator=generator)
    targets = torch.randint(0, 50, (64,), generator=generator)
    weights = torch.randn(64, dtype=torch.float64, generator=generator) * (torch.arange(64) % 3 > 0)
    leaves = [t.clone().requires_grad_() for t in (hidden, weight, bias)]
    logprobs = torch.nn.functional.linear(*leaves).log_softmax(-1)[torch.arange(64), targets]
    expected_loss = -(weights * logprobs).sum()
    expected = torch.autograd.grad(expected_loss, leaves)
    # what is there already must be added to, not replaced
    head = Head(
        weight_VD=weight, bias_V=bias, grad_weight_VD=torch.ones_like(weight), grad_bias_V=torch.ones_like(bias)
    )

    result = token_loss_gradients(
        hidden, head, targets, {"weights": weights}, get_loss("cross_entropy"), {}, chunk=chunk
    )

    assert result.loss == pytest.approx(expected_loss.item(), rel=1e-12)
    torch.testing.assert_close(result.logprobs_N, logprobs.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        target_logprobs(hidden, head, targets, chunk=chunk), logprobs.detach(), rtol=1e-12, atol=1e-12
    )
    assert head.grad_weight_VD is not None and head.grad_bias_V is not None
    actual = (result.grad_hidden_ND, head.grad_weight_VD - 1, head.grad_bias_V - 1)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_logprobs_of_extreme_logits_stay_finite() -> None:
    hidden = torch.eye(2) * 1e4
    head = Head(weight_VD=torch.tensor([[1.0, 0.0], [0.0, 1.0]]))

    logprobs = target_logprobs(hidden, head, torch.tensor([0, 0]))

    assert logprobs.tolist() == [0.0, -1e4]


def test_full_logits_never_exist(monkeypatch: pytest.MonkeyPatch, session: TrainingSession) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(loss_module, "MIN_CHUNK_TOKENS", 8)
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.ndim >= 2 and result.shape[-1] == VOCAB:
                largest = max(largest, result.numel() // VOCAB)
            return result

    with Watch():
        session.forward_backward(random_data([40, 40]), get_loss("cross_entropy"), {})

    assert largest == 8


def test_forward_leaves_gradients_and_weights(session: TrainingSession) -> None:
    data = random_data([5, 9])
    trained = session.forward_backward(data, get_loss("cross_entropy"), {})
    before = gradients(session)

    result = session.forward(data, get_loss("cross_entropy"), {})

    assert result.loss == pytest.approx(trained.loss, rel=1e-6)
    for row, other in zip(result.logprobs, trained.logprobs, strict=True):
        np.testing.assert_array_equal(row, other)
    assert all(torch.equal(before[name], value) for name, value in gradients(session).items())


def test_unknown_loss_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidArgumentError, match=r"unknown loss 'mse': use one of .*cross_entropy"):
        get_loss("mse")


@pytest.mark.parametrize("budget", [1, 30, 64, 1000])
def test_plan_covers_every_row_once_within_the_budget(budget: int) -> None:
    groups = plan_micro_batches(LENGTHS, budget)

    assert sorted(row for group in groups for row in group) == list(range(len(LENGTHS)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(LENGTHS[row] for row in group) <= budget
