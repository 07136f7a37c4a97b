"""Noise, masks, trits, forward-mode derivatives, one block's step, replay: each against its plain reference."""

from pathlib import Path

import torch
from torch import nn

from benchmarks.machine import count_flops, made_up, ready
from sidestep.gradients.tangents.alignments import alignments
from sidestep.nets.dropout_masks import dropout_mask
from sidestep.nets.ternary.convert import ternarize
from sidestep.nets.ternary.layers import TernaryLinear
from sidestep.noise import Noise
from sidestep.probes import SparseProbes
from sidestep.rules import NoPropDT
from sidestep.steplog import Header, LogReader, LogWriter
from sidestep.ternary import pack_trits, unpack_trits
from sidestep.training.options import Compute
from sidestep.update import Seeded
from tests.reference.noise_step_plain import plain_alignments
from tests.reference.noprop_plain import PlainNoProp
from tests.reference.philox import words

MILLION = 1 << 20


def bench_noise_words(versus):
    """Philox words, beside Python's integers; the roof is writing them once."""
    versus(lambda: Noise(1).words(MILLION), lambda: words(1, 0, 0, 0, 2048), moved=8 * MILLION, parts=2048 / MILLION)


def bench_noise_normal(versus):
    """Normal values, beside torch's own generator, which has state."""
    plain, generator = torch.empty(MILLION), torch.Generator()
    versus(lambda: Noise(1).normal(MILLION), lambda: plain.normal_(generator=generator), moved=4 * MILLION)


def bench_dropout_mask(versus):
    """A mask of a feature map, beside torch's Bernoulli draws; the roof is writing it once."""
    shape, generator, plain = (128, 64, 16, 16), Noise(0).generator(), torch.empty(128, 64, 16, 16)
    versus(
        lambda: dropout_mask(shape, 0.2, generator),
        lambda: plain.bernoulli_(0.8, generator=generator).div_(0.8),
        moved=4 * plain.numel(),
    )


def plain_pack(trits: list[int]) -> bytes:
    """Pack five to a byte in plain Python."""
    return bytes(sum((t + 1) * 3**k for k, t in enumerate(trits[i : i + 5])) for i in range(0, len(trits), 5))


def bench_trit_packing(versus):
    """Five trits to a byte, beside plain Python; the roof is reading and writing once."""
    trits = Noise(1).signs(5 * MILLION)
    part = trits[:50_000].tolist()
    versus(lambda: pack_trits(trits), lambda: plain_pack(part), moved=6 * MILLION, parts=50_000 / (5 * MILLION))


def bench_trit_unpacking(versus):
    """A byte to five trits, beside plain Python."""
    packed = pack_trits(Noise(1).signs(5 * MILLION))
    part = packed[:10_000].tolist()
    versus(
        lambda: unpack_trits(packed, 5 * MILLION),
        lambda: [byte // 3**k % 3 - 1 for byte in part for k in range(5)],
        moved=6 * MILLION,
        parts=10_000 / MILLION,
    )


def bench_jvp_engine(versus):
    """Directional derivatives of 256 sparse probes, beside one torch.func.jvp a probe.

    The roof: one pass over the net, and every probe's tangent through the last layer.
    """
    net = ternarize(nn.Sequential(nn.Linear(784, 256), nn.LayerNorm(256), nn.ReLU(), nn.Linear(256, 10)), Noise(0))
    weights = sum(weight.numel() for weight in net.parameters())
    inputs, labels = Noise(3).uniform(256 * 784).view(256, 784).sub_(0.3), Noise(4).integers(256, 10)
    probes, part = SparseProbes(Noise(1), weights, 256, 16 / weights), 4
    rows, found = torch.zeros(part, weights), probes.entries(0, part)
    rows[found.probe, found.position] = found.sign.float()
    versus(
        lambda: alignments(net, inputs, labels, probes),
        lambda: plain_alignments(net, inputs, labels, rows),
        flops=2 * 256 * weights + 256 * 2 * 256 * 256 * 10,
        parts=part / 256,
    )


def bench_block_step(versus):
    """A training step of one Figure-6 block at MNIST shapes, beside the plain loop's; the roof is its operations."""
    loop, state = ready(NoPropDT(blocks=1), made_up("mnist"), Compute.find("cpu", "float32"))
    plain, batch = PlainNoProp(1, 28, 10, blocks=1), loop.batch(0)
    flops = count_flops(loop, state)
    versus(lambda: loop.take_step(state), lambda: plain.step(batch.inputs.contiguous(), batch.targets), flops=flops)


def bench_replay(versus, tmp_path: Path):
    """Twenty logged steps of 256 sparse probes into a million ternary weights, beside drawing the probes densely.

    The roof is reading and writing every weight that a probe touches.
    """
    net, count, steps = TernaryLinear(1024, 1024), 256, 20
    weights = 1024 * 1024
    table = (("weight", "int8", (1024, 1024)),)
    log = LogWriter.create(tmp_path / "log", Header({"name": "benchmark"}, {}, "nothing", 0, table, (), ""))
    for step in range(steps):
        noise = Noise(0).stream("probes").at(step)
        log.append(Seeded(noise.stream("s").signs(count).long(), SparseProbes(noise, weights, count, 16 / weights)))
    log.commit()
    log.close()
    flat = net.weight.data.view(-1)

    def replay() -> None:
        for _, update in LogReader(tmp_path / "log").records():
            position, value = update.probes.weighted_sum(update.coefs)
            flat[position] = (flat[position] - value.clamp_(-1, 1).to(torch.int8)).clamp_(-1, 1)

    def dense() -> None:
        drawn = Noise(0).stream("dense").sparse_signs(weights, 16 / weights)
        flat.sub_(drawn).clamp_(-1, 1)

    versus(replay, dense, moved=2 * 16 * count * steps, parts=1 / (count * steps))
