"""Step logs: what is written is what is read, replay is bitwise training, and damage costs only what lies behind it."""

import dataclasses
import itertools
import json
import math
import os
import resource
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

from sidestep import Options, checkpoint, load_run, train
from sidestep.cli import main
from sidestep.errors import CheckpointError, InputError
from sidestep.nets.ternary.layers import TernaryLinear, ternary_parameters
from sidestep.noise import Noise
from sidestep.probes import RankOneProbes, SparseProbes
from sidestep.rules import RULES, Task
from sidestep.rules.takes import Takes
from sidestep.steplog import Header, LogReader, LogWriter, rebuild, summary, writer
from sidestep.steplog.codecs import seeded
from sidestep.steplog.codecs.entropy import TOTAL, AnsWriter, frequencies
from sidestep.steplog.codecs.flips import least_bits
from sidestep.steplog.codecs.seeded import work_of
from sidestep.steplog.codecs.trits import TritsCodec
from sidestep.steplog.format import MOST_WORK
from sidestep.steplog.header import digest_of
from sidestep.training import Stopped
from sidestep.training.progress import Silent
from sidestep.update import Dense, Flips, Seeded
from tests.reference.replay_plain import rebuilt, start_weights
from tests.reference.steplog_plain import PlainAns, read_log
from tests.reference.steplog_sample import write_sample

GOLDEN = Path(__file__).parents[1] / "golden" / "steps.steplog"


