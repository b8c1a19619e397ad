"""AdamW against a hand-written float64 one and against torch's, and what a failed step leaves behind."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from crucible_adapters.torch_engine.loss import get_loss
from crucible_adapters.torch_engine.models import load_model
from crucible_adapters.torch_engine.optimizer import AdamWOptions, AdamWState, adamw_step, global_norm
from crucible_adapters.torch_engine.session import TrainingSession
from crucible_kit.errors import FailedPreconditionError
from tests.engine.lora import adapt, frozen_base, groups, randomise
from tests.engine.tiny import random_data

CROSS_ENTROPY = get_loss("cross_entropy")


def weights(session: TrainingSession) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy().copy() for name, p in session.model.named_parameters().items()}


def numpy_adamw(
    weight: np.ndarray, grads: list[np.ndarray], lr: float, b1: float, b2: float, eps: float, decay: float
) -> np.ndarray:
    """Loshchilov and Hutter's algorithm 2, with the schedule multiplier in lr and decay scaled by it as torch does."""
    m, v = np.zeros_like(weight), np.zeros_like(weight)
    for t, g in enumerate(grads, start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
        weight = weight - lr * decay * weight - lr * m_hat / (np.sqrt(v_hat) + eps)
    return weight


def session_in_float64(folder: Path, trained: str) -> TrainingSession:
    if trained == "full":
        return TrainingSession(load_model(folder, device="cpu", dtype="float64"))
    model = adapt(frozen_base(folder, "float64"), groups(4, "attention", "mlp", "unembedding", alpha=6.0), seed=2)
    # a fresh adapter has zeros, whose decay and gradients would show less
    return TrainingSession(model if trained == "fresh LoRA" else randomise(model))


@pytest.mark.parametrize("trained", ["full", "fresh LoRA", "LoRA"])
@pytest.mark.parametrize(("clip", "decay"), [(0.0, 0.0), (0.5, 0.0), (1e9, 0.1), (0.5, 0.3)])
def test_steps_match_the_formula_in_float64(tiny_folder: Path, trained: str, clip: float, decay: float) -> None:
    options = AdamWOptions(learning_rate=3e-3, beta1=0.8, beta2=0.97, eps=1e-7, weight_decay=decay, grad_clip_norm=clip)
    session = session_in_float64(tiny_folder, trained)
    start = weights(session)
    seen: dict[str, list[np.ndarray]] = {name: [] for name in start}
    for step in range(3):
        # two calls a step: gradients accumulate
        for part in range(2):
            session.forward_backward(random_data([6, 11], seed=10 * step + part), CROSS_ENTROPY, {})
        grads = {name: p.grad.numpy().copy() for name, p in session.model.named_parameters().items()}  # type: ignore[union-attr]
        norm = math.sqrt(sum(float((g**2).sum()) for g in grads.values()))
        scale = min(1.0, clip / (norm + 1e-6)) if clip else 1.0
        for name, g in grads.items():
            seen[name].append(g * scale)
        before = weights(session)

        result = session.optim_step(options)

        change = math.sqrt(sum(float(((w - before[n]) ** 2).sum()) for n, w in weights(session).items()))
        assert result.grad_norm == pytest.approx(norm, rel=1e-12)
        assert result.update_norm == pytest.approx(change, rel=1e-9)
        assert result.learning_rate == 3e-3
        assert result.optim_steps == result.weights_version == step + 1
        assert (scale < 1.0) == (clip == 0.5)
        for name, weight in weights(session).items():
            expected = numpy_adamw(start[name], seen[name], 3e-3, 0.8, 0.97, 1e-7, decay)
            np.testing.assert_allclose(weight, expected, rtol=1e-12, atol=1e-12, err_msg=name)


def test_steps_match_torch_with_changing_learning_rate() -> None:
    generator = torch.Generator().manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(40, 30, generator=generator))
    theirs = torch.nn.Parameter(ours.detach().clone())
    oracle = torch.optim.AdamW([theirs], betas=(0.9, 0.95), eps=1e-8, weight_decay=0.01)
    state = AdamWState()
    for step in range(5):
        grad = torch.randn(40, 30, generator=generator) * 10.0**-step
        ours.grad, theirs.grad = grad.clone(), grad.clone()
        lr = 1e-3 / (step + 1)
        oracle.param_groups[0]["lr"] = lr
        torch.nn.utils.clip_grad_norm_([theirs], 1.0)
        oracle.step()
        options = AdamWOptions(learning_rate=lr, weight_decay=0.01, grad_clip_norm=1.0)
        adamw_step({"w": ours}, state, options, global_norm([ours.grad]))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_half_precision_weights_keep_small_updates() -> None:
    weight = torch.nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    state = AdamWState()
    for _ in range(100):
        weight.grad = torch.ones(8, dtype=torch.bfloat16)
        # one such step is far below bfloat16's spacing at 1
        adamw_step({"w": weight}, state, AdamWOptions(learning_rate=1e-4), torch.ones(()))
    assert state.master["w"][0].item() == pytest.approx(0.99, abs=1e-5)
    assert weight[0].item() == pytest.approx(0.99, abs=0.004)


def test_optimizer_memory_is_allocated_by_the_first_step(session: TrainingSession) -> None:
    session.forward_backward(random_data([4]), CROSS_ENTROPY, {})
    assert not session.optimizer.exp_avg
    session.optim_step(AdamWOptions(learning_rate=1e-3))
    assert session.optimizer.exp_avg.keys() == session.model.named_parameters().keys()


def test_step_without_gradients_is_refused(session: TrainingSession) -> None:
    session.forward_backward(random_data([4]), CROSS_ENTROPY, {})
    session.optim_step(AdamWOptions(learning_rate=1e-3))
    with pytest.raises(FailedPreconditionError) as caught:
        session.optim_step(AdamWOptions(learning_rate=1e-3))
    assert caught.value.reason == "NO_GRADIENTS"


def test_failed_forward_backward_fails_the_next_step_and_zeroes_gradients(
    session: TrainingSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = weights(session)
    session.forward_backward(random_data([4], seed=1), CROSS_ENTROPY, {})
    with monkeypatch.context() as patch:
        patch.setattr(type(session.model), "hidden_states", lambda *_: (_ for _ in ()).throw(MemoryError("no room")))
        with pytest.raises(MemoryError):
            session.forward_backward(random_data([4], seed=2), CROSS_ENTROPY, {})
    assert all(p.grad is None for p in session.model.named_parameters().values())
    session.forward_backward(random_data([4], seed=3), CROSS_ENTROPY, {})

    with pytest.raises(FailedPreconditionError, match="MemoryError") as caught:
        session.optim_step(AdamWOptions(learning_rate=1e-3))

    assert caught.value.reason == "GRADIENTS_INVALID"
    assert all(np.array_equal(w, before[name]) for name, w in weights(session).items())
    session.forward_backward(random_data([4], seed=3), CROSS_ENTROPY, {})
    assert session.optim_step(AdamWOptions(learning_rate=1e-3)).optim_steps == 1


def test_gradient_that_is_not_finite_leaves_the_weights(session: TrainingSession) -> None:
    before = weights(session)
    data = random_data([4])
    data[0].inputs["weights"][0] = 3e38  # type: ignore[index]
    session.forward_backward(data, CROSS_ENTROPY, {})

    with pytest.raises(FailedPreconditionError) as caught:
        session.optim_step(AdamWOptions(learning_rate=1e-3))

    assert caught.value.reason == "NUMERIC_ERROR"
    assert all(np.array_equal(w, before[name]) for name, w in weights(session).items())
    assert session.weights_version == 0
