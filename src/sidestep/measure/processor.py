"""What the processor is called, and fast at."""

import platform
import sys
from pathlib import Path

import torch

__all__ = ["has_bfloat16", "processor_name"]


def processor_name(device: str | torch.device = "cpu") -> str:
    """Return what the device calls itself, for a report: a GPU's name, or the processor's model."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text(errors="replace").splitlines() if cpu.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def has_bfloat16(device: str | torch.device = "cpu") -> bool:
    """Whether `device` multiplies bfloat16 matrices in hardware; without it bfloat16 is slower than float32.

    CPU: AVX-512 BF16 or AMX tiles on x86, the bf16 extension on ARM. MPS: False.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    return _torch_says("_is_avx512_bf16_supported") or _torch_says("_is_amx_tile_supported") or _arm_bfloat16()


def _torch_says(name: str) -> bool:
    """The answer of a private function of torch.cpu, or False in versions that have none of this name."""
    ask = getattr(torch.cpu, name, None)
    return bool(ask()) if callable(ask) else False


def _arm_bfloat16(features: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether Linux lists the bf16 feature of an ARM processor; elsewhere there is no sure sign, so False."""
    if not sys.platform.startswith("linux") or not features.exists():
        return False
    lines = features.read_text(errors="replace").splitlines()
    return any("bf16" in line.split() for line in lines if line.startswith("Features"))
