"""Workers that join a run and go while it trains: the bits of one process, and sentences for what cannot be."""

import dataclasses
import functools
import json
import os
import signal
import time

import pytest
import torch

from sidestep import load_run, rules
from sidestep.errors import InputError, RankError, SidestepError
from sidestep.noise import Noise
from sidestep.probes import DenseProbes
from sidestep.steplog import Recorder
from sidestep.training import Options, Stopped, train
from sidestep.training import joining as joining_module
from sidestep.training.exchange import PartSum
from sidestep.training.folder import RunFolder
from sidestep.training.hosting import welcome_of
from sidestep.training.joining import join_run
from sidestep.training.part_messages import apart, packed, unpacked
from sidestep.training.progress import Silent
from sidestep.training.signs import Signs
from sidestep.update import Dense, Seeded
from sidestep.world import Alone, Host
from tests.reference.joiners import digits, joiner
from tests.reference.ranks import _answer as answer
from tests.training.test_ranks import CASES, SMALL, left

LOGGED = (
    "spsa, pairs",
    "weight probes, probes",
    "weight probes, batch",
    "rank-one",
    "trits of local losses",
    "flips of local losses",
)
WEIGHTS = rules.NoiseStep(estimator="weight-probes", probes=12, **SMALL)


class Worker:
    """One who joins, in a process of its own: `found` is what it has done, or its error; None if it was killed."""

    def __init__(self, host, before=None, few=slice(0, 160)):
        self.host = host
        self.process, self._pipe = joiner(host.address, before, few)

    def ready(self):
        """Wait until it has parts to estimate, or has been refused."""
        count, end = self.host.workers, time.monotonic() + 30
        while self.host.workers <= count and self.process.is_alive():
            assert time.monotonic() < end
            time.sleep(0.002)
        return self

    def end(self):
        """Wait for its end, and take what it has done."""
        self.found = answer(self._pipe, 20)
        self.process.join(5)
        self.process.kill()


class Acts:
    """An observer that does something after some steps, and collects what the run says."""

    def __init__(self, host, acts):
        self.host, self.acts, self.workers = host, acts, []

    def on_step(self, event):
        if event.step in self.acts:
            self.acts[event.step](self)


class Said(Silent):
    def __init__(self):
        self.said = []

    def notice(self, text):
        self.said.append(text)


def options(folder, split="batch", shares=3, **changed):
    given = {"batch": 48, "epochs": 4, "split": split, "shares": shares, "precision": "float32"}
    return Options(**{**given, "out": folder, **changed})


def hosted(folder, acts, rule=WEIGHTS, timeout=5.0, check_share=0.0, **changed):
    """Train with workers that come and go after some steps; return who came, and what was said."""
    torch.set_num_threads(1)
    host, progress = Host("0", timeout=timeout, check_share=check_share), Said()
    acting = Acts(host, acts)
    try:
        train(rule, digits(), options(folder, **changed), readings=[], host=host, observers=[acting], progress=progress)
    finally:
        host.end("the test is over", failed=True)
        for worker in acting.workers:
            worker.end()
    return acting.workers, progress.said


def comes(acting):
    acting.workers.append(Worker(acting.host).ready())


def goes(acting):
    acting.workers[0].process.kill()


def slowly(guest):
    apply = joining_module._Worker._apply

    def slow(self, step, body):
        time.sleep(0.2)
        apply(self, step, body)

    joining_module._Worker._apply = slow


def test_a_newcomer_is_given_parts_once_it_has_caught_up(tmp_path, monkeypatch):
    monkeypatch.setattr(Recorder, "place", None)  # so that it is sent all steps one by one, and takes 1.6 s for them
    come = {8: lambda acting: acting.workers.append(Worker(acting.host, slowly).ready())}
    (worker,), said = hosted(tmp_path / "run", come, timeout=1.2)
    assert not [each for each in said if "has gone" in each]
    assert worker.found.parts >= 3


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    torch.set_num_threads(1)
    for name in LOGGED:
        rule, split, shares = CASES[name]
        train(rule, digits(), options(folder / name, split, shares), readings=[])
    train(WEIGHTS, digits(), options(folder / "short"), readings=[])
    return folder


