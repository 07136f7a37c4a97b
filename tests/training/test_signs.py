"""The signs of the largest entries of a gradient: what is sent, what waits, and what a run over ranks makes of them."""

import os
import signal

import pytest
import torch

from sidestep import checkpoint, rules
from sidestep.errors import InputError, NonFiniteError, RankError
from sidestep.noise import Noise
from sidestep.training import Options, Stopped
from sidestep.training.parts import with_parts
from sidestep.training.signs import Signs
from sidestep.world import Alone
from tests.reference.ranks import on_ranks
from tests.training.test_ranks import SMALL, Of, at_step, bytes_of, left, short


def gradients(seed=0):
    noise = Noise(seed).stream("test")
    return {"a": noise.sub(0).normal(600).view(30, 20), "b": noise.sub(1).normal(40) * 1e-6}


def flat(named):
    return torch.cat([value.flatten() for value in named.values()])


def exchanged(signs, given):
    return signs.combined([signs.packed(0, given)], 1, given)


def unit(given):
    return {name: value / value.square().mean().sqrt() for name, value in given.items()}


def test_the_largest_entries_of_each_parameter_are_sent_as_signs_of_one_size():
    given = gradients()
    found = exchanged(Signs(0.1), given)
    for name, wanted in unit(given).items():
        inside = found[name] != 0
        assert int(inside.sum()) == round(0.1 * wanted.numel())
        assert wanted[inside].abs().min() >= wanted[~inside].abs().max()
        assert torch.equal(found[name][inside].sign(), wanted[inside].sign())
        assert found[name][inside].abs().unique().tolist() == pytest.approx([float(wanted[inside].abs().mean())])


def test_what_was_sent_and_what_waits_are_all_of_the_gradients():
    signs, sent, given = Signs(0.05), 0, 0
    for step in range(20):
        sent = sent + flat(exchanged(signs, gradients(step)))
        given = given + flat(unit(gradients(step)))
    waiting = flat(signs._left[0])
    assert float((sent + waiting - given).abs().max()) < 1e-4
    assert float(waiting.abs().max()) < 12  # nothing waits for ever: 20 steps without any exchange reach 17


def test_the_mean_of_the_parts_does_not_depend_on_who_takes_them():
    given = [gradients(part) for part in range(4)]
    whole = [Signs(0.1).packed(part, each) for part, each in enumerate(given)]
    found = [
        flat(Signs(0.1).combined([b"".join(whole[rank::ranks]) for rank in range(ranks)], 4, given[0]))
        for ranks in (1, 2, 4)
    ]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    one = sum(flat(Signs(0.1).combined([message], 1, given[0])) for message in whole) / 4
    assert torch.allclose(found[0], one)


def test_what_waits_is_forgotten_at_the_end_of_a_window():
    signs, fresh = Signs(0.1, 3), Signs(0.1)
    sent = []
    for step in range(6):
        signs.begin(step)
        fresh = Signs(0.1) if step == 3 else fresh
        sent.append((signs.packed(0, gradients(step)), fresh.packed(0, gradients(step))))
    assert all(one == other for one, other in sent)
    assert len({one for one, _ in sent}) == 6
    once = Signs(0.1, 1)
    assert once.packed(0, gradients(5)) != sent[5][0]
    assert not once.waiting()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"exchange_window": 1}, "give exchange_share, too"),
        ({"exchange_share": 0.1, "exchange_window": 0}, "exchange_window must be a number of steps"),
    ],
)
def test_a_window_is_a_number_of_steps_of_a_share(given, words):
    with pytest.raises(InputError, match=words):
        Options(**given)


def test_messages_of_others_are_refused():
    given = gradients()
    message = Signs(0.1).packed(0, given)
    for bad in (b"", message[:-1], message[:3], message + b"\0", message[:8] + b"\xff" * 20):
        with pytest.raises(RankError, match="rank 1"):
            Signs(0.1).combined([message, bad], 2, given)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_gradient_without_numbers_is_refused_by_name(bad):
    with pytest.raises(NonFiniteError, match="the gradient of b is not finite"):
        Signs(0.1).packed(0, gradients() | {"b": torch.tensor([1.0, bad])})


def test_nothing_is_sent_of_a_gradient_of_zeros():
    assert not exchanged(Signs(0.1), {"a": torch.zeros(50)})["a"].any()


