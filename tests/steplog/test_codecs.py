"""Every codec of the step log goes through the same checks: what is kept, how many bytes, what is refused."""

import dataclasses
import math
from dataclasses import replace

import pytest
import torch

from sidestep.errors import InputError
from sidestep.noise import Noise
from sidestep.probes import DenseProbes, RankOneProbes, SparseProbes
from sidestep.seeded_sets import ChosenSets, moves_of_sets
from sidestep.steplog import Header, LogReader, LogWriter
from sidestep.steplog.codecs import CODECS, Counts, codec_of, is_logged
from sidestep.steplog.format import FLIPS, MOST_COEFS, MOST_FLIPS, REALS, SETS, TRITS, DamagedLogError
from sidestep.update import Dense, Flips, Seeded

SEED, FIRST, STEPS = 3, 5, 40
SHAPES = (("one", (30, 20)), ("two", (400,)))
WEIGHTS = 1000
DRAWN = Noise(SEED).stream("codecs")


def header_of(dtype="int8"):
    return Header({"name": "toy"}, {}, "x", SEED, tuple((name, dtype, shape) for name, shape in SHAPES), (), "")


HEADER = header_of()


def trits(noise, count):
    return noise.stream("trits").integers(count, 3) - 1


def equally_many(noise, count):
    kept = noise.stream("order").permutation(count) < count // 2
    return torch.where(kept, noise.stream("signs").signs(count), 0)


def some_flips(noise, count):
    places = noise.stream("places").permutation(WEIGHTS)[:count].sort().values
    return Flips(places, noise.stream("moves").signs(count))


def some_sets(noise, counts, members=3):
    numbers = noise.stream("numbers").integers(sum(counts), 256).to(torch.uint8)
    sets = ChosenSets(members, noise.step + 7, counts, numbers)
    return Flips(*moves_of_sets(sets, [600, 400]), sets=sets)


def reals(noise, count, distribution, rate):
    return Seeded(noise.stream("numbers").normal(count), DenseProbes(noise, SHAPES, count, distribution), rate=rate)


RANK_ONE = ((30, 20), (1, 400))
UPDATES = {  # name -> kind of its blocks, and the update of any step
    "sparse": (TRITS, lambda noise: Seeded(trits(noise, 32), SparseProbes(noise, WEIGHTS, 32, 0.01))),
    "exclusive": (TRITS, lambda noise: Seeded(equally_many(noise, 32), SparseProbes(noise, WEIGHTS, 32, 0.02, True))),
    "rank one": (TRITS, lambda noise: Seeded(trits(noise, 32).float(), RankOneProbes(noise, RANK_ONE, 32))),
    "none but zeros": (TRITS, lambda noise: Seeded(torch.zeros(32), SparseProbes(noise, WEIGHTS, 32, 0.01))),
    "flips": (FLIPS, lambda noise: some_flips(noise, 20 + noise.step % 3)),
    "all flip": (FLIPS, lambda noise: some_flips(noise, WEIGHTS)),
    "no flips": (FLIPS, lambda noise: some_flips(noise, 0)),
    "sets": (SETS, lambda noise: some_sets(noise, (20 + noise.step % 3, 4))),
    "no sets": (SETS, lambda noise: some_sets(noise, (0, 0))),
    "signs": (REALS, lambda noise: reals(noise, 8, "rademacher", 0.1)),
    "a rate each": (REALS, lambda noise: reals(noise, 8, "gaussian", 1 / (1 + noise.step))),
}
each_update = pytest.mark.parametrize("name", UPDATES)


def updates_of(name, first=FIRST, steps=STEPS):
    _, make = UPDATES[name]
    return [make(DRAWN.at(step)) for step in range(first, first + steps)]


def payload_of(name, first=FIRST, steps=STEPS):
    updates = updates_of(name, first, steps)
    codec = codec_of(updates[0])
    return codec, [codec.kept(update) for update in updates], codec.encode([codec.kept(u) for u in updates], HEADER)


def facts(update):
    """All that is in an update, so that two can be compared to the bit."""
    found = {"type": type(update)}
    for field in dataclasses.fields(update):
        value = getattr(update, field.name)
        if dataclasses.is_dataclass(value) and field.name == "sets":
            value = facts(value)
        found[field.name] = (value.dtype, value.tolist()) if isinstance(value, torch.Tensor) else value
    return found


def same(one, other):
    return [facts(update) for update in one] == [facts(update) for update in other]


def test_no_codec_goes_without_these_checks():
    assert {kind for kind, _ in UPDATES.values()} == set(CODECS)


@each_update
def test_one_codec_holds_it(name):
    update = updates_of(name)[0]
    assert [kind for kind, codec in CODECS.items() if codec.holds(update)] == [UPDATES[name][0]]
    assert codec_of(update) is CODECS[UPDATES[name][0]]


@each_update
def test_what_is_kept_comes_back_to_the_bit(name):
    for steps in (1, 3, STEPS):
        codec, kept, payload = payload_of(name, steps=steps)
        assert same(codec.decode(payload, steps, FIRST, HEADER), kept)


