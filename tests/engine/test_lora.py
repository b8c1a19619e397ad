"""Fresh adapters and the layers they are on: what decides their first numbers, what is refused, what stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from crucible_adapters.torch_engine.lora_spec import ATTENTION, MLP, UNEMBEDDING, LoraSpec
from crucible_adapters.torch_engine.models import LoadedModel
from crucible_adapters.torch_engine.sampler import compute_logprobs
from crucible_kit.errors import InvalidArgumentError
from tests.engine.lora import adapt, frozen_base, groups, peft_parameters, randomise, targets
from tests.engine.tiny import VOCAB, save_tiny_model

pytestmark = pytest.mark.filterwarnings(
    "ignore:Model has `tie_word_embeddings=True`", "ignore:`is_gradient_checkpointing` is deprecated"
)
TOKENS = [5, 77, 12, 90, 3, 41]
QUERY = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"


@pytest.fixture(scope="module")
def base(tiny_folder: Path) -> LoadedModel:
    return frozen_base(tiny_folder)


def first(base: LoadedModel, spec: LoraSpec, seed: int = 0) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in adapt(base, spec, seed=seed).named_parameters().items()}


def test_first_numbers_depend_on_seed_and_layer_alone(base: LoadedModel, tmp_path: Path) -> None:
    wide = first(base, groups(8, ATTENTION, MLP), seed=3)
    assert torch.equal(wide[QUERY], first(base, groups(8, ATTENTION, MLP), seed=3)[QUERY])
    assert torch.equal(wide[QUERY][:2], first(base, targets(2, "q_proj", alpha=9.0), seed=3)[QUERY])
    other_model = frozen_base(save_tiny_model(tmp_path / "other", seed=8), "float64")
    assert torch.equal(wide[QUERY].double(), first(other_model, groups(8, ATTENTION), seed=3)[QUERY].float().double())
    for seed in (4, -3, 2**63 - 1):
        assert not torch.equal(wide[QUERY], first(base, groups(8, ATTENTION), seed=seed)[QUERY])
    matrices = [tensor for name, tensor in wide.items() if ".lora_A." in name and tensor.shape == (8, 32)]
    assert len({matrix.numpy().tobytes() for matrix in matrices}) == len(matrices) == 12


def test_first_numbers_are_spread_as_pefts(tiny_folder: Path, base: LoadedModel) -> None:
    """Uniform up to 1 / sqrt(inputs); B is zero, so that nothing changes yet."""
    torch.manual_seed(0)
    config = LoraConfig(r=64, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    theirs = peft_parameters(get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_folder), config))
    ours = first(base, targets(64, "q_proj", "down_proj"))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.shape == theirs[name].shape
        expected = theirs[name].detach()
        assert float(tensor.abs().max()) == pytest.approx(float(expected.abs().max()), rel=0.05), name
        assert float(tensor.std()) == pytest.approx(float(expected.std()), rel=0.05), name
        assert abs(float(tensor.mean())) < 0.01
        assert (".lora_B." in name) == (not tensor.any())


def test_a_fresh_adapter_and_none_give_the_bits_of_the_plain_model(tiny_folder: Path, base: LoadedModel) -> None:
    plain = compute_logprobs(frozen_base(tiny_folder), TOKENS)
    fresh = adapt(base, groups(8, ATTENTION, MLP, UNEMBEDDING))
    np.testing.assert_array_equal(compute_logprobs(fresh, TOKENS), plain)
    changed = randomise(adapt(base, groups(8, ATTENTION, MLP, UNEMBEDDING)))
    assert np.abs(compute_logprobs(changed, TOKENS) - plain).max() > 0.1
    # after it was in the layers
    np.testing.assert_array_equal(compute_logprobs(base, TOKENS), plain)


def test_an_adapter_on_other_layers_leaves_none_of_the_last_ones(base: LoadedModel, tiny_folder: Path) -> None:
    everywhere = randomise(adapt(base, groups(4, ATTENTION, MLP, UNEMBEDDING)))
    query = randomise(adapt(base, targets(4, "q_proj")))
    alone = randomise(adapt(frozen_base(tiny_folder), targets(4, "q_proj")))
    for _ in range(2):
        compute_logprobs(everywhere, TOKENS)
        np.testing.assert_array_equal(compute_logprobs(query, TOKENS), compute_logprobs(alone, TOKENS))


def test_a_forgotten_adapter_is_not_computed_with(base: LoadedModel, tiny_folder: Path) -> None:
    model = randomise(adapt(base, groups(4, ATTENTION)))
    compute_logprobs(model, TOKENS)
    assert model.adapter is not None
    model.slots.forget(model.adapter)
    assert all(getattr(module, "active", None) is None for module in base.net.modules())


@pytest.mark.parametrize(
    ("spec", "listed", "layers"),
    [
        (groups(2, ATTENTION), ("k_proj", "o_proj", "q_proj", "v_proj"), 8),
        (groups(2, MLP), ("down_proj", "gate_proj", "up_proj"), 6),
        (groups(2, UNEMBEDDING), ("lm_head",), 1),
        (targets(2, "self_attn.q_proj", "layers.1.mlp.up_proj"), ("layers.1.mlp.up_proj", "self_attn.q_proj"), 3),
        (targets(2, "q_proj", "layers.0.self_attn.q_proj"), ("layers.0.self_attn.q_proj", "q_proj"), 2),
    ],
)
def test_layers_are_those_that_peft_takes_for_the_listed_names(
    base: LoadedModel, tiny_folder: Path, spec: LoraSpec, listed: tuple[str, ...], layers: int
) -> None:
    adapter = adapt(base, spec).adapter
    assert adapter is not None
    assert adapter.target_modules == listed
    assert len(adapter.matrices) == layers
    config = LoraConfig(r=2, target_modules=list(listed), task_type="CAUSAL_LM")
    theirs = peft_parameters(get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_folder), config))
    assert adapter.named_parameters().keys() == theirs.keys()


@pytest.mark.parametrize("name", ["w_proj", "proj", "mlp", "embed_tokens", "q_norm", "layers.7.self_attn.q_proj"])
def test_layers_that_cannot_be_adapted_are_refused_with_those_that_can(base: LoadedModel, name: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"has down_proj, .*, v_proj") as caught:
        adapt(base, targets(2, "q_proj", name))
    assert caught.value.fields[0].field == f"lora.target_modules[{sorted(['q_proj', name]).index(name)}]"
    assert repr(name) in caught.value.message


def test_a_group_that_a_model_lacks_is_refused(tmp_path: Path) -> None:
    """GPT-2's matrices are no linear layers of torch."""
    config = GPT2Config(vocab_size=VOCAB, n_embd=8, n_layer=1, n_head=2, n_positions=16)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    base = frozen_base(tmp_path / "gpt2")
    with pytest.raises(InvalidArgumentError, match="set false") as caught:
        adapt(base, groups(2, ATTENTION, UNEMBEDDING))
    assert caught.value.fields[0].field == "lora.train_attention"
    assert len(first(base, groups(2, UNEMBEDDING))) == 2
