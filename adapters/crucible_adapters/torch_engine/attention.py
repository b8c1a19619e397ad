"""Attention that gives a decoded row the same bits whatever else is in the batch.

torch's CPU kernel cuts a one-token query's work by batch size and threads, so its rounding depends on the neighbours
(seen with two threads: 4 rows differ from 8). Written out as two batched matrix products it does not, and it reads the
shared key and value heads without copying them. Everything else goes to torch's kernel.

Shape suffixes: B rows, H query heads, K key/value heads, G = H / K query heads per key head, T keys, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

IMPLEMENTATION = "crucible"


def use_row_invariant_decoding(net: Any) -> None:
    """Switch a module that runs on torch's attention kernel to this one; others keep their own."""
    if net.config._attn_implementation == "sdpa":
        AttentionInterface.register(IMPLEMENTATION, attention)
        AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
        net.set_attn_implementation(IMPLEMENTATION)


def attention(
    module: torch.nn.Module,
    query_BHTD: torch.Tensor,
    key_BKTD: torch.Tensor,
    value_BKTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface; returns (B, query length, H, D)."""
    plain = attention_mask is None and options.get("softcap") is None and options.get("position_bias") is None
    if query_BHTD.shape[2] != 1 or query_BHTD.device.type != "cpu" or not plain:
        return sdpa_attention_forward(
            module, query_BHTD, key_BKTD, value_BKTD, attention_mask, scaling=scaling, **options
        )
    rows, heads, _, size = query_BHTD.shape
    query_BKGD = query_BHTD.reshape(rows, key_BKTD.shape[1], -1, size)
    scores_BKGT = (query_BKGD @ key_BKTD.transpose(-1, -2)) * (size**-0.5 if scaling is None else scaling)
    weights_BKGT = scores_BKGT.softmax(-1, dtype=torch.promote_types(scores_BKGT.dtype, torch.float32))
    output_BKGD = weights_BKGT.to(value_BKTD.dtype) @ value_BKTD
    return output_BKGD.reshape(rows, 1, heads, -1), None