@each_update
def test_all_that_training_applies_is_kept(name):
    for update in updates_of(name, steps=3):
        kept = codec_of(update).kept(update)
        if isinstance(update, Flips):
            assert torch.equal(kept.positions, update.positions)
            assert torch.equal(kept.moves, update.moves)
        else:
            assert torch.equal(kept.coefs.double(), update.coefs.double())
            assert (kept.probes, kept.rate) == (update.probes, update.rate)


@each_update
def test_what_is_kept_has_memory_of_its_own(name):
    update = updates_of(name)[0]
    kept = codec_of(update).kept(update)
    before = facts(kept)
    for value in vars(update).values():
        if isinstance(value, torch.Tensor):
            value.add_(1)
    assert facts(kept) == before


@each_update
def test_a_block_takes_about_the_bytes_that_are_said(name):
    """Within a third and 64 bytes for a block's own; of flips within four times: it depends on how many they are."""
    codec, kept, payload = payload_of(name)
    said = sum(codec.about_bytes(update) for update in kept)
    factor = 4 if codec.kind == FLIPS else 4 / 3
    assert len(payload) <= factor * said + 64 + 2 * STEPS * (codec.kind == FLIPS)
    if name not in ("none but zeros", "all flip", "no sets"):  # more regular than what is thought of
        assert said <= factor * len(payload)


@each_update
def test_numbers_are_counted(name):
    update = updates_of(name)[0]
    codec = codec_of(update)
    kept = codec.kept(update)
    counts = codec.counts(kept, WEIGHTS)
    assert codec.numbers(kept) == counts.probes + counts.flips
    assert counts.flip_steps == (codec.kind in (FLIPS, SETS))
    if codec.kind == FLIPS:
        n = counts.flips
        assert counts.least_bits == pytest.approx(math.log2(math.comb(WEIGHTS, n)) + n, rel=1e-9, abs=1e-9)
    elif codec.kind == SETS:
        assert counts == Counts(flips=len(update.positions), flip_steps=1)
    else:
        assert counts == Counts(probes=len(update.coefs), non_zero=int((update.coefs != 0).sum()))


def test_counts_add_up():
    assert Counts(1, 2, 3, 4, 0.5) + Counts(10, 20, 30, 40, 5.0) == Counts(11, 22, 33, 44, 5.5)


@each_update
def test_a_payload_that_was_cut_does_not_give_back_what_was_written(name):
    """The cut is found, or other steps come out, which the block's CRC tells."""
    codec, kept, payload = payload_of(name, steps=12)
    for end in range(len(payload)):
        try:
            found = codec.decode(payload[:end], 12, FIRST, HEADER)
        except DamagedLogError:
            continue
        assert not same(found, kept)
        assert len(found) == 12


@each_update
@pytest.mark.parametrize("more", [bytes(1), bytes(4), bytes([1, 2, 3, 4])], ids=["a byte", "zeros", "a word"])
def test_a_payload_that_grew_is_no_block(name, more):
    codec, _, payload = payload_of(name, steps=12)
    with pytest.raises(DamagedLogError):
        codec.decode(payload + more, 12, FIRST, HEADER)


def test_a_word_below_those_that_are_needed_is_found():
    """It changes no symbol: coded words are a stack, read from its end."""
    codec, _, payload = payload_of("flips", steps=12)
    forged = (
        payload[:12] + bytes([payload[12] + 1, 1, 2, 3, 4]) + payload[13:]
    )  # behind 12 numbers of flips, a byte each
    with pytest.raises(DamagedLogError, match="more coded words"):
        codec.decode(forged, 12, FIRST, HEADER)


@each_update
def test_another_number_of_steps_is_found(name):
    codec, _, payload = payload_of(name, steps=12)
    for steps in (11, 13):
        with pytest.raises(DamagedLogError):
            codec.decode(payload, steps, FIRST, HEADER)


