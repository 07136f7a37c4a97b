"""The room of ranks: messages that are whole or refused, exact sums, and an error of one that all of them hear of."""

import os
import socket
import subprocess
import sys

import pytest
import torch

from sidestep.errors import InputError, RankError
from sidestep.world.frames import HEADER_BYTES, MOST_BYTES, framed, opened, read_head
from sidestep.world.launched import launched, world_here
from sidestep.world.world import Alone
from tests.reference.ranks import free_port, on_ranks


def _read(data, generation=0, turn=3):
    return opened(read_head(data, generation, turn, 1), data[HEADER_BYTES:], 1)


def test_a_frame_gives_its_message_back():
    for message in (b"", b"a", bytes(range(256)) * 5):
        assert _read(framed(message, 0, 3)) == message


@pytest.mark.parametrize("place", range(HEADER_BYTES + 5))
def test_a_frame_that_was_changed_anywhere_is_refused(place):
    whole = bytearray(framed(b"abcde", 0, 3))
    whole[place] ^= 4
    with pytest.raises(RankError, match="rank 1"):
        _read(bytes(whole))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "sent 0 bytes"),
        (b"\x80\x04}" * 20, "no message of Sidestep's"),
        (framed(b"abc", 0, 3)[:-1], "damaged"),
        (framed(b"abc", 1, 3), "of start 1, this rank at 3 of 0"),
        (framed(b"abc", 0, 2), "at message 2 of start 0"),
    ],
)
def test_what_is_no_message_of_this_turn_is_refused(data, words):
    with pytest.raises(RankError, match=words):
        _read(data)


def test_a_length_that_no_message_has_is_refused_before_anything_is_read():
    head = bytearray(framed(b"", 0, 3))
    head[12:16] = (MOST_BYTES + 1).to_bytes(4, "little")
    with pytest.raises(RankError, match="no message"):
        read_head(bytes(head), 0, 3, 1)


def test_alone_everything_is_its_own():
    world = Alone()
    assert (world.rank, world.size, world.leads) == (0, 1, True)
    assert (world.gather(b"a"), world.broadcast(b"b")) == ([b"a"], b"b")
    assert world.sum(torch.tensor([3])).tolist() == [3]
    with pytest.raises(InputError, match="int64 or float64, got float32"):
        world.sum(torch.zeros(1))


def test_who_a_process_is_must_be_said_in_full(monkeypatch):
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for value, count in (("", 1), ("many", 1), ("1", 1), ("3", 3)):
        monkeypatch.setenv("WORLD_SIZE", value)
        assert launched() == count
    with pytest.raises(InputError, match="RANK, MASTER_ADDR, MASTER_PORT is not set"):
        world_here()


def test_one_process_knows_how_often_it_was_started_again(monkeypatch):
    assert world_here().generation == 0
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert (world_here().generation, world_here().size) == (2, 1)


def test_a_port_in_use_is_refused(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        where = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken.getsockname()[1])}
        for name, value in where.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(InputError, match="the port at which the ranks meet is in use"):
            world_here()


def _everything(world):
    lengths = [0, 5, 300, 10, 100_000, 20]
    gathered = [world.gather(bytes([world.rank]) * (length + world.rank)) for length in lengths]
    wanted = [[bytes([rank]) * (length + rank) for rank in range(world.size)] for length in lengths]
    before = world.sent_bytes
    for _ in range(3):
        world.gather(b"x" * 264)
    sent = world.sent_bytes - before
    big = world.broadcast(bytes(range(256)) * 1000 if world.leads else b"of no one")
    exact = world.sum(torch.tensor([2**61, -(2**61) + world.rank, 1 << world.rank]))
    real = world.sum(torch.full((3,), 0.1, dtype=torch.float64))
    return gathered == wanted, sent, big == bytes(range(256)) * 1000, exact.tolist(), real.tolist()


def test_three_ranks_gather_broadcast_and_sum():
    found = on_ranks(3, _everything)
    assert found[0] == found[1] == found[2]  # sums, too, to the bit
    whole, sent, broadcast, exact, _ = found[0]
    assert whole
    assert broadcast
    assert exact == [3 * 2**61, -3 * 2**61 + 3, 7]
    assert sent == 3 * (HEADER_BYTES + 264)


def _short(data, turn=3, known=b"net, rule and step"):
    head = read_head(data, 0, turn, 1)
    return opened(head, data[head.size :], 1, known)


@pytest.mark.parametrize("length", [0, 1, 127, 128, 20_000])
def test_what_all_know_is_not_sent(length):
    message = bytes(length)
    data = framed(message, 0, 3, known=b"net, rule and step")
    assert len(data) == length + 7 + (1 if length < 128 else 2 if length < 1 << 14 else 3)
    assert _short(data) == message
    for turn, known in ((2, b"net, rule and step"), (3, b"net, rule and another step")):
        with pytest.raises(RankError, match="rank 1 is at another step than this one, with another net, rule"):
            _short(data, turn, known)
    with pytest.raises(RankError, match="rank 1 does not do the same as this one"):
        _short(data, known=None)
    with pytest.raises(RankError, match="rank 1 does not do the same as this one"):
        _short(framed(message, 0, 3))


@pytest.mark.parametrize("place", range(11))
def test_a_changed_byte_of_a_short_message_is_found(place):
    data = bytearray(framed(b"abc", 0, 3, known=b"net, rule and step"))
    for bit in (1, 128):
        changed = data.copy()
        changed[place] ^= bit
        with pytest.raises(RankError, match="rank 1"):
            _short(bytes(changed))


def _one_fails(world):
    world.gather(b"all is well", b"the same")
    with world.together():
        if world.rank == 1:
            raise InputError("the disk of rank 1 is full")
        world.gather(b"another step", b"the same")


def test_an_error_of_one_rank_ends_all_with_its_sentence():
    first, second, third = on_ranks(3, _one_fails)
    assert isinstance(second, InputError)
    for error in (first, third):
        assert isinstance(error, RankError)
        assert "rank 1 has stopped: the disk of rank 1 is full" in str(error)


def _one_goes(world):
    world.gather(b"")
    if world.rank == 1:
        os._exit(9)
    world.gather(b"")


def test_a_rank_that_goes_is_missed_at_once():
    first, second, third = on_ranks(3, _one_goes, seconds=20)
    assert second is None
    for error in (first, third):
        assert isinstance(error, RankError)
        assert "has lost another rank" in str(error)


_REFUSED = """
import atexit, sys, weakref
import torch.distributed as dist
groups = []
atexit.register(lambda: sys.stderr.write(f"groups left: {[group() for group in groups]}"))
from sidestep.errors import InputError
from sidestep.world import world_here
with world_here().together():
    groups.append(weakref.ref(dist.group.WORLD))
    world_here().gather(b"")
    try:
        raise InputError("refused on every rank")
    except InputError:
        raise SystemExit(2) from None
"""


def test_refused_ranks_leave_the_group_and_end_with_their_status():
    """The threads of a group that anybody still holds when a process ends abort it, in some of the tries."""
    for _ in range(2):
        where = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        ranks = [
            subprocess.Popen(
                [sys.executable, "-c", _REFUSED],
                env={**os.environ, **where, "RANK": str(rank)},
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in (0, 1)
        ]
        for rank in ranks:
            said = rank.communicate(timeout=60)[1]
            assert (said, rank.returncode) == ("groups left: [None]", 2)