@dataclass(frozen=True)
class Toy:
    """Draws its updates from the noise; what it learns is nothing."""

    name: ClassVar[str] = "toy"
    summary: ClassVar[str] = "a rule for tests"
    readings: ClassVar[tuple[str, ...]] = ("forward",)
    for_inference: ClassVar[tuple[str, ...]] = ()
    takes: ClassVar[Takes] = Takes(log="yes", optimizer=False)
    kind: str = "sparse"
    probes: int = 16
    hidden: tuple[int, ...] = (12,)

    def build(self, task, noise, examples, module):
        sizes = [math.prod(task.image_shape), *self.hidden, task.classes]
        layers = [TernaryLinear(a, b, bias=True) for a, b in itertools.pairwise(sizes)]
        for index, layer in enumerate(layers):
            layer.draw(noise.sub(index))
        net = nn.Sequential(*layers)
        net.register_buffer("schedule", torch.zeros(2, dtype=torch.float64))
        return net

    def units(self, net):
        return {"net": [name for name, _ in net.named_parameters()]}

    def optimizer(self, net):
        return torch.optim.SGD(net.parameters(), lr=1.0)

    def estimate(self, net, batch, noise):
        pixels = int(batch.inputs.double().abs().sum())  # so that a step depends on its batch
        schedule = net.schedule + torch.tensor([1.0, float(pixels)], dtype=torch.float64)
        losses = {"toy: nothing": torch.tensor(1.0 + pixels % 7)}
        return self.draw(net, noise, pixels % 1000 + int(net.schedule[1]) % 1000, {"schedule": schedule}, losses)

    def draw(self, net, noise, extra, statistics, losses):
        weights = sum(parameter.numel() for parameter in net.parameters())
        if self.kind == "dense":
            return Dense({}, statistics, losses)
        if self.kind == "flips":
            count = 3 + noise.step % 3
            places = noise.stream("places").sub(extra).permutation(weights)[:count].sort().values
            return Flips(places, noise.stream("moves").signs(count), statistics, losses)
        steady = self.kind == "median"
        density = 3 / weights if steady or noise.step % 16 < 8 else 5.5 / weights
        count = self.probes if steady else self.probes + noise.step // 16 % 2
        coefs = noise.stream("trits").sub(extra).integers(count, 3) - 1
        if steady:
            order = noise.stream("trits").sub(extra).permutation(count)
            coefs = torch.where(order < count // 2, noise.stream("sign").signs(count), 0)
        shapes = tuple((parameter.shape[0], parameter.numel() // parameter.shape[0]) for parameter in net.parameters())
        probes = (
            RankOneProbes(noise.stream("probes"), shapes, count)
            if self.kind == "rank one"
            else SparseProbes(noise.stream("probes"), weights, count, density, exclusive=self.kind == "exclusive")
        )
        return Seeded(coefs.float(), probes, statistics, losses)

    def decide(self, net, update, optimizer):
        return update

    def apply(self, net, update, optimizer):
        position, value = torch.empty(0, dtype=torch.int64), torch.empty(0)
        if isinstance(update, Flips):
            position, value = update.positions, -update.moves.long()
        elif isinstance(update, Seeded):
            position, value = update.probes.weighted_sum(update.coefs)
        flat = torch.cat([parameter.flatten() for parameter in net.parameters()]).long()
        flat[position] = (flat[position] - value.long()).clamp(-1, 1)
        at = 0
        for parameter in net.parameters():
            parameter.copy_(flat[at : at + parameter.numel()].view_as(parameter))
            at += parameter.numel()
        for name, buffer in update.statistics.items():
            net.get_buffer(name).copy_(buffer)

    def predict(self, net, images, noise, start=0, names=None):
        hidden = images.flatten(1)
        for layer in net:
            hidden = layer(hidden)
        return {"forward": hidden.float().softmax(1)}

    def diagnostics(self, net):
        return {}


KINDS = ("sparse", "exclusive", "median", "rank one", "flips")
each_kind = pytest.mark.parametrize("kind", KINDS)
TASK = Task((1, 2, 3), ("a", "b"), (0.5,), (0.25,))


@pytest.fixture(autouse=True)
def toy_rule(monkeypatch):
    monkeypatch.setitem(RULES, "toy", Toy)


def made(path, kind="sparse", steps=40, commits=(10, 20, 30), seed=3, rule=None):
    """Write a log of a net of 110 weights; return its net and the updates."""
    rule = rule or Toy(kind)
    net = rule.build(TASK, Noise(seed).stream("build"), None, None)
    log = LogWriter.create(path, Header.of(net, rule, TASK, "nothing", seed, None))
    optimizer, updates = rule.optimizer(net), []
    for step in range(steps):
        if step in commits:
            log.commit()
        schedule = {"schedule": net.schedule + step}
        update = rule.draw(net, Noise(seed).stream("estimate").at(step), step, schedule, {})
        log.append(update)
        rule.apply(net, update, optimizer)
        updates.append(update)
    log.commit()
    log.close()
    return net, updates


def same(one, other):
    if isinstance(one, Flips):
        return torch.equal(one.positions, other.positions) and torch.equal(one.moves, other.moves)
    return one.probes == other.probes and torch.equal(one.coefs.long(), other.coefs.long())


def digits(tmp_path, name="run", rule=None, **options):
    given = {"epochs": 1, "out": tmp_path / name, **options}
    return train(rule or Toy(), "digits", Options(**given))


class StopAfter(Silent):
    """Stops a run as a kill would: after a step, without a word."""

    def __init__(self, step):
        self.last = step
        self.said = []

    def step(self, step, examples):
        if step == self.last:
            raise KeyboardInterrupt("killed")  # which nothing is saved for

    def notice(self, text):
        self.said.append(text)


class TestLog:
    @each_kind
    def test_gives_back_every_update_exactly(self, tmp_path, kind):
        _, updates = made(tmp_path / "log", kind)
        found = list(LogReader(tmp_path / "log").records())
        assert [step for step, _ in found] == list(range(40))
        assert all(same(one, other) for one, (_, other) in zip(updates, found, strict=True))

    @each_kind
    def test_is_read_by_a_plain_program_that_follows_the_document(self, tmp_path, kind):
        _, updates = made(tmp_path / "log", kind, steps=25)
        header, steps = read_log((tmp_path / "log").read_bytes())
        assert header["seed"] == 3
        assert len(steps) == 25
        for update, found in zip(updates, steps, strict=True):
            if kind == "flips":
                moves = zip(update.positions.tolist(), update.moves.tolist(), strict=True)
                assert found == list(moves)
            else:
                assert found["trits"] == update.coefs.long().tolist()
                assert found["stream"] == update.probes.noise.stream_id
                if kind != "rank one":
                    assert found["density"] == update.probes.density

    @pytest.mark.parametrize("options", [
        {"estimator": "weight-probes", "probes": 6, "schedule": "loss-triggered"},
        {"estimator": "weight-probes", "probes": 5, "exclusive": True, "density": 0.01, "schedule": "constant"},
        {"estimator": "weight-probes", "probes": 3, "density": 1.0, "schedule": "constant"},
        {"estimator": "rank-one", "update": "clamped-sum"},
        {"estimator": "rank-one", "threshold": 20},
        {"estimator": "local-losses", "update": "accumulators", "density": 0.5, "threshold": 2},
        {"estimator": "local-losses", "flip_share": 0.02},
        {"update": "sets", "flip_share": 0.1, "set_size": 3},
    ], ids=str)  # fmt: skip
    def test_a_plain_program_rebuilds_a_trained_net_by_the_document(self, tmp_path, options):
        rule = RULES["noise-step"](hidden=(3, 2), bias=True, **options)
        net = digits(tmp_path, rule=rule, batch=256, epochs=1).net
        weights = torch.cat([parameter.flatten() for parameter in net.parameters()])
        data, buffers = (tmp_path / "run/steps.steplog").read_bytes(), {}
        assert rebuilt(data) == weights.tolist()
        header, _ = read_log(data, buffers)
        assert start_weights(header) != weights.tolist()
        assert all(found == net.get_buffer(name).numpy().tobytes() for name, found in buffers.items())
        assert ("schedule" in buffers) == (options.get("schedule") == "loss-triggered")

    @each_kind
    def test_rebuilds_the_weights_bit_for_bit(self, tmp_path, kind):
        net, _ = made(tmp_path / "log", kind)
        found = rebuild(tmp_path / "log")
        assert digest_of(found.net) == digest_of(net)
        assert torch.equal(found.net.schedule, net.schedule)
        assert found.damage is None

    @each_kind
    def test_any_step_and_any_layer_can_be_had_alone(self, tmp_path, kind):
        made(tmp_path / "short", kind, steps=17)
        made(tmp_path / "log", kind)
        assert digest_of(rebuild(tmp_path / "log", to_step=17).net) == digest_of(rebuild(tmp_path / "short").net)
        whole = dict(rebuild(tmp_path / "log").net.named_parameters())
        start = dict(rebuild(tmp_path / "log", to_step=0).net.named_parameters())
        for only in ("0", "1.weight"):
            found = rebuild(tmp_path / "log", only=only)
            for name, parameter in found.net.named_parameters():
                expected = whole if name in found.names else start
                assert torch.equal(parameter, expected[name]), name
            assert all(name.startswith(only) for name in found.names)

    def test_holds_both_kinds_of_steps_in_turn(self, tmp_path):
        rules, seed = (Toy("median"), Toy("flips")), 1
        net = rules[0].build(TASK, Noise(seed).stream("build"), None, None)
        log = LogWriter.create(tmp_path / "log", Header.of(net, rules[0], TASK, "x", seed, None))
        updates = [rules[step // 3 % 2].draw(net, Noise(seed).at(step), 0, {}, {}) for step in range(12)]
        for update in updates:
            log.append(update)
        log.commit()
        reader = LogReader(tmp_path / "log")
        assert all(same(one, other) for one, (_, other) in zip(updates, reader.records(), strict=True))
        assert reader.scan().blocks == 4
        assert reader.scan().flips == 6

    def test_one_trit_per_probe_takes_less_than_its_entropy_bound(self, tmp_path):
        made(tmp_path / "log", steps=500, commits=range(100, 500, 100), rule=Toy("median", probes=128, hidden=(64,)))
        bits = 8 * (tmp_path / "log").stat().st_size
        probes = sum(update.coefs.numel() for _, update in LogReader(tmp_path / "log").records())
        head = len(LogReader(tmp_path / "log").header.to_bytes()) * 8
        assert (bits - head) / probes <= 1.52

    def test_flips_take_little_more_than_the_least_possible(self, tmp_path):
        weights, noise, seed = 200_000, Noise(5), 5
        header = Header({"name": "toy"}, {}, "x", seed, (("w", "int8", (weights,)),), (), "")
        log = LogWriter.create(tmp_path / "log", header)
        least = 0.0
        for step, count in enumerate([400, 200, 20, 1, 0, 3000, 100_000, 199_999, 200_000]):
            places = noise.at(step).permutation(weights)[:count].sort().values
            log.append(Flips(places, noise.stream("m").at(step).signs(count)))
            least += least_bits(count, weights)
        size, _ = log.commit()
        found = [update.positions.numel() for _, update in LogReader(tmp_path / "log").records()]
        assert found == [400, 200, 20, 1, 0, 3000, 100_000, 199_999, 200_000]
        assert 8 * (size - len(header.to_bytes())) < 1.01 * least

    @pytest.mark.parametrize(
        "limit", [(writer, "MOST_STEPS", 15), (writer, "BLOCK_BYTES", 40), (TritsCodec, "most", 160)]
    )
    def test_a_long_run_is_written_in_blocks(self, tmp_path, monkeypatch, limit):
        monkeypatch.setattr(*limit)
        made(tmp_path / "log", "median", commits=())
        scan = LogReader(tmp_path / "log").scan()
        assert scan.steps == 40
        assert scan.blocks >= 3

    def test_what_a_density_is_comes_back_to_the_last_bit(self, tmp_path):
        _, updates = made(tmp_path / "log", "sparse")
        densities = {update.probes.density for _, update in LogReader(tmp_path / "log").records()}
        assert densities == {update.probes.density for update in updates}
        assert len(densities) == 2

    def test_the_bytes_are_those_of_the_golden_log(self, tmp_path):
        """Another format needs a new FORMAT, a line in CHANGELOG.md, and a new file here."""
        write_sample(tmp_path / "log", steps=26)
        assert (tmp_path / "log").read_bytes() == GOLDEN.read_bytes()
        assert len(list(LogReader(GOLDEN).records())) == 26
        assert len(read_log(GOLDEN.read_bytes())[1]) == 26


class TestFrequencies:
    def test_are_whole_and_sum_to_the_total(self):
        for counts in ([0, 5], [1] * 300, [10**30, 1, 0], [7, 0, 0]):
            found = frequencies(counts)
            assert found.sum() == TOTAL
            assert found.min() >= 1

    def test_are_what_the_coder_uses(self):
        """A plain decoder with these whole numbers reads what constriction wrote from floats."""
        table = frequencies([3, 1, 0, 9, 2])
        symbols = Noise(0).integers(500, 5).numpy()
        coder = AnsWriter()
        coder.put(symbols, table)
        ans = PlainAns(coder.to_bytes())
        assert [ans.get(table.tolist()) for _ in range(500)] == symbols.tolist()
        assert ans.empty


class TestDamage:
    @each_kind
    def test_all_whole_blocks_before_a_cut_are_used(self, tmp_path, kind):
        rule = Toy(kind, probes=5, hidden=())
        _, updates = made(tmp_path / "log", steps=24, commits=(2, 11), rule=rule)
        data, cut = (tmp_path / "log").read_bytes(), tmp_path / "cut"
        ends = [block.end for block in LogReader(tmp_path / "log").blocks()]
        begin = len(LogReader(tmp_path / "log").header.to_bytes())
        for size in range(len(data)):
            cut.write_bytes(data[:size])
            if size < begin:
                with pytest.raises(CheckpointError):
                    LogReader(cut)
                continue
            reader = LogReader(cut)
            found = [update for _, update in reader.records()]
            whole = sum(end <= size for end in ends)
            assert len(found) == (0, 2, 11, 24)[whole]
            assert all(same(one, other) for one, other in zip(updates, found, strict=False))
            assert (reader.damage is None) == (size in (begin, *ends))

    def test_blocks_out_of_order_are_found(self, tmp_path):
        made(tmp_path / "log", "median", steps=12, commits=(3, 6, 9))
        data, bad = (tmp_path / "log").read_bytes(), tmp_path / "bad"
        ends = [block.end for block in LogReader(tmp_path / "log").blocks()]
        begin = len(LogReader(tmp_path / "log").header.to_bytes())
        head, *parts = (data[a:b] for a, b in zip((0, begin, *ends), (begin, *ends), strict=False))
        for order in ((1, 0, 2, 3), (0, 0, 1, 2), (0, 2, 3), (0, 1, 3, 2), (3,)):
            bad.write_bytes(head + b"".join(parts[index] for index in order))
            reader = LogReader(bad)
            right = sum(1 for _ in filter(lambda pair: pair[0] == pair[1], enumerate(order)))
            assert len(list(reader.records())) <= 3 * right
            assert reader.damage

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda d: b"x" + d[1:], "not a step log"),
            (lambda d: d[:8] + (99).to_bytes(4, "little") + d[12:], "upgrade sidestep"),
            (lambda d: d[:12] + (2**32 - 1).to_bytes(4, "little") + d[16:], "header has 4,294,967,295 bytes"),
            (lambda d: d[:40] + b"?" + d[41:], "header .* is damaged"),
            (lambda d: b"", "not a step log"),
        ],
    )
    def test_a_damaged_header_is_refused(self, tmp_path, change, message):
        made(tmp_path / "log")
        (tmp_path / "log").write_bytes(change((tmp_path / "log").read_bytes()))
        with pytest.raises(CheckpointError, match=message):
            LogReader(tmp_path / "log")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"noise": "dice/1"}, "dice/1"),
            ({"start": "00"}, "not the one that the log starts from"),
            ({"rule": {"name": "another"}}, "another"),
            ({"rule": {"name": "toy", "hidden": [13]}}, "another net.*0.weight"),
            ({"rule": {"name": "toy", "unknown": 1}}, "cannot be built"),
            ({"module": "Mine"}, "--module"),
        ],
    )
    def test_a_log_that_does_not_fit_is_refused(self, tmp_path, changes, message):
        made(tmp_path / "log")
        header = dataclasses.replace(LogReader(tmp_path / "log").header, **changes)
        LogWriter.create(tmp_path / "log", header).close()
        with pytest.raises((CheckpointError, InputError), match=message):
            rebuild(tmp_path / "log")

    def test_a_missing_log_and_a_step_beyond_it_are_told(self, tmp_path):
        with pytest.raises(CheckpointError, match="there is no step log"):
            rebuild(tmp_path / "log")
        made(tmp_path / "log")
        with pytest.raises(InputError, match="holds 40 steps"):
            rebuild(tmp_path / "log", to_step=41)
        with pytest.raises(InputError, match=r"no layer or parameter 'x'; it has: 0\.weight"):
            rebuild(tmp_path / "log", only="x")

    def test_what_cannot_be_logged_is_refused(self, tmp_path):
        made(tmp_path / "log")
        reader = LogReader(tmp_path / "log")
        log = LogWriter.create(tmp_path / "log", reader.header)
        probes = SparseProbes(Noise(3), 110, 2, 0.1)
        for update in (
            Dense({}),
            Seeded(torch.tensor([0.5, 1.0]), probes),
            Seeded(torch.tensor([1.0, float("nan")]), probes),
            Seeded(torch.ones(2), dataclasses.replace(probes, noise=Noise(4))),
            Seeded(torch.ones(2), dataclasses.replace(probes, weights=111)),
        ):
            with pytest.raises(InputError, match="step 0"):
                log.append(update)
        log.append(Flips(torch.tensor([5, 4]), torch.ones(2)))
        with pytest.raises(InputError, match="ascending"):
            log.commit()
        log.close()


