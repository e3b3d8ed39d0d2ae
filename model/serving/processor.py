"""Which short number formats the processor has instructions for, as far as oneDNN may use them."""

from __future__ import annotations

import os
from typing import Final

import torch

# What ONEDNN_MAX_CPU_ISA limits oneDNN to that is without them: bf16 is emulated then, and slow.
_WITHOUT_VNNI: Final = {"SSE41", "AVX", "AVX2", "AVX512_CORE"}
_WITHOUT_BF16: Final = _WITHOUT_VNNI | {"AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE_VNNI"}


def has_bf16() -> bool:
    """Whether products of bf16 are instructions here."""
    there = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(there) and _limit() not in _WITHOUT_BF16


def has_vnni() -> bool:
    """Whether products of 8 bits are instructions here."""
    return bool(torch.cpu._is_vnni_supported()) and _limit() not in _WITHOUT_VNNI


def _limit() -> str:
    return os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