@pytest.mark.parametrize(
    "rule", [rules.NoiseStep(update="bop"), rules.NoiseStep(codec="trits"), rules.LocalLoss(), rules.Backprop()]
)
def test_rules_that_it_means_nothing_for_are_refused(rule):
    with pytest.raises(InputError, match=f"not for {rule.name} with these options"):
        with_parts(Options(exchange_share=0.01), rule, Alone(), 128)


@pytest.mark.parametrize("share", [0, -1, 1.5, float("nan")])
def test_a_share_of_a_gradient_lies_above_0_and_up_to_1(share):
    with pytest.raises(InputError, match="exchange_share must lie in"):
        Options(exchange_share=share)


@pytest.mark.parametrize(("ranks", "shares"), [(1, 1), (2, 2), (3, 4)])
def test_a_rank_sends_one_message_where_it_can(ranks, shares):
    found = with_parts(Options(exchange_share=0.01), rules.NoiseStep(), Of(ranks), 128)
    assert (found.split, found.shares) == ("batch", shares)


def compressed(world, folder):
    short(folder, rules.NoiseStep(**SMALL), exchange_share=0.05)
    return world.sent_bytes + world.summed_bytes


def test_one_process_and_two_leave_the_same_bits_of_compressed_gradients(tmp_path):
    (alone,) = on_ranks(1, compressed, str(tmp_path / "one"))
    assert alone == 0
    assert max(on_ranks(2, compressed, str(tmp_path / "two"))) < 6 * 600 + 4000  # of 1,500 weights; and the start's
    assert left(tmp_path, "one") == left(tmp_path, "two")
    short(str(tmp_path / "whole"), rules.NoiseStep(**SMALL))
    weights = [bytes_of(tmp_path / name, "model.safetensors") for name in ("one", "whole")]
    assert weights[0] != weights[1]


CONV = {"batch": 64, "shares": 4, "steps": 3, "exchange_share": 0.02}


def compressed_convolutions(world, folder):
    before = world.summed_bytes
    result = short(folder, rules.NoiseStep(net="conv", hidden=(6, 8)), **CONV)
    statistics = sum(value.numel() for name, value in result.net.named_buffers() if "running" in name)
    return world.summed_bytes - before, statistics


def test_one_process_and_four_leave_the_same_bits_of_compressed_convolutions(tmp_path):
    on_ranks(1, compressed_convolutions, str(tmp_path / "one"))
    for summed, statistics in on_ranks(4, compressed_convolutions, str(tmp_path / "four"), seconds=120):
        assert summed <= 3 * 8 * (statistics + 8)  # of a gradient nothing but signs; running statistics in full
    assert left(tmp_path, "one") == left(tmp_path, "four")


FLIPS = rules.NoiseStep(**SMALL)


def compressed_until_stopped(world, folder):
    at_step(4, world.size - 1, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        short(folder, FLIPS, exchange_share=0.05)
    except Stopped as error:
        return error.step


def compressed_from_there(world, folder):
    short(folder, FLIPS, exchange_share=0.05, resume=True)


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 3), (3, 1)])
def test_a_resumed_run_has_what_was_not_yet_exchanged(before, after, tmp_path):
    short(str(tmp_path / "whole"), FLIPS, exchange_share=0.05)
    assert on_ranks(before, compressed_until_stopped, str(tmp_path / "run")) == [4] * before
    assert on_ranks(after, compressed_from_there, str(tmp_path / "run")) == [None] * after
    assert left(tmp_path, "run") == left(tmp_path, "whole")


def killed_then(world, folder):
    at_step(5, world.size - 1, lambda *_: os._exit(9))
    short(folder, FLIPS, exchange_share=0.05)


def test_a_killed_rank_leaves_what_was_not_yet_exchanged(tmp_path):
    short(str(tmp_path / "whole"), FLIPS, exchange_share=0.05)
    on_ranks(3, killed_then, str(tmp_path / "run"))
    tensors, record = checkpoint.load(tmp_path / "run" / "state.safetensors")
    assert 0 < record["step"] < 6
    assert {name.split("/")[1] for name in tensors if name.startswith("unsent/")} == {"0", "1", "2"}
    assert on_ranks(2, compressed_from_there, str(tmp_path / "run"), generation=1) == [None] * 2
    assert left(tmp_path, "run") == left(tmp_path, "whole")
