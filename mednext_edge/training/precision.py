"""What a network computes in while it trains."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mednext_edge.training.plan import Amp


@dataclass(frozen=True)
class Precision:
    """The autocast type of a device; None is float32 throughout. Weights are float32 in any case."""

    device: str
    autocast: torch.dtype | None

    @classmethod
    def of(cls, asked: Amp, device: str) -> Precision:
        kind = torch.device(device).type
        return cls(kind, choose_amp(asked, kind))

    def scaler(self) -> torch.amp.GradScaler:
        """Keeps float16 gradients from vanishing; passes everything through in the other types."""
        return torch.amp.GradScaler(self.device, enabled=self.autocast is torch.float16)

    def context(self) -> torch.autocast:
        return torch.autocast(self.device, dtype=self.autocast or torch.float32, enabled=self.autocast is not None)


def choose_amp(asked: Amp, device: str) -> torch.dtype | None:
    """The autocast type; `auto` is fp16 on CUDA, bf16 on CPUs that multiply in it, otherwise none."""
    if asked != "auto":
        return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[asked]
    if torch.device(device).type == "cuda":
        return torch.float16
    # Without AVX512-BF16 or AMX, bfloat16 is emulated and slower than float32.
    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if has_bf16 else None