@each_update
def test_changed_bytes_do_nothing_worse_than_damage(name):
    codec, _, payload = payload_of(name, steps=12)
    for place in range(0, len(payload), max(1, len(payload) // 64)):
        for change in (0x01, 0x80, 0xFF):
            data = payload[:place] + bytes([payload[place] ^ change]) + payload[place + 1 :]
            try:
                found = codec.decode(data, 12, FIRST, HEADER)
            except DamagedLogError:
                continue
            assert len(found) == 12
            assert all(codec.holds(update) for update in found)


def done(update, first, last):
    """What an update does to the weights in a range: positions and numbers, or coefficients and parameters."""
    if isinstance(update, Flips):
        position, value = update.positions, update.moves
    elif isinstance(update.probes, DenseProbes):
        return update.coefs.tolist(), list(update.probes.names)
    else:
        position, value = update.probes.weighted_sum(update.coefs)
    inside = (position >= first) & (position < last)
    return position[inside].tolist(), value[inside].tolist()


@each_update
def test_a_part_does_to_its_weights_what_the_whole_does_and_nothing_else(name):
    update = updates_of(name)[0]
    codec = codec_of(update)
    for first, last, names in ((0, 600, ["one"]), (600, 1000, ["two"]), (0, 1000, ["one", "two"])):
        part = codec.part(codec.kept(update), first, last)
        if codec.kind == REALS:
            assert done(part, first, last) == (update.coefs.tolist(), names)
        else:
            assert done(part, 0, WEIGHTS) == done(update, first, last)


@each_update
def test_it_goes_through_a_file(tmp_path, name):
    header, updates = header_of(), updates_of(name, 0, 10)
    assert all(is_logged(update, header, step) for step, update in enumerate(updates))
    log = LogWriter.create(tmp_path / "log", header)
    for update in updates:
        log.append(update)
    log.commit()
    log.close()
    reader = LogReader(tmp_path / "log")
    assert same([update for _, update in reader.records()], [codec_of(update).kept(update) for update in updates])
    assert reader.scan().steps_of == {UPDATES[name][0]: 10}


def of_many(update, count, density):
    changes = {"density": density} if isinstance(update.probes, SparseProbes) else {}
    return Seeded(torch.zeros(count), replace(update.probes, count=count, **changes), rate=update.rate)


OTHER_PLACES = {
    "of another seed": lambda u: replace(u, probes=replace(u.probes, noise=Noise(SEED + 1).at(0))),
    "of another step": lambda u: replace(u, probes=replace(u.probes, noise=u.probes.noise.at(1))),
    "of a substream": lambda u: replace(u, probes=replace(u.probes, noise=u.probes.noise.sub(1))),
    "of more probes": lambda u: replace(u, coefs=torch.cat([u.coefs, u.coefs])),
    "without probes": lambda u: replace(u, coefs=u.coefs[:0]),
    "of too much work": lambda u: of_many(u, 1 << 22, 1.0),
    "of too many probes": lambda u: of_many(u, MOST_COEFS + 1, 0.001),
}
NOT_TRITS = {
    "a half": lambda u: replace(u, coefs=torch.full((32,), 0.5)),
    "two": lambda u: replace(u, coefs=torch.full((32,), 2)),
    "a NaN": lambda u: replace(u, coefs=torch.full((32,), math.nan)),
}
OTHER_NET = {"of another net": lambda u: replace(u, probes=replace(u.probes, weights=WEIGHTS + 1))}
NOT_REALS = {
    "without a rate": lambda u: replace(u, rate=None),
    "a rate below 0": lambda u: replace(u, rate=-0.1),
    "an infinite rate": lambda u: replace(u, rate=math.inf),
    "in float64": lambda u: replace(u, coefs=u.coefs.double()),
    "of parameters in another order": lambda u: replace(u, probes=replace(u.probes, parameters=SHAPES[::-1])),
}
TOO_MANY = {"too many": lambda u: Flips(torch.arange(1).expand(MOST_FLIPS + 1), u.moves)}
OTHER_SETS = {
    "of another net": lambda u: replace(u, sets=replace(u.sets, counts=(*u.sets.counts, 0))),
    "of too many moves": lambda u: replace(u, sets=replace(u.sets, members=1 << 20)),
    "without some numbers": lambda u: replace(u, sets=replace(u.sets, numbers=u.sets.numbers[1:])),
}
REFUSED = [
    (name, change)
    for name, changes in {
        "sparse": OTHER_PLACES | NOT_TRITS | OTHER_NET,
        "exclusive": OTHER_PLACES | NOT_TRITS | OTHER_NET,
        "rank one": {key: change for key, change in OTHER_PLACES.items() if key != "of too much work"} | NOT_TRITS,
        "signs": OTHER_PLACES | NOT_REALS,
        "a rate each": OTHER_PLACES | NOT_REALS,
        "flips": TOO_MANY,
        "sets": OTHER_SETS,
    }.items()
    for change in changes.items()
]


@pytest.mark.parametrize(("name", "change"), REFUSED, ids=lambda e: e if isinstance(e, str) else e[0])
def test_what_replay_could_not_know_or_not_bear_is_refused(tmp_path, name, change):
    good = updates_of(name, 0, 1)[0]
    bad = change[1](good)
    assert is_logged(good, HEADER, 0)
    assert not is_logged(bad, HEADER, 0)
    log = LogWriter.create(tmp_path / "log", HEADER)
    with pytest.raises(InputError, match="within limits, but the update of step 0"):
        log.append(bad)
    log.append(good)
    log.commit()
    log.close()
    assert len(list(LogReader(tmp_path / "log").records())) == 1


def test_gradients_have_no_codec():
    update = Dense({"one": torch.zeros(30, 20)})
    assert not is_logged(update, HEADER, 0)
    with pytest.raises(InputError, match="got Dense"):
        codec_of(update)


@each_update
def test_a_block_is_counted_whole_as_one_update_after_another(name):
    codec, kept, payload = payload_of(name)
    one_by_one = sum((codec.counts(update, WEIGHTS) for update in kept), Counts())
    assert one_by_one.probes or one_by_one.flip_steps
    assert codec.counts_of(payload, STEPS, FIRST, HEADER) == one_by_one
