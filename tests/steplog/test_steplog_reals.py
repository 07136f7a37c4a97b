"""The step log of floats: numbers along dense probes, replayed through the optimiser to the bits of training."""

import copy
import dataclasses
import itertools
import json
import math
import struct
import time
from dataclasses import replace

import pytest
import torch

from sidestep import Options, attach, checkpoint, data, replay, train
from sidestep.cli import main
from sidestep.errors import CheckpointError, InputError
from sidestep.noise import Noise
from sidestep.probes import DenseProbes
from sidestep.rules import SPSA, Evolution, Task
from sidestep.rules.shared.forward_only import LOGGED, OPTIMIZERS
from sidestep.schedule import rate_factor
from sidestep.steplog import Header, LogReader, LogWriter, Recorder, rebuild, writer
from sidestep.steplog.codecs.reals import decode_reals, encode_reals
from sidestep.steplog.format import MOST_COEFS, REALS, DamagedLogError, varint
from sidestep.steplog.header import digest_of
from sidestep.training.loop import Loop
from sidestep.training.options import Compute
from sidestep.training.progress import Silent
from sidestep.training.state import State
from sidestep.update import Seeded
from tests.reference.replay_plain import PlainPoint
from tests.reference.steplog_plain import read_log
from tests.reference.steplog_sample import sample_update, write_sample

TINY = SPSA(hidden=(4,), pairs=2, learning_rate=0.01)


