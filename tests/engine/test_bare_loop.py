"""A batch that fits one micro-batch trains with the very bits of a bare torch loop.

Rounding differences grow a thousandfold over a run; only equal bits keep a run's losses equal to a reference's.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from crucible_adapters.torch_engine.batching import Datum
from crucible_adapters.torch_engine.loss import get_loss
from crucible_adapters.torch_engine.models import load_model
from crucible_adapters.torch_engine.optimizer import AdamWOptions
from crucible_adapters.torch_engine.session import TrainingSession
from tests.engine.tiny import random_data


def bare_steps(
    net: torch.nn.Module, batches: list[list[Datum]], *, decay: float, clip: float
) -> dict[str, torch.Tensor]:
    """Padded rows, transformers' forward, torch's autograd, clipping and AdamW."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=decay, fused=True)
    for data in batches:
        width = max(len(datum.tokens) for datum in data)
        tokens_BT = torch.zeros(len(data), width, dtype=torch.long)
        targets_BT, weights_BT = torch.zeros_like(tokens_BT), torch.zeros(len(data), width)
        for row, datum in enumerate(data):
            length = len(datum.tokens)
            tokens_BT[row, :length] = torch.from_numpy(datum.tokens)
            targets_BT[row, :length] = torch.from_numpy(datum.targets)
            weights_BT[row, :length] = torch.from_numpy(datum.inputs["weights"])
        hidden_BTD = net.model(input_ids=tokens_BT, use_cache=False).last_hidden_state  # type: ignore[operator]
        at_BT = weights_BT != 0
        nll_N = F.cross_entropy(net.lm_head(hidden_BTD[at_BT]), targets_BT[at_BT], reduction="none")  # type: ignore[operator]
        (nll_N * weights_BT[at_BT]).sum().backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
    return {name: parameter.detach().clone() for name, parameter in net.named_parameters()}


@pytest.mark.parametrize(("decay", "clip"), [(0.0, 0.0), (0.1, 0.5), (0.0, 1e6)])
@pytest.mark.parametrize("tied", [True, False])
def test_weights_equal_those_of_a_bare_loop_bit_for_bit(
    tiny_folder: Path, untied_folder: Path, tied: bool, decay: float, clip: float
) -> None:
    model = load_model(tiny_folder if tied else untied_folder, device="cpu", dtype="float32")
    batches = [random_data([9, 20, 5, 14], seed=step, prompt=2) for step in range(5)]
    expected = bare_steps(copy.deepcopy(model.net), batches, decay=decay, clip=clip)

    session = TrainingSession(model)
    for data in batches:
        session.forward_backward(data, get_loss("cross_entropy"), {})
        session.optim_step(AdamWOptions(learning_rate=1e-2, weight_decay=decay, grad_clip_norm=clip))

    for name, parameter in model.named_parameters().items():
        assert torch.equal(parameter, expected[name]), name
