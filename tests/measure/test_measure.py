"""Measures of memory and processor, held to what the system itself reports."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sidestep.measure import has_bfloat16, keep_freed_memory, peak_memory_bytes, return_freed_memory
from sidestep.measure import memory as memory_module
from sidestep.measure import processor as processor_module

GLIBC = sys.platform.startswith("linux") and platform.libc_ver()[0] == "glibc"

CHILD = """
import importlib.util, json, resource, sys, torch

specification = importlib.util.spec_from_file_location("memory", sys.argv[1])
memory = importlib.util.module_from_spec(specification)
specification.loader.exec_module(memory)

def faults_of_five_steps():
    for step in range(13):
        if step == 8:  # the heap has found its size
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for size in (12_000_000, 10_000_000):
            torch.ones(size)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

peaks = [memory.peak_memory_bytes()]
for size in (200_000_000, 300_000_000, 1000):
    torch.ones(size, dtype=torch.uint8)
    peaks.append(memory.peak_memory_bytes("cpu"))
faults = [faults_of_five_steps()]
kept = memory.keep_freed_memory()
faults.append(faults_of_five_steps())
print(json.dumps({"peaks": peaks, "faults": faults, "kept": kept}))
"""

FREEING = """
import json, torch
from sidestep.measure import memory

returned = RETURNED and memory.return_freed_memory()
before = memory._status_on_linux("VmRSS")
for size in (9_000_000, 8_000_000):  # from the first one that is freed on, glibc keeps what is smaller
    every = [torch.ones(size, dtype=torch.uint8) for _ in range(40)]
    held = every[::2]  # so that the freed ones lie between others
    del every
grown = memory._status_on_linux("VmRSS") - before - sum(len(each) for each in held)
print(json.dumps([returned, grown]))
"""


@pytest.fixture(scope="module")
def child() -> dict:
    """What a fresh process measures; this one holds a large tensor meanwhile, which must not count there."""
    if sys.platform == "win32":
        pytest.skip("there is no resource module to hold the measures to")
    held = torch.ones(700_000_000, dtype=torch.uint8)
    command = [sys.executable, "-c", CHILD, str(memory_module.__file__)]
    run = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert len(held)
    return json.loads(run.stdout)


def test_peak_memory_is_a_high_water_mark_in_bytes(child: dict) -> None:
    before, one, larger, after = child["peaks"]
    own = 650e6 if torch.version.cuda is None else 1_300e6  # a build for GPUs loads 0.7 GB of libraries
    assert 50e6 < before <= one < own
    assert 95e6 < larger - one < 105e6
    assert after == larger


def test_kept_memory_is_not_faulted_in_again(child: dict) -> None:
    assert child["kept"] is GLIBC
    without, with_it = child["faults"]
    if not GLIBC:
        pytest.skip("only glibc can be told to keep freed memory")
    if without < 10_000:
        pytest.skip("huge pages hide the difference")  # one fault per 4 KiB would be 107,000
    assert with_it < without / 50


@pytest.mark.skipif(not GLIBC, reason="only glibc can be told to return freed memory")
def test_returned_memory_leaves_the_process() -> None:
    found = []
    for wanted in ("False", "True"):
        command = [sys.executable, "-c", FREEING.replace("RETURNED", wanted)]
        found.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    (_, by_itself), (returned, after) = found
    assert returned
    assert after < 10e6 < 100e6 < by_itself


def test_no_glibc_no_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
    assert not return_freed_memory()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
    assert not return_freed_memory()


def test_macos_counts_bytes_and_windows_has_no_resource_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "_peak_on_linux", lambda: 0)
    linux = peak_memory_bytes()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert peak_memory_bytes() == linux // 1024  # KiB taken for bytes
    monkeypatch.setattr(sys, "platform", "win32")
    assert peak_memory_bytes() == 0  # no windll here


def test_bfloat16_of_this_processor() -> None:
    flags = Path("/proc/cpuinfo")
    if not flags.exists():
        pytest.skip("no list of processor features to hold it to")
    words = set(flags.read_text().split())
    assert has_bfloat16() is bool(words & {"avx512_bf16", "amx_tile", "bf16"})


@pytest.mark.parametrize(("avx", "amx", "expected"), [(True, False, True), (False, True, True), (False, False, False)])
def test_bfloat16_by_torchs_answers(monkeypatch: pytest.MonkeyPatch, avx: bool, amx: bool, expected: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(processor_module, "_arm_bfloat16", lambda: False)
    assert has_bfloat16("cpu") is expected
    assert has_bfloat16("mps") is False


def test_bfloat16_when_torch_has_no_such_functions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    monkeypatch.setattr(processor_module, "_arm_bfloat16", lambda: False)
    assert has_bfloat16() is False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/cpuinfo")
def test_bfloat16_of_an_arm_processor(tmp_path: Path) -> None:
    listing = tmp_path / "cpuinfo"
    listing.write_text("processor : 0\nFeatures\t: fp asimd bf16 i8mm\n")
    assert processor_module._arm_bfloat16(listing)
    listing.write_text("processor : 0\nFeatures\t: fp asimd ebf16x\n")
    assert not processor_module._arm_bfloat16(listing)
    assert not processor_module._arm_bfloat16(tmp_path / "none")