def weights(net):
    return {name: parameter.detach().clone() for name, parameter in net.named_parameters()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def logged(path, rule, steps=8, commits=(3,), **options):
    """Take training steps and log them; return the weights before the first and after every step."""
    digits = data.load("digits")
    task = Task.of(digits)
    net = rule.build(task, Noise(0).stream("build"), digits.train, None)
    recorder = Recorder(path, lambda net: Header.of(net, rule, task, "digits", 0, None))
    given = Options(batch=64, epochs=1, **options)
    loop = Loop(rule, digits, given, Compute.find("cpu", "float32"), None, recorder)
    state, seen = State(net, rule.optimizer(net)), [weights(net)]
    for step in range(steps):
        if step in commits:
            recorder.commit()
        loop.take_step(state)
        seen.append(weights(net))
    recorder.commit()
    recorder.close()
    return seen


def begin_of(log):
    return len(LogReader(log).header.to_bytes())


class TestReplay:
    @pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
    @pytest.mark.parametrize("kind", ["plain-sgd", "sgd", "adamw"])
    @pytest.mark.parametrize("decay", ["none", "cosine"])
    def test_every_step_comes_back_bit_for_bit(self, tmp_path, distribution, kind, decay):
        rule = dataclasses.replace(TINY, distribution=distribution, optimizer_kind=kind, weight_decay=0.01)
        seen = logged(tmp_path / "log", rule, decay=decay, warmup=0.1)
        assert all(not same(*pair) for pair in itertools.pairwise(seen))
        for step in (0, 1, 3, 6, 8):
            assert same(weights(rebuild(tmp_path / "log", to_step=step).net), seen[step]), step
        assert LogReader(tmp_path / "log").scan().steps_of == {REALS: 8}

    @pytest.mark.parametrize("kind", sorted(LOGGED))
    def test_every_optimiser_is_rebuilt_with_its_memory(self, tmp_path, kind):
        rule = dataclasses.replace(TINY, optimizer_kind=kind, weight_decay=0.01)
        seen = logged(tmp_path / "log", rule, decay="linear")
        found = rebuild(tmp_path / "log")
        assert same(weights(found.net), seen[-1])
        assert found.damage is None

    @pytest.mark.parametrize("kind", ["plain-sgd", "adamw"])
    @pytest.mark.parametrize("only", ["readout", "stages.0.1.bias"])
    def test_a_layer_can_be_had_alone(self, tmp_path, kind, only):
        rule = dataclasses.replace(TINY, optimizer_kind=kind, weight_decay=0.01)
        seen = logged(tmp_path / "log", rule, decay="cosine")
        found = rebuild(tmp_path / "log", only=only)
        assert found.names
        for name, parameter in found.net.named_parameters():
            wanted = seen[-1] if name.startswith(only) else seen[0]
            assert (name in found.names) == name.startswith(only)
            assert torch.equal(parameter, wanted[name]), name

    def test_steps_can_be_left_out(self, tmp_path):
        seen = logged(tmp_path / "log", dataclasses.replace(TINY, optimizer_kind="plain-sgd"))
        assert same(weights(rebuild(tmp_path / "log", drop=range(8)).net), seen[0])
        assert same(weights(rebuild(tmp_path / "log", drop=range(5, 8)).net), seen[5])

    @pytest.mark.parametrize("kind", ["rademacher", "signs", "sparse", "rank-one"])
    def test_a_plain_program_rebuilds_the_net_by_the_document_to_rounding(self, kind, tmp_path):
        rule = dataclasses.replace(TINY, distribution=kind)
        seen = logged(tmp_path / "log", rule, decay="cosine")
        header, steps = read_log((tmp_path / "log").read_bytes())
        total = data.steps_per_epoch(len(data.load("digits").train), 64)
        assert [step["rate"] for step in steps] == [0.01 * rate_factor("cosine", t, total, 0) for t in range(8)]
        sizes = [math.prod(shape) for _, _, shape in header["parameters"]]
        for number_of, (name, _, shape) in enumerate(header["parameters"]):
            found = seen[0][name].double().flatten().tolist()
            for number, step in enumerate(steps):
                for index, coef in enumerate(step["reals"]):
                    point = PlainPoint(0, step["stream"], 0 if kind == "signs" else index, number)
                    signs = [
                        plain_element(kind, point, name, shape, place, sizes, number_of, index)
                        for place in range(min(20, math.prod(shape)))
                    ]
                    found = [w - step["rate"] * coef * s for w, s in zip(found, signs, strict=False)]
            wanted = seen[-1][name].flatten()[: len(found)]
            torch.testing.assert_close(torch.tensor(found), wanted, rtol=1e-5, atol=1e-7)


def plain_element(kind, point, name, shape, place, sizes, number_of, index):
    """One element of a direction, as docs/step-log.md has it."""
    own = point.below(name)
    if kind == "signs":
        return point.sign(index * 128 * math.ceil(sum(sizes) / 128) + sum(sizes[:number_of]) + place)
    if kind == "sparse":
        return 4 * own.below("sign").sign(place) if own.word(place) < 2**28 else 0
    if kind == "rank-one" and len(shape) > 1:
        columns = math.prod(shape[1:])
        return own.below("rows").sign(place // columns) * own.below("columns").sign(place % columns)
    return own.sign(place)


class TestBytes:
    def test_a_step_takes_four_bytes_a_pair_and_eight_for_a_rate_that_changes(self, tmp_path):
        sizes = {}
        for steps in (2, 20):
            for decay in ("none", "cosine"):
                logged(tmp_path / "log", TINY, steps=steps, commits=(), decay=decay)
                sizes[steps, decay] = (tmp_path / "log").stat().st_size
        assert sizes[20, "none"] - sizes[2, "none"] == 18 * 4 * TINY.pairs
        assert sizes[20, "cosine"] - sizes[2, "cosine"] == 18 * (4 * TINY.pairs + 8)

    def test_what_is_read_is_what_was_written(self, tmp_path):
        write_sample(tmp_path / "log")
        found = list(LogReader(tmp_path / "log").records())
        assert [step for step, _ in found] == list(range(32))
        _, plain = read_log((tmp_path / "log").read_bytes())
        for step, update in found[26:]:
            wanted = sample_update(step)
            assert (update.probes, update.rate) == (wanted.probes, wanted.rate)
            assert torch.equal(update.coefs, wanted.coefs)
            assert (plain[step]["reals"], plain[step]["rate"]) == (wanted.coefs.tolist(), wanted.rate)
            assert plain[step]["kind"] == (wanted.probes.distribution == "gaussian")

    def test_a_long_run_is_written_in_blocks(self, tmp_path, monkeypatch):
        monkeypatch.setattr(writer, "BLOCK_BYTES", 40)
        seen = logged(tmp_path / "log", TINY, commits=())
        assert LogReader(tmp_path / "log").scan().blocks == 3
        assert same(weights(rebuild(tmp_path / "log").net), seen[-1])

    def test_inspect_counts_floats_as_floats(self, tmp_path, capsys):
        logged(tmp_path / "log", TINY)
        main(["inspect", str(tmp_path / "log"), "--json"])
        found = json.loads(capsys.readouterr().out)
        assert (found["steps"], found["probes"], found["flips"], found["damage"]) == (8, 16, None, None)
        assert found["packed_weights_bytes"] == 4 * found["weights"] == 4 * (64 * 4 + 4 + 4 * 10 + 10)
        assert found["bits_per_probe"] * 16 == 8 * (found["bytes"] - found["header_bytes"])


class TestDamage:
    def test_all_whole_blocks_before_a_cut_are_used(self, tmp_path):
        log, cut = tmp_path / "log", tmp_path / "cut"
        logged(log, TINY, commits=(2, 5))
        whole, ends = log.read_bytes(), [block.end for block in LogReader(log).blocks()]
        for size in range(begin_of(log), len(whole)):
            cut.write_bytes(whole[:size])
            reader = LogReader(cut)
            assert len(list(reader.records())) == (0, 2, 5, 8)[sum(end <= size for end in ends)]
            assert (reader.damage is None) == (size in (begin_of(log), *ends))

    def test_a_changed_byte_ends_the_replay_before_its_block(self, tmp_path):
        log = tmp_path / "log"
        seen = logged(log, TINY, commits=(2, 5))
        whole, ends = log.read_bytes(), [begin_of(log), *(block.end for block in LogReader(log).blocks())]
        for place in range(ends[0], len(whole), 7):
            log.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
            found = rebuild(log)
            assert found.step == (0, 2, 5)[sum(end <= place for end in ends) - 1]
            assert found.damage
            assert same(weights(found.net), seen[found.step])

    PROBES = DenseProbes(Noise(3), (("w", (10, 11)),), 3)
    HEAD = varint(1) + varint(2) + struct.pack("<BI", 0, 5)

    @pytest.mark.parametrize(
        "payload",
        [
            b"",
            varint(0),
            varint(3),
            HEAD,
            varint(1) + varint(3) + struct.pack("<BI", 0, 5) + varint(3) + struct.pack("<Bd", 0, 0.1) + bytes(36),
            varint(1) + varint(2) + struct.pack("<BI", 5, 5) + varint(3) + struct.pack("<Bd", 0, 0.1) + bytes(24),
            HEAD + varint(0) + struct.pack("<Bd", 0, 0.1),
            HEAD + varint(MOST_COEFS + 1) + struct.pack("<Bd", 0, 0.1) + bytes(24),
            HEAD + varint(3) + struct.pack("<Bd", 2, 0.1) + bytes(24),
            HEAD + varint(3) + struct.pack("<Bd", 0, math.nan) + bytes(24),
            HEAD + varint(3) + struct.pack("<Bd", 0, -0.1) + bytes(24),
            HEAD + varint(3) + struct.pack("<Bd", 1, 0.1),
            HEAD + varint(3) + struct.pack("<Bd", 0, 0.1) + bytes(23),
            HEAD + varint(3) + struct.pack("<Bd", 0, 0.1) + bytes(25),
        ],
    )
    def test_a_payload_that_nobody_wrote_is_refused(self, payload):
        with pytest.raises(DamagedLogError):
            decode_reals(payload, 2, Noise(3), self.PROBES.parameters)

    def test_the_same_payload_in_order_is_read(self):
        found = decode_reals(
            self.HEAD + varint(3) + struct.pack("<Bd6f", 0, 0.1, *range(6)), 2, Noise(3), (("w", (2,)),)
        )
        assert [update.coefs.tolist() for update in found] == [[0, 1, 2], [3, 4, 5]]
        assert [update.rate for update in found] == [0.1, 0.1]
        assert found[1].probes == DenseProbes(Noise(3, stream_id=5, step=1), (("w", (2,)),), 3)

    def test_steps_that_would_take_too_long_are_refused_by_writer_and_reader(self, tmp_path):
        table = (("w", (1 << 20,)),)
        header = Header({"name": "toy"}, {}, "x", 3, (("w", "float32", (1 << 20,)),), (), "")
        update = Seeded(torch.zeros(4096), DenseProbes(Noise(3), table, 4096), rate=0.1)
        with pytest.raises(InputError, match="within limits"):
            LogWriter.create(tmp_path / "log", header).append(update)
        with pytest.raises(DamagedLogError, match="operations"):
            decode_reals(encode_reals([update]), 1, Noise(3), table)

    def test_what_cannot_be_logged_is_refused(self, tmp_path):
        header = Header({"name": "toy"}, {}, "x", 3, (("w", "float32", (10, 11)),), (), "")
        log, numbers = LogWriter.create(tmp_path / "log", header), torch.tensor([0.5, -2.0, 0.0])
        for update in (
            Seeded(numbers, self.PROBES),
            Seeded(numbers, self.PROBES, rate=math.inf),
            Seeded(numbers.double(), self.PROBES, rate=0.1),
            Seeded(numbers[:2], self.PROBES, rate=0.1),
            Seeded(numbers, dataclasses.replace(self.PROBES, noise=Noise(4)), rate=0.1),
            Seeded(numbers, dataclasses.replace(self.PROBES, parameters=(("v", (10, 11)),)), rate=0.1),
        ):
            with pytest.raises(InputError, match="step 0"):
                log.append(update)
        log.append(Seeded(numbers, self.PROBES, rate=0.1))
        log.close()

    @pytest.mark.parametrize("options", [{"count": 0}, {"count": 1 << 32}, {"distribution": "uniform"}])
    def test_probes_that_cannot_be(self, options):
        with pytest.raises(InputError, match=next(iter(options)).replace("count", "probes")):
            dataclasses.replace(self.PROBES, **options)


class KillAfter(Silent):
    """Stops a run as a kill would: after a step, without a word."""

    def __init__(self, step):
        self.last = step

    def step(self, step, examples):
        if step == self.last:
            raise KeyboardInterrupt("killed")  # which nothing is saved for


class TestRuns:
    @pytest.mark.parametrize("kind", ["plain-sgd", "adamw"])
    @pytest.mark.parametrize("lost", ["nothing", "state", "state and a tail", "state and config"])
    def test_a_killed_run_goes_on_to_the_same_bits(self, tmp_path, kind, lost):
        rule = dataclasses.replace(TINY, optimizer_kind=kind)
        whole, options = tmp_path / "whole", {"epochs": 3, "batch": 256, "decay": "cosine", "warmup": 0.2}
        wanted = train(rule, "digits", Options(out=whole, **options)).net
        folder = tmp_path / "run"
        with pytest.raises(KeyboardInterrupt, match="killed"):
            train(rule, "digits", Options(out=folder, **options), progress=KillAfter(12))
        log = folder / "steps.steplog"
        if "state" in lost:
            (folder / "state.safetensors").unlink()
        if "config" in lost:
            (folder / "config.toml").unlink()
        if "tail" in lost:
            log.write_bytes(log.read_bytes()[:-3])
        found = train(rule, "digits", Options(out=folder, resume=True, **options)).net
        assert digest_of(found) == digest_of(wanted)
        assert digest_of(rebuild(log).net) == digest_of(wanted)
        if lost == "nothing":
            assert log.read_bytes() == (whole / "steps.steplog").read_bytes()
            assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()

    def test_the_commands_agree_with_training_and_refuse_another_run(self, tmp_path, capsys):
        for seed in (0, 1):
            train(TINY, "digits", Options(epochs=1, batch=256, seed=seed, decay="cosine", out=tmp_path / f"{seed}"))
        one, other, out = tmp_path / "0", tmp_path / "1", tmp_path / "again.safetensors"
        main(["replay", str(one), "--out", str(out)])
        trained, again = checkpoint.load(one / "model.safetensors")[0], checkpoint.load(out)[0]
        assert same(trained, again)
        main(["verify", str(one), str(one)])
        assert "bit for bit" in capsys.readouterr().out
        with pytest.raises(SystemExit) as raised:
            main(["verify", str(one), str(other)])
        assert raised.value.code == 2
        assert "does not give the weights" in capsys.readouterr().err

    def test_a_log_of_another_learning_rate_is_not_trained_on(self, tmp_path):
        options = Options(epochs=1, batch=256, out=tmp_path / "run")
        train(TINY, "digits", options)
        for name in ("state.safetensors", "model.safetensors", "config.toml"):
            (tmp_path / "run" / name).unlink()
        faster = dataclasses.replace(TINY, learning_rate=0.02)
        with pytest.raises(CheckpointError, match=r"another run.*learning_rate"):
            train(faster, "digits", dataclasses.replace(options, resume=True))

    def test_what_the_log_could_not_give_leaves_none(self, tmp_path, monkeypatch):
        class Half(torch.optim.SGD):
            pass

        monkeypatch.setitem(OPTIMIZERS, "half", Half)
        options = Options(epochs=1, batch=256, out=tmp_path / "run", overwrite=True)
        for rule, given in (
            (dataclasses.replace(TINY, optimizer_kind="half"), options),
            (TINY, dataclasses.replace(options, average=0.9)),
            (Evolution(hidden=(4,)), options),
            (TINY, options),
        ):
            train(rule, "digits", given)
            assert (tmp_path / "run/steps.steplog").exists() == ((rule, given) == (TINY, options))

    def test_a_resumed_run_with_an_average_goes_on(self, tmp_path):
        options = Options(epochs=1, batch=256, out=tmp_path / "run", average=0.9)
        first = train(TINY, "digits", options)
        assert train(TINY, "digits", dataclasses.replace(options, epochs=2, resume=True)).step == 2 * first.step


class TestSchedules:
    """A decaying rate is written as its schedule: a few bytes a block, and the same bits."""

    @pytest.mark.parametrize(
        ("decay", "warmup"), [("cosine", 0.0), ("linear", 0.0), ("cosine", 0.2), ("linear", 0.1), ("none", 0.3)]
    )
    def test_a_run_takes_four_bytes_a_step_and_replays_to_the_bit(self, decay, warmup, tmp_path):
        rule = SPSA(hidden=(4,), pairs=1, sides="both", optimizer_kind="sgd", learning_rate=0.003)
        options = Options(epochs=80, batch=128, out=tmp_path / "run", decay=decay, warmup=warmup)
        tiny = Noise(0).integers(512 * 16, 256).to(torch.uint8).view(512, 4, 4).numpy()
        run = train(rule, data.from_arrays(tiny, Noise(1).integers(512, 3).numpy()), options)
        log = LogReader(tmp_path / "run" / "steps.steplog")
        steps = log.scan().steps
        rates = [update.rate for _, update in log.records(steps)]
        assert rates == [0.003 * options.rate_factor(step, steps) for step in range(steps)]
        _, plain = read_log((tmp_path / "run" / "steps.steplog").read_bytes())
        assert [step["rate"] for step in plain] == pytest.approx(rates, rel=1e-9)
        blocks = encode_reals([update for _, update in log.records(steps)], log.header)
        assert len(blocks) < 4 * steps + 40
        again = rebuild(tmp_path / "run" / "steps.steplog").net.state_dict()
        assert all(torch.equal(value, again[name]) for name, value in run.net.state_dict().items())

    def test_rates_that_follow_no_schedule_are_written_each(self):
        header = made_header({"decay": "cosine", "warmup": 0.0})
        rates = [0.01 * rate_factor("cosine", step, 50, 0) for step in range(20)]
        short, other = encode_reals(updates_of(rates), header), encode_reals(updates_of([*rates[:-1], 0.5]), header)
        assert len(other) - len(short) > 8 * 17
        for payload, wanted in ((short, rates), (other, [*rates[:-1], 0.5])):
            assert [update.rate for update in decode_reals(payload, 20, Noise(header.seed), header.shapes)] == wanted

    @pytest.mark.parametrize("change", ["steps", "decay", "base", "cut"])
    def test_a_false_schedule_is_damage(self, change):
        header = made_header({"decay": "linear", "warmup": 0.0})
        payload = bytearray(encode_reals(updates_of([0.01 * (1 - n / 100) for n in range(20)]), header))
        place = payload.index(bytes([2, 2])) + 1  # a schedule, linear
        if change == "steps":
            payload[place + 9] = 10
        elif change == "decay":
            payload[place] = 9
        elif change == "base":
            payload[place + 1 : place + 9] = struct.pack("<d", float("nan"))
        else:
            del payload[place + 5 :]
        with pytest.raises(DamagedLogError):
            decode_reals(bytes(payload), 20, Noise(header.seed), header.shapes)


def made_header(training):
    net = torch.nn.Linear(2, 2)
    return replace(Header.attached_to(net, {"name": "spsa", "learning_rate": 0.01}, 0), training=training)


def updates_of(rates):
    table = (("weight", (2, 2)), ("bias", (2,)))
    return [
        Seeded(torch.ones(1), DenseProbes(Noise(0).stream("directions").at(step), table, 1), rate=rate)
        for step, rate in enumerate(rates)
    ]


@pytest.mark.slow
def test_replay_is_fifteen_times_faster_than_training(tmp_path):
    """A net on as many rows as a language model has tokens: 37 passes a step, of which replay makes none."""
    rows, targets = Noise(1).normal(8192 * 64).view(8192, 64), Noise(2).integers(8192, 10)
    with Noise(0).torch_seeded():
        net = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
    fresh = copy.deepcopy(net)
    before = time.process_time()
    with attach(net, SPSA(), log=tmp_path / "a.steplog") as step:
        for _ in range(4):
            step(rows, targets)
    training = time.process_time() - before
    before = time.process_time()
    replay(tmp_path / "a.steplog", fresh)
    assert training > 15 * (time.process_time() - before)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), fresh.parameters(), strict=True))