@pytest.mark.parametrize("name", LOGGED)
def test_workers_that_come_and_go_leave_the_bits_of_one_process(name, alone, tmp_path):
    rule, split, shares = CASES[name]
    acts = {1: comes, 3: comes, 6: goes, 8: comes}
    workers, said = hosted(tmp_path / name, acts, rule, split=split, shares=shares)
    assert left(tmp_path, name) == left(alone, name)
    gone, *others = (worker.found for worker in workers)
    assert gone is None
    assert all(found.parts > 0 and "training has ended, at step 12 of 12" in found.said for found in others)
    assert [found.replayed for found in others] == [0, 6]  # what was on the disk: the log of whole epochs
    lines = "\n".join(said)
    assert [lines.count(words) for words in (" has joined, at step", " has gone, at step", "rounds")] == [3, 1, 0]


def test_a_newcomer_replays_the_log_that_is_on_the_disk(alone, tmp_path):
    workers, _ = hosted(tmp_path / "short", {5: comes}, checkpoint_seconds=1e-9)
    assert workers[0].found.replayed == 4  # the checkpoint after step 5 comes after its observers
    assert left(tmp_path, "short")[:2] == left(alone, "short")[:2]  # the log has other blocks


def dies(guest):
    plain = joining_module._Worker._estimate

    def dying(self, index):
        if self.state.step == 5:
            os._exit(9)
        plain(self, index)

    joining_module._Worker._estimate = dying


def stalls(guest):
    plain = joining_module._Worker._estimate

    def stalling(self, index):
        if self.state.step == 4:
            self.guest._told = time.monotonic() + 100  # no sign of life any more
            time.sleep(1.6)
        plain(self, index)

    joining_module._Worker._estimate = stalling


def comes_who(before, **given):
    """Let somebody come who does something before."""
    return lambda acting: acting.workers.append(Worker(acting.host, before, **given).ready())


def test_a_worker_that_is_killed_within_a_step_loses_nothing(alone, tmp_path):
    workers, said = hosted(tmp_path / "short", {2: comes_who(dies), 3: comes})
    assert workers[0].found is None
    assert any("has gone, at step 5" in line for line in said)
    assert left(tmp_path, "short") == left(alone, "short")


def test_a_worker_that_stalls_is_dropped_and_its_part_is_estimated_here(alone, tmp_path):
    started = time.perf_counter()
    _, said = hosted(tmp_path / "short", {2: comes_who(stalls)}, timeout=1.2)
    assert time.perf_counter() - started < 20
    assert any("it has been silent for 1.2 s" in line or "has not sent its part" in line for line in said)
    assert left(tmp_path, "short") == left(alone, "short")


def sends(change, update, *_, at=4):
    """What a worker sends in place of an update, from a step on."""
    data = packed(update)
    if update.probes.noise.step < at:
        return data
    if change == "cut":
        return data[:-3]
    if change == "of another net":
        return b"\0\0\0\0" + data[4:]
    factor = {"no numbers": torch.nan, "made up": -1.0, "rounded otherwise": 1 + 1e-6, "bent": 1.05}[change]
    return packed(dataclasses.replace(update, coefs=update.coefs * factor))


def sends_cut(guest):
    joining_module.packed = functools.partial(sends, "cut")


def sends_of_another_net(guest):
    joining_module.packed = functools.partial(sends, "of another net")


def sends_no_numbers(guest):
    joining_module.packed = functools.partial(sends, "no numbers")


def sends_made_up(guest):
    joining_module.packed = functools.partial(sends, "made up", at=0)


def rounds_otherwise(guest):
    joining_module.packed = functools.partial(sends, "rounded otherwise", at=0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (sends_cut, "it sent an update that is cut"),
        (sends_of_another_net, "it sent the update of another net, rule or version of torch"),
        (sends_no_numbers, "it sent numbers that are not those of its part"),
        (sends_made_up, "it sent numbers that are not those of its part"),
    ],
)
def test_a_worker_that_sends_foreign_updates_is_dropped_and_named(change, words, alone, tmp_path):
    workers, said = hosted(tmp_path / "short", {2: comes_who(change)})
    assert any(line.startswith("worker 1 (127.0.0.1:") and words in line for line in said)
    assert isinstance(workers[0].found, RankError)
    assert words in str(workers[0].found)
    assert left(tmp_path, "short") == left(alone, "short")


def bends_later(guest):
    joining_module.packed = functools.partial(sends, "bent", at=4)


def test_what_is_bent_after_a_right_first_part_is_found_by_parts_that_are_compared(alone, tmp_path):
    workers, said = hosted(tmp_path / "short", {1: comes_who(bends_later)}, check_share=1.0)
    assert any("numbers that are not bit for bit those of its part, as they were before" in line for line in said)
    assert isinstance(workers[0].found, RankError)
    assert left(tmp_path, "short") == left(alone, "short")


