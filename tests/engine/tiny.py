"""A random Qwen3 of 25 thousand parameters, and random data for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging

from crucible_adapters.torch_engine.batching import Datum

VOCAB = 128
MAX_POSITIONS = 96


def save_tiny_model(folder: Path, *, seed: int = 0, tied: bool = True, hidden: int = 32) -> Path:
    """A model folder with weights large enough that its predictions differ from token to token."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=64,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=tied,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    logging.disable_progress_bar()
    Qwen3ForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text('{"stands": "for a tokenizer"}')
    return folder


def random_data(lengths: list[int], *, seed: int = 0, prompt: int = 0) -> list[Datum]:
    """Datums of the given lengths; the first `prompt` weights of each are zero, the others any float."""
    rng = np.random.default_rng(seed)
    data = []
    for length in lengths:
        ids = rng.integers(0, VOCAB, length + 1)
        weights = rng.normal(size=length).astype(np.float32)
        weights[:prompt] = 0.0
        data.append(Datum(tokens=ids[:-1], targets=ids[1:], inputs={"weights": weights}))
    return data


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run with another number of torch threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