class TestCommands:
    def run(self, capsys, *words, status=None):
        if status is None:
            main(list(map(str, words)))
        else:
            with pytest.raises(SystemExit) as raised:
                main(list(map(str, words)))
            assert raised.value.code == status
        return capsys.readouterr()

    def test_replay_writes_what_training_wrote(self, tmp_path, capsys):
        digits(tmp_path)
        out = tmp_path / "again.safetensors"
        self.run(capsys, "replay", tmp_path / "run", "--out", out)
        trained, _ = checkpoint.load(tmp_path / "run/model.safetensors")
        found, record = checkpoint.load(out)
        assert found.keys() == trained.keys()
        assert all(torch.equal(found[name], trained[name]) for name in found)
        assert record["step"] == 10
        error = self.run(capsys, "replay", tmp_path / "run", "--out", out, status=2).err
        assert "--overwrite" in error
        words = ("replay", tmp_path / "run/steps.steplog", "--only", "1", "--out", out, "--overwrite", "--json")
        assert json.loads(self.run(capsys, *words).out)["parameters"] == ["1.weight", "1.bias"]
        part, _ = checkpoint.load(out)
        assert all(torch.equal(part[name], trained[name]) for name in ("1.weight", "1.bias"))
        assert len(part) == 2

    def test_steps_can_be_left_out(self, tmp_path, capsys):
        digits(tmp_path)
        said = self.run(capsys, "replay", tmp_path / "run", "--drop-steps", "3:5").out
        assert "2 left out: experimental" in said
        assert (
            "begin at 10"
            in self.run(capsys, "replay", tmp_path / "run", "--drop-steps", "10:999999999999", status=2).err
        )
        assert "9 left out" in self.run(capsys, "replay", tmp_path / "run", "--drop-steps", "1:999999999999").out
        assert "0 or more" in self.run(capsys, "replay", tmp_path / "run", "--to-step", "-1", status=2).err
        assert "not supported" in self.run(capsys, "replay", tmp_path / "run", "--device", "meta", status=2).err
        assert "FIRST:END" in self.run(capsys, "replay", tmp_path / "run", "--drop-steps", "5", status=2).err
        assert "holds 10 steps" in self.run(capsys, "replay", tmp_path / "run", "--to-step", "11", status=2).err
        assert "device" in self.run(capsys, "replay", tmp_path / "run", "--device", "abacus", status=2).err

    @pytest.mark.parametrize("kind", ["sparse", "flips"])
    def test_inspect_says_what_is_there(self, tmp_path, capsys, kind):
        run = digits(tmp_path, rule=Toy(kind))
        found = json.loads(self.run(capsys, "inspect", tmp_path / "run", "--json").out)
        assert found["steps"] == run.step
        assert found["damage"] is None
        assert found["bytes"] == (tmp_path / "run/steps.steplog").stat().st_size
        assert found["packed_weights_bytes"] == sum(-(-p.numel() // 5) for p in run.net.parameters())
        assert (found["flips"] is None) == (kind == "sparse")
        log = tmp_path / "run/steps.steplog"
        log.write_bytes(log.read_bytes()[:-1])
        assert "the last block is cut" in self.run(capsys, "inspect", log).out
        assert "first 0 steps are used" in self.run(capsys, "replay", log, status=2).err
        assert "damaged" not in self.run(capsys, "replay", log, "--to-step", "0").err

    def test_verify_finds_a_changed_weight(self, tmp_path, capsys):
        digits(tmp_path)
        run, log = tmp_path / "run", tmp_path / "run/steps.steplog"
        assert "bit for bit" in self.run(capsys, "verify", log, run).out
        for name in ("model.safetensors", "state.safetensors"):
            tensors, record = checkpoint.load(run / name)
            kept = (run / name).read_bytes()
            weight = next(value for key, value in tensors.items() if key.endswith("1.weight"))
            weight[3] = (weight[3] + 1) % 243
            checkpoint.save(run / name, tensors, record)
            assert f"1.weight in {name}" in self.run(capsys, "verify", log, run, status=2).err
            (run / name).write_bytes(kept)
        assert json.loads(self.run(capsys, "verify", log, run, "--json").out)["same"]


class TestRuns:
    @each_kind
    def test_a_run_leaves_a_log_that_gives_its_weights(self, tmp_path, kind):
        run = digits(tmp_path, rule=Toy(kind))
        found = rebuild(tmp_path / "run" / "steps.steplog")
        assert found.step == run.step
        assert digest_of(found.net) == digest_of(run.net)
        assert torch.equal(found.net.schedule, run.net.schedule)

    def test_dense_updates_leave_none(self, tmp_path):
        digits(tmp_path, rule=Toy("dense"))
        assert not (tmp_path / "run" / "steps.steplog").exists()

    @pytest.mark.parametrize("kind", ["sparse", "flips"])
    @pytest.mark.parametrize(
        "lost", ["nothing", "state", "state and metrics", "state and a tail", "state, metrics and config"]
    )
    def test_a_killed_run_goes_on_to_the_same_bits(self, tmp_path, kind, lost):
        rule = Toy(kind)
        whole = digits(tmp_path, "whole", rule, epochs=3)
        killed, options = StopAfter(25), Options(epochs=3, out=tmp_path / "run")
        with pytest.raises(KeyboardInterrupt, match="killed"):
            train(rule, "digits", options, progress=killed)
        folder = tmp_path / "run"
        if "state" in lost:
            (folder / "state.safetensors").unlink()
        if "metrics" in lost:
            (folder / "metrics.jsonl").unlink()
        if "config" in lost:
            (folder / "config.toml").unlink()
            assert [file.name for file in folder.iterdir()] == ["steps.steplog"]
        if "tail" in lost:
            log = folder / "steps.steplog"
            log.write_bytes(log.read_bytes()[:-3])
        listener = StopAfter(-1)
        run = train(rule, "digits", dataclasses.replace(options, resume=True), progress=listener)
        assert digest_of(run.net) == digest_of(whole.net)
        assert torch.equal(run.net.schedule, whole.net.schedule)
        assert (folder / "steps.steplog").stat().st_size
        assert digest_of(rebuild(folder / "steps.steplog").net) == digest_of(whole.net)
        assert bool(listener.said) == ("state" in lost)
        if listener.said:
            assert ("momentum" in listener.said[-1]) == (kind == "flips")
        if lost == "nothing":
            assert (folder / "steps.steplog").read_bytes() == (tmp_path / "whole/steps.steplog").read_bytes()
        if "metrics" not in lost:
            lines = [
                [
                    {key: value for key, value in json.loads(line).items() if key != "seconds"}
                    for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
                ]
                for name in ("run", "whole")
            ]
            assert lines[0] == lines[1]

    def test_a_log_can_be_cut_at_any_step_and_trained_on(self, tmp_path, monkeypatch):
        monkeypatch.setattr(writer, "MOST_STEPS", 1)  # a block for every step
        whole = digits(tmp_path, epochs=2)
        log = tmp_path / "run/steps.steplog"
        blocks = list(LogReader(log).blocks())
        for steps in (17, 13, 1):
            (tmp_path / "run/state.safetensors").unlink()
            (tmp_path / "run/model.safetensors").unlink()
            log.write_bytes(log.read_bytes()[: blocks[steps - 1].end + 7])
            run = digits(tmp_path, epochs=2, resume=True)
            assert digest_of(run.net) == digest_of(whole.net), steps
            assert [block.crc for block in LogReader(log).blocks()] == [block.crc for block in blocks]

    def test_an_altered_log_stops_a_resumed_run_and_a_removed_one_does_not(self, tmp_path):
        digits(tmp_path)
        log = tmp_path / "run/steps.steplog"
        data = log.read_bytes()
        for changed in (data[:-1], data[:-9] + b"?" + data[-8:]):
            log.write_bytes(changed)
            with pytest.raises(CheckpointError, match="counts on"):
                digits(tmp_path, epochs=2, resume=True)
        log.unlink()
        run = digits(tmp_path, epochs=2, resume=True)
        assert run.step == 2 * steps_in(data, tmp_path)
        assert not log.exists()

    def test_a_log_of_another_run_is_not_trained_on(self, tmp_path):
        digits(tmp_path, "one", seed=1)
        digits(tmp_path, "two", Toy("median"), seed=1)
        (tmp_path / "one/state.safetensors").unlink()
        shutil.copy(tmp_path / "two/steps.steplog", tmp_path / "one/steps.steplog")
        with pytest.raises(CheckpointError, match="another run"):
            digits(tmp_path, "one", seed=1, resume=True)

    def test_a_stop_commits_the_log_with_the_state(self, tmp_path):
        class Stop(Silent):
            def step(self, step, examples):
                if step == 4:
                    os.kill(os.getpid(), signal.SIGTERM)

        with pytest.raises(Stopped):
            train(Toy(), "digits", Options(epochs=1, out=tmp_path / "run"), progress=Stop())
        _, record = checkpoint.load(tmp_path / "run/state.safetensors")
        assert record["step"] == 4
        assert record["steplog_bytes"] == (tmp_path / "run/steps.steplog").stat().st_size
        assert LogReader(tmp_path / "run/steps.steplog").scan().steps == 4

    def test_overwriting_a_run_removes_its_log(self, tmp_path):
        digits(tmp_path)
        digits(tmp_path, rule=Toy("dense"), overwrite=True)
        assert not (tmp_path / "run/steps.steplog").exists()

    def test_a_run_is_evaluated_from_packed_weights(self, tmp_path):
        run = digits(tmp_path)
        found = load_run(tmp_path / "run")
        assert not dict(found.net.named_parameters())
        assert ternary_parameters(run.net)
        images = torch.arange(2 * 64, dtype=torch.float32).view(2, 1, 8, 8)
        wanted = run.predict(images.to(getattr(torch, run.task.pixels)))
        assert torch.equal(found.predict(images.to(getattr(torch, run.task.pixels))), wanted)

    def test_trits_have_no_moving_average(self, tmp_path):
        with pytest.raises(InputError, match=r"leave --average out"):
            digits(tmp_path, average=0.9)
        assert not (tmp_path / "run").exists()


class TestHostile:
    """What anybody may have written: refused at little cost."""

    @pytest.mark.parametrize(
        "probes",
        [
            SparseProbes(Noise(3), 110, 1 << 22, 1.0 - 2**-10),
            SparseProbes(Noise(3), 110, 1 << 22, 0.5, exclusive=True),
        ],
    )
    def test_work_within_the_limit_is_read(self, probes):
        assert work_of(probes) <= MOST_WORK

    @pytest.mark.parametrize("kind", ["sparse", "rank one"])
    def test_steps_that_would_take_too_long_are_refused_by_writer_and_reader(self, tmp_path, monkeypatch, kind):
        header = Header({"name": "toy"}, {}, "x", 3, (("w", "int8", (1 << 20,)),), (), "")
        probes = SparseProbes(Noise(3), 1 << 20, 1 << 12, 1.0)
        if kind == "rank one":
            probes = RankOneProbes(Noise(3), ((1 << 10, 1 << 10),), 2_000_000)
        update = Seeded(torch.zeros(probes.count), probes)
        log = LogWriter.create(tmp_path / "log", header)
        with pytest.raises(InputError, match="within limits"):
            log.append(update)
        monkeypatch.setattr(seeded, "MOST_WORK", math.inf)
        log.append(update)
        log.commit()
        log.close()
        reader = LogReader(tmp_path / "log")
        assert list(reader.records()) == []
        assert "operations" in reader.damage

    @pytest.mark.parametrize(
        "changes",
        [
            {"rule": {"name": "toy", "hidden": [1 << 40]}},
            {"rule": {"name": "toy", "hidden": [1 << 23, 1 << 23]}},
            {"rule": {"name": "toy", "hidden": [1 << 24]}},
            {"rule": {"name": "toy", "hidden": "abc"}},
            {"rule": {"name": "toy", "hidden": [-3]}},
            {"task": {**dataclasses.asdict(TASK), "image_shape": [1 << 20] * 3}},
            {"task": {**dataclasses.asdict(TASK), "image_shape": [1.5, 2, 3]}},
            {"task": {}},
        ],
    )
    def test_a_header_that_asks_for_a_huge_net_is_refused_at_once(self, tmp_path, changes):
        made(tmp_path / "log")
        header = dataclasses.replace(LogReader(tmp_path / "log").header, **changes)
        LogWriter.create(tmp_path / "log", header).close()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(CheckpointError, match="cannot be built"):
            rebuild(tmp_path / "log")
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 19  # kB

    @pytest.mark.parametrize(
        "changes",
        [
            {"data": 3},
            {"start": None},
            {"module": 1},
            {"task": []},
            {"sidestep": {}},
            {"seed": True},
            {"seed": -1},
            {"training": "x"},
            {"rule": {}},
            {"parameters": (("w", "int8", (-1,)),)},
            {"parameters": (("w", "int8", (1 << 40,)),)},
            {"parameters": (("w", "int8", (1.5,)),)},
            {"parameters": ((1, "int8", (2,)),)},
            {"buffers": (("w", "nn", (2,)),)},
            {"buffers": (("w", "float32", (1 << 30, 1 << 30)),)},
        ],
    )
    def test_every_entry_of_a_header_is_checked(self, changes):
        header = Header({"name": "toy"}, {}, "x", 3, (("w", "int8", (2,)),), (), "")
        entries = {**dataclasses.asdict(dataclasses.replace(header, **changes)), "table": header.table}
        if "parameters" not in changes:
            assert Header.parse(json.dumps({**dataclasses.asdict(header), "table": header.table}).encode()) == header
        with pytest.raises(CheckpointError, match="header is damaged"):
            Header.parse(json.dumps(entries).encode())

    def test_buffers_must_be_those_of_the_net(self, tmp_path):
        made(tmp_path / "log")
        for table in ((), (("schedule", "float64", (1,)),), (("schedule", "float32", (2,)),)):
            header = dataclasses.replace(LogReader(tmp_path / "log").header, buffers=table)
            LogWriter.create(tmp_path / "other", header).close()
            with pytest.raises(CheckpointError, match=r"another net.*buffers"):
                rebuild(tmp_path / "other")

    def test_what_is_no_file_is_no_log(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        for name in ("pipe", "."):
            with pytest.raises(CheckpointError, match="no file"):
                LogReader(tmp_path / name)

    def test_inspect_shows_no_markup_and_no_escapes(self, tmp_path, capsys):
        made(tmp_path / "log")
        header = dataclasses.replace(LogReader(tmp_path / "log").header, data="[red]\x1b[2Jx[/nothing]")
        LogWriter.create(tmp_path / "log", header).close()
        main(["inspect", str(tmp_path / "log")])
        said = capsys.readouterr().out
        assert "\x1b" not in said
        assert r"[red]\x1b[2Jx[/nothing]" in said

    def test_inspect_leaves_out_what_says_nothing_of_an_attached_module(self, tmp_path, capsys):
        made(tmp_path / "log")
        known = LogReader(tmp_path / "log").header
        assert "hidden" in summary(LogReader(tmp_path / "log"))["options"]
        tuned = dataclasses.replace(known, attached=True, data="", training={"tune": {"base": "models/bert"}})
        LogWriter.create(tmp_path / "log", tuned).close()
        assert "hidden" not in summary(LogReader(tmp_path / "log"))["options"]
        main(["inspect", str(tmp_path / "log")])
        names = {line.split("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
        assert "data" not in names
        assert "models/bert" in names["base"]

    @pytest.mark.parametrize("hidden", [(3000, 2000), (12,) * 300])
    def test_a_large_honest_net_is_within_its_budget(self, tmp_path, hidden):
        net, _ = made(tmp_path / "log", steps=1, commits=(), rule=Toy(hidden=hidden))
        assert digest_of(rebuild(tmp_path / "log").net) == digest_of(net)

    def test_a_rule_of_the_library_is_within_its_budget(self, tmp_path):
        digits(tmp_path, rule=RULES["noise-step"](), batch=512)
        assert rebuild(tmp_path / "run/steps.steplog").buffers_step > 0


class TestBuffers:
    def test_a_step_within_a_block_says_whose_buffers_it_has(self, tmp_path, capsys):
        made(tmp_path / "log")  # blocks end at 10, 20, 30, 40
        for step, around in ((0, (0, 0)), (10, (10, 10)), (17, (10, 20)), (40, (40, 40))):
            found = rebuild(tmp_path / "log", to_step=step)
            assert (found.buffers_step, found.next_buffers_step) == around
            assert found.stale_buffers == (("schedule",) if step == 17 else ())
        main(["replay", str(tmp_path / "log"), "--to-step", "17"])
        said = " ".join(capsys.readouterr().err.split())
        assert "--to-step 10 or --to-step 20" in said
        assert "are those of step 10" in said

    def test_a_block_without_its_last_step_keeps_its_buffers(self, tmp_path):
        net, _ = made(tmp_path / "log")
        found = rebuild(tmp_path / "log", drop=range(39, 40))
        assert found.skipped == 1
        assert torch.equal(found.net.schedule, net.schedule)

    def test_verify_compares_the_weights_alone_within_a_block(self, tmp_path, capsys):
        digits(tmp_path)
        (tmp_path / "run/model.safetensors").unlink()
        tensors, record = checkpoint.load(tmp_path / "run/state.safetensors")
        part = rebuild(tmp_path / "run/steps.steplog", to_step=7).net.state_dict()
        tensors |= {f"net/{name}": value for name, value in part.items()}
        tensors["net/schedule"] = torch.tensor([1.0, 2.0], dtype=torch.float64)
        checkpoint.save(tmp_path / "run/state.safetensors", tensors, {**record, "step": 7})
        main(["verify", str(tmp_path / "run"), str(tmp_path / "run")])
        assert "not compared" in capsys.readouterr().out

    def test_many_buffers_fit_and_too_many_are_found_at_the_first_step(self, tmp_path):
        for size, fits in ((20_000, True), (3 << 20, False)):
            header = Header(
                {"name": "toy"}, {}, "x", 3, (("w", "int8", (110,)),), (("b", "float64", (size,)),), ""
            )  # fmt: skip
            log = LogWriter.create(tmp_path / "log", header)
            values = {"b": torch.arange(size, dtype=torch.float64)}
            update = Flips(torch.tensor([3]), torch.ones(1), values)
            if not fits:
                with pytest.raises(InputError, match="a log takes"):
                    log.append(update)
                continue
            log.append(update)
            log.commit()
            [(_, found)] = LogReader(tmp_path / "log").records()
            assert torch.equal(found.statistics["b"], values["b"])


class TestLosses:
    """Nothing that was trained is lost by --resume without being said."""

    def killed(self, tmp_path, monkeypatch):
        monkeypatch.setattr(writer, "MOST_STEPS", 4)
        with pytest.raises(KeyboardInterrupt, match="killed"):
            train(Toy(), "digits", Options(epochs=3, out=tmp_path / "run"), progress=StopAfter(25))
        (tmp_path / "run/state.safetensors").unlink()
        return tmp_path / "run/steps.steplog"

    @pytest.mark.parametrize("place", ["inside", "length"])
    def test_a_log_that_is_damaged_inside_is_not_cut(self, tmp_path, monkeypatch, place):
        log = self.killed(tmp_path, monkeypatch)
        data, blocks = bytearray(log.read_bytes()), list(LogReader(log).blocks())
        data[blocks[1].end + (30 if place == "inside" else 22)] ^= 64  # the third block's, or its length's high bytes
        log.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"first 8 steps are good.*--to-step 8"):
            digits(tmp_path, epochs=3, resume=True)
        assert log.read_bytes() == data

    def test_a_cut_tail_is_told(self, tmp_path, monkeypatch):
        log = self.killed(tmp_path, monkeypatch)
        log.write_bytes(log.read_bytes()[:-3])
        listener = StopAfter(-1)
        train(Toy(), "digits", Options(epochs=3, out=tmp_path / "run", resume=True), progress=listener)
        assert "steps are kept" in listener.said[0]

    @pytest.mark.parametrize("log", ["cut", "cut between blocks", "gone"])
    def test_a_trained_model_is_not_removed(self, tmp_path, monkeypatch, log):
        monkeypatch.setattr(writer, "MOST_STEPS", 4)
        digits(tmp_path)
        run, path = tmp_path / "run", tmp_path / "run/steps.steplog"
        (run / "state.safetensors").unlink()
        end = list(LogReader(path).blocks())[1].end
        path.write_bytes(path.read_bytes()[: {"cut": -3, "gone": 0}.get(log, end)])
        if log == "gone":
            path.unlink()
        kept = {file.name: file.read_bytes() for file in run.iterdir()}
        with pytest.raises(CheckpointError, match="had finished"):
            digits(tmp_path, epochs=2, resume=True)
        assert kept == {file.name: file.read_bytes() for file in run.iterdir()}

    def test_other_options_do_not_go_on_from_a_log(self, tmp_path):
        digits(tmp_path, "one", batch=128)
        digits(tmp_path, "two", batch=64)
        shutil.copy(tmp_path / "one/steps.steplog", tmp_path / "two/steps.steplog")
        for name in ("state", "model"):
            (tmp_path / f"two/{name}.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"another run.*training.*batch"):
            digits(tmp_path, "two", batch=64, resume=True)

    def test_the_options_that_differ_are_named_alone(self, tmp_path):
        digits(tmp_path, "one", Toy("sparse"))
        (tmp_path / "two").mkdir()
        shutil.copy(tmp_path / "one/steps.steplog", tmp_path / "two/steps.steplog")
        message = r"is of another run \(rule.kind: sparse there, flips here\): use"
        with pytest.raises(CheckpointError, match=message):
            digits(tmp_path, "two", Toy("flips"), resume=True)
        assert [file.name for file in (tmp_path / "two").iterdir()] == ["steps.steplog"]
        with pytest.raises(InputError, match=r"no config.toml"):
            digits(tmp_path, "two", Toy("sparse"))

    def test_a_log_that_is_gone_is_told(self, tmp_path):
        digits(tmp_path)
        (tmp_path / "run/steps.steplog").unlink()
        listener = StopAfter(-1)
        train(Toy(), "digits", Options(epochs=2, out=tmp_path / "run", resume=True), progress=listener)
        assert "cannot be replayed" in listener.said[0]


def steps_in(data, tmp_path):
    (tmp_path / "copy").write_bytes(data)
    return LogReader(tmp_path / "copy").scan().steps