def sends_of_other_probes(guest):
    def sent(update, *rest):
        late = update.probes.noise.step >= 4
        return packed(dataclasses.replace(update, taken=update.taken.roll(1)) if late else update)

    joining_module.packed = sent


def test_a_part_with_the_probes_of_others_is_estimated_here_and_ends_no_run(tmp_path):
    workers, said = hosted(tmp_path / "short", {1: comes_who(sends_of_other_probes)}, split="probes")
    assert any("coefficients of other probes than those of its part" in line for line in said)
    assert isinstance(workers[0].found, RankError)


def sends_of_other_examples(guest):
    def sent(update, *rest):
        late = update.probes.noise.step >= 4
        others = update.taken.view(2, -1).roll(1, 1).flatten()
        return packed(dataclasses.replace(update, taken=others) if late else update)

    joining_module.packed = sent


def test_a_part_with_the_probes_of_other_examples_is_estimated_here_and_ends_no_run(tmp_path):
    rule = rules.NoiseStep(estimator="rank-one", tangents=2, **SMALL)
    workers, said = hosted(tmp_path / "short", {1: comes_who(sends_of_other_examples)}, rule=rule)
    assert any("coefficients of other probes than those of its part" in line for line in said)
    assert isinstance(workers[0].found, RankError)


def test_other_rounding_is_told_and_taken(tmp_path):
    workers, said = hosted(tmp_path / "short", {2: comes_who(rounds_otherwise)}, check_share=1.0)
    assert sum("rounds otherwise than this machine" in line for line in said) == 1
    assert workers[0].found.parts > 0


def test_other_data_are_refused_on_both_sides(alone, tmp_path):
    workers, said = hosted(tmp_path / "short", {2: comes_who(None, few=slice(1, 161))})
    assert isinstance(workers[0].found, InputError)
    assert "this machine has other data than the run at 127.0.0.1:" in str(workers[0].found)
    assert any("worker 1 (127.0.0.1:" in line and "did not join: this machine has other data" in line for line in said)
    assert left(tmp_path, "short") == left(alone, "short")


class Told:
    """A guest who was told something, without a connection."""

    where = "127.0.0.1:1"

    def __init__(self, told):
        self.welcome, self.said = json.dumps(told).encode(), []

    def send(self, kind, data=b"", step=0):
        self.said.append(kind)

    def close(self, why=""):
        self.said.append(why)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda told: told.update(net="0" * 32), "makes another untrained net than the run"),
        (lambda told: told["config"]["rule"].update(name="none"), "none"),
        (lambda told: told["config"]["train"].update(batch=-1), "batch must be at least 1"),
        (lambda told: told["config"]["train"].update(batch="many"), "batch"),
        (lambda told: told["config"].pop("rule"), "does not say what is trained"),
        (lambda told: told["config"]["train"].pop("split"), "does not say into which parts"),
        (lambda told: told["config"]["data"].update(train_images=3), "other data"),
        (lambda told: told["config"]["task"].update(mean="none"), "does not say what is trained"),
        (lambda told: told["config"]["versions"].update(threads="many"), "does not say what is trained"),
    ],
)
def test_a_welcome_that_cannot_be_followed_is_refused(change, words, alone):
    config = RunFolder(alone / "short").config()
    told = json.loads(welcome_of(config, load_run(alone / "short").net, digits()))
    change(told)
    guest = Told(told)
    with pytest.raises(SidestepError, match=words):
        join_run(guest, lambda config: digits())
    assert len(guest.said) == 1  # nothing but the end


def has_another_processor(guest):
    joining_module.processor_name = lambda: "an abacus"


def test_another_processor_is_told_on_both_sides(tmp_path):
    workers, said = hosted(tmp_path / "short", {2: comes_who(has_another_processor)})
    assert any("another processor" in line and "an abacus here" in line for line in said)
    assert workers[0].found.parts > 0


def stop(acting):
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_stopped_run_goes_on_and_workers_join_again(alone, tmp_path):
    with pytest.raises(Stopped, match="after step 6"):
        hosted(tmp_path / "short", {2: comes, 6: stop})
    workers, _ = hosted(tmp_path / "short", {7: comes}, resume=True)
    assert workers[0].found.replayed == 6
    assert left(tmp_path, "short")[:2] == left(alone, "short")[:2]


def fail(acting):
    raise OSError("the observer's disk is full")


