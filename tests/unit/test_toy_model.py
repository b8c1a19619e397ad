"""The toy model of the fakes: its gradients are those of finite differences, its optimizer is torch's AdamW."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from crucible_adapters.fakes.toy.losses import LOSSES
from crucible_adapters.fakes.toy.model import Adam, AdamOptions, Lora, ToyModel, ToySize, base_model, with_adapter
from crucible_adapters.fakes.toy.session import Datum, ToySession

SIZE = ToySize(vocab_size=7, rows=5)
TOKENS, TARGETS = np.array([0, 6, 2, 2, 1]), np.array([6, 2, 2, 1, 3])


def full_model() -> ToyModel:
    return base_model("x", SIZE, 1)


def lora_model() -> ToyModel:
    model = with_adapter(full_model(), Lora(rank=2, alpha=3.0), 4)
    for array in model.adapter.values():
        array += np.random.default_rng(2).normal(scale=0.3, size=array.shape)
    return model


def inputs_of(name: str) -> dict[str, np.ndarray]:
    random = np.random.default_rng(3)
    # Ratios on both sides of every clip bound, and advantages of both signs.
    logprobs = -math.log(7) + np.array([0.6, -0.5, 0.1, -1.7, 0.05])
    drawn = {"weights": random.normal(size=5), "advantages": random.normal(size=5), "logprobs": logprobs}
    return {each: drawn[each] for each in LOSSES[name].inputs}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("make", [full_model, lora_model])
def test_gradients_are_those_of_finite_differences(make, name: str) -> None:
    loss, parameters, inputs = LOSSES[name], dict(LOSSES[name].parameters), inputs_of(name)
    model = make()

    def value() -> float:
        logprobs = model.log_softmax(TOKENS)[np.arange(5), TARGETS]
        if name == "cispo":
            # Its ratio counts as a constant: that of the weights where the gradient is taken.
            ratio = np.exp(fixed - inputs["logprobs"]).clip(0.0, 4.0)
            return float(-(ratio * logprobs * inputs["advantages"]).sum())
        return float(loss.fn(logprobs, inputs, parameters)[0].sum())

    fixed = model.log_softmax(TOKENS)[np.arange(5), TARGETS]
    session = ToySession(model)
    passed = session.forward_backward([Datum(TOKENS, TARGETS, inputs)], loss, {})
    assert passed.loss == pytest.approx(value(), rel=1e-12)
    for weight, gradient in zip(model.trained.values(), session.gradients.values(), strict=True):
        for place in np.ndindex(*weight.shape):
            kept, differences = weight[place], []
            for step in (1e-6, -1e-6):
                weight[place] = kept + step
                differences.append(value())
            weight[place] = kept
            assert gradient[place] == pytest.approx((differences[0] - differences[1]) / 2e-6, abs=1e-7)


def test_gradients_add_up_and_no_pass_depends_on_its_neighbours() -> None:
    data = [Datum(TOKENS, TARGETS, inputs_of("cross_entropy")), Datum(TARGETS, TOKENS, inputs_of("cross_entropy"))]
    together, apart = ToySession(full_model()), ToySession(full_model())
    loss = LOSSES["cross_entropy"]
    together.forward_backward(data, loss, {})
    for each in data:
        apart.forward_backward([each], loss, {})
    for name, gradient in together.gradients.items():
        assert (gradient == apart.gradients[name]).all()


def test_steps_are_those_of_torch() -> None:
    """Matches torch.optim.AdamW with clip_grad_norm_ to 1e-12 in float64."""
    options = AdamOptions(0.05, beta1=0.8, beta2=0.9, eps=1e-6, weight_decay=0.1, grad_clip_norm=1.5)
    random = np.random.default_rng(0)
    weights = {"a": random.normal(size=(3, 4)), "b": random.normal(size=4)}
    theirs = [torch.tensor(each.copy(), requires_grad=True) for each in weights.values()]
    oracle = torch.optim.AdamW(theirs, lr=0.05, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1)
    adam = Adam()
    for scale in (1.0, 5.0, 0.1):
        gradients = {name: random.normal(size=each.shape) * scale for name, each in weights.items()}
        before = {name: each.copy() for name, each in weights.items()}
        changed = adam.update(weights, gradients, options)
        for parameter, gradient in zip(theirs, gradients.values(), strict=True):
            parameter.grad = torch.tensor(gradient)
        torch.nn.utils.clip_grad_norm_(theirs, 1.5)
        oracle.step()
        for parameter, weight in zip(theirs, weights.values(), strict=True):
            assert np.allclose(parameter.detach().numpy(), weight, rtol=0, atol=1e-12)
        moved = math.sqrt(sum(((weights[name] - before[name]) ** 2).sum() for name in weights))
        assert changed == pytest.approx(moved)


def test_a_token_beyond_the_rows_shares_one() -> None:
    model = full_model()
    assert (model.log_softmax(np.array([1])) == model.log_softmax(np.array([6]))).all()
    assert np.exp(model.log_softmax(TOKENS)).sum(axis=1) == pytest.approx(1)


def test_a_base_model_is_the_same_forever() -> None:
    first, again, other = full_model(), full_model(), base_model("y", SIZE, 1)
    assert (first.base["bigram"] == again.base["bigram"]).all()
    assert (first.base["bigram"] != other.base["bigram"]).any()
    assert first.base["bias"][:2].tolist() == pytest.approx([-0.018985683, -0.040263232], abs=1e-9)