def test_what_ends_the_host_is_said_by_those_who_joined(tmp_path):
    torch.set_num_threads(1)
    host = Host("0")
    acting = Acts(host, {2: comes, 4: fail})
    with pytest.raises(Exception, match="the observer's disk is full"):
        train(WEIGHTS, digits(), options(tmp_path / "run"), readings=[], host=host, observers=[acting])
    acting.workers[0].end()
    assert "its run has failed:" in str(acting.workers[0].found)
    assert "the observer's disk is full" in str(acting.workers[0].found)


@pytest.mark.parametrize(
    ("rule", "changed", "words"),
    [
        (rules.Backprop(net="mlp", **SMALL), {}, "leaves none"),
        (rules.NoPropDT(blocks=2), {}, "leaves none"),
        (WEIGHTS, {"average": 0.9}, "average = 0.9 cannot be followed"),
        (
            rules.NoiseStep(**SMALL),
            {"exchange_share": 0.01},
            "exchange_share = 0.01 leaves .* give --exchange-window 1",
        ),
        (
            rules.NoiseStep(**SMALL),
            {"exchange_share": 0.01, "exchange_window": 4},
            "leaves .* give --exchange-window 1",
        ),
        (WEIGHTS, {"out": None}, "give out"),
        (WEIGHTS, {"split": "units", "shares": None}, "not divided into parts that anybody can take"),
    ],
)
def test_runs_that_nobody_can_follow_are_refused(rule, changed, words, tmp_path):
    host, progress = Host("0"), Said()
    host.announce("others can join")
    with pytest.raises(InputError, match=words):
        train(rule, digits(), options(**{"folder": tmp_path / "run", **changed}) if "out" not in changed else
              options(None), readings=[], host=host, progress=progress)  # fmt: skip
    assert not any("others can join" in said for said in progress.said)
    host.end("")


def test_compressed_gradients_of_whoever_leave_the_bits_of_one_process(tmp_path):
    rule, given = rules.NoiseStep(**SMALL), {"exchange_share": 0.1, "exchange_window": 1}
    torch.set_num_threads(1)
    train(rule, digits(), options(tmp_path / "one", **given), readings=[])
    acts = {1: comes, 3: comes, 6: goes}
    workers, said = hosted(tmp_path / "open", acts, rule, check_share=0.3, **given)
    assert left(tmp_path, "open") == left(tmp_path, "one")
    assert not any("round" in line or "it sent" in line for line in said)
    parameters = 64 * 16 + 16 * 10  # at least
    assert workers[1].found.sent_bytes / workers[1].found.parts < 4 * parameters / 4


def test_signs_of_a_part_come_back_from_bytes_and_others_are_refused():
    signs, losses = Signs(0.1, 1), {"net: loss": torch.tensor(1.5)}
    update = Dense({"w": Noise(3).normal(200).view(20, 10)}, {}, losses)
    data = packed(update, signs, 2)
    found, message = unpacked(data, update, signs)
    assert int((found.gradients["w"] != 0).sum()) == 20
    assert packed(update, signs, 5) == data  # nothing waits, so a part's message is the same whoever made it
    total, again = PartSum(signs), PartSum(signs)
    total.add(update, 0)
    again.add(found, 0, message)
    one, other = (each.exchanged(Alone(), 1, 0)[0].gradients["w"] for each in (total, again))
    assert torch.equal(one, other)
    assert torch.equal(one, found.gradients["w"])
    for wrong in (data[:-1], data + b"\0", data[:9]):
        with pytest.raises(RankError, match="it sent"):
            unpacked(wrong, update, signs)


def test_updates_come_back_from_bytes():
    probes = DenseProbes(Noise(0), (("weight", (2,)),), 3)
    losses = {"net: loss": torch.tensor(1.5)}
    whole = Seeded(torch.tensor([1.0, -2.0, 3.0]), probes, {"mean": torch.tensor([1, 2])}, losses)
    part = Seeded(torch.tensor([1.0, 0.0, 3.0]), probes, losses=losses, taken=torch.tensor([True, False, True]))
    dense = Dense({"w": torch.randn(3, 2, dtype=torch.bfloat16)}, {"n": torch.tensor(3)}, losses)
    for update in (whole, part, dense):
        found, _ = unpacked(packed(update), update)
        assert packed(found) == packed(update)
        assert apart(found, update) is None
        for wrong in (packed(update)[:-1], packed(update) + b"\0", b"", packed(update)[:4]):
            with pytest.raises(RankError, match="it sent"):
                unpacked(wrong, update)
    with pytest.raises(RankError, match="another net, rule"):
        unpacked(packed(whole), part)
