"""A host and those who join it: sealed messages, who is let in, who is dropped, and whose parts come back."""

import errno
import os
import re
import socket
import stat
import time

import pytest

from sidestep.errors import InputError, RankError
from sidestep.version import __version__
from sidestep.world import Guest, Host
from sidestep.world import guest as guest_module
from sidestep.world import host as host_module
from sidestep.world import peer as peer_module
from sidestep.world.address import is_loopback, read_token, settled_token, split_address
from sidestep.world.roster import History, mask_of, parts_in
from sidestep.world.sealed import HEADER_BYTES, MOST_BEFORE, Channel, Kind

GUESTS = []
TOKEN = b"a token that is long enough"


def sides(token=TOKEN, other=TOKEN):
    worker, host = Channel(hosts=False), Channel(hosts=True)
    worker.agree(token, b"1" * 16, b"2" * 16)
    host.agree(other, b"1" * 16, b"2" * 16)
    return worker, host


def test_messages_come_back_in_their_order_however_they_are_cut():
    worker, host = sides()
    data = b"".join(worker.sealed(Kind.PART, bytes([n]) * n, step=n, generation=7) for n in range(5))
    found = []
    for place in range(len(data)):
        host.feed(data[place : place + 1])
        while message := host.next():
            found.append((message.kind, message.generation, message.step, message.data))
    assert found == [(Kind.PART, 7, n, bytes([n]) * n) for n in range(5)]
    assert worker.sent_bytes == len(data) == 5 * HEADER_BYTES + 10


@pytest.mark.parametrize("place", range(HEADER_BYTES + 3))
def test_a_message_that_was_changed_anywhere_is_refused(place):
    worker, host = sides()
    data = bytearray(worker.sealed(Kind.PART, b"abc"))
    data[place] ^= 2
    host.feed(bytes(data) + b"\0" * MOST_BEFORE)
    with pytest.raises(RankError, match="it sen"):
        host.next()


def test_messages_that_are_repeated_left_out_reflected_or_of_another_token_are_refused():
    worker, host = sides()
    one, two = worker.sealed(Kind.PART, b"one"), worker.sealed(Kind.PART, b"two")
    host.feed(one + one)
    assert host.next().data == b"one"
    with pytest.raises(RankError, match="message 0 where 1 was due: repeated"):
        host.next()
    _, host = sides()
    host.feed(two)
    with pytest.raises(RankError, match="message 1 where 0 was due"):
        host.next()
    worker, host = sides()
    worker.feed(worker.sealed(Kind.PART))
    with pytest.raises(RankError, match="seal is wrong"):
        worker.next()
    worker, host = sides(other=b"another token, as long")
    host.feed(worker.sealed(Kind.PART))
    with pytest.raises(RankError, match="seal is wrong"):
        host.next()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "no message of Sidestep's .'GET / HTTP/1"),
        (b"\x80\x04}", "no message of Sidestep's .80 04 7d"),
        (b"S", None),
        (Channel(hosts=False).sealed(Kind.PART, b"x" * (MOST_BEFORE + 1)), "4,097 bytes; up to 4,096"),
        (b"SJ\x02" + b"\0" * 60, "messages of format 2, and this side of format 1"),
    ],
    ids=["http", "pickle", "too short to tell", "too long", "another format"],
)
def test_what_is_no_message_is_refused_before_more_of_it_is_taken(data, words):
    host = Channel(hosts=True)
    host.feed(data)
    if words is None:
        assert host.next() is None
        return
    with pytest.raises(RankError, match=words):
        host.next()


def test_parts_as_bits():
    assert parts_in(mask_of([0, 9, 63]) + b"rest") == ([0, 9, 63], b"rest")
    with pytest.raises(RankError, match="without the parts"):
        parts_in(b"short")


@pytest.mark.parametrize("where", ["", "host", "host:", ":80", "::1:", "host:80000", "host:-1", "host:port",
                                   "a..b:80", "a" * 70 + ":80", "1" * 5000])  # fmt: skip
def test_what_is_no_address_is_refused(where):
    with pytest.raises(InputError, match="an address has the form HOST:PORT"):
        split_address(where)


def test_other_machines_are_let_in_by_a_token_alone(tmp_path):
    assert is_loopback("127.0.0.1")
    assert is_loopback("localhost")
    assert not is_loopback("0.0.0.0")
    with pytest.raises(InputError, match="give --token-file FILE"):
        Host("0.0.0.0:0")
    with pytest.raises(InputError, match="has a token: give --token-file"):
        Guest("192.0.2.1:80")
    with pytest.raises(InputError, match=r"must be from 1\.2 s"):
        Host("0", timeout=0.5)
    with pytest.raises(InputError, match=r"--check-share is a share of the parts that come, from 0 to 1, got 2"):
        Host("0", check_share=2)


def test_a_token_is_made_once_for_its_owner_alone(tmp_path):
    token, new = settled_token(tmp_path / "token")
    assert new
    assert settled_token(tmp_path / "token") == (token, False)
    assert read_token(tmp_path / "token") == token
    assert len(token) == 64
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
    (tmp_path / "short").write_text("secret\n")
    with pytest.raises(InputError, match="has 6 letters, and needs 16"):
        read_token(tmp_path / "short")
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_token(tmp_path / "none")


def test_a_port_in_use_is_refused():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} is in use: give another with --listen"):
            Host(str(port))


def test_nobody_who_listens_is_said_in_a_sentence():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(InputError, match=f"nobody listens at {where} .Connection refused"):
        Guest(where)


def test_steps_begin_however_far_behind_the_thread_is():
    host = Host("0")  # whose thread reads nothing before `begin`
    try:
        assert not host._wake.getblocking()  # or what follows would hang, and not fail
        for step in range(2000):
            assert host.publish(step, 4) == [0, 1, 2, 3]
    finally:
        host.end("the test is over")


class Spent:
    """A socket that listens, and for which there are no file handles left for a while."""

    def __init__(self, listening, until):
        self._listening, self._until, self.tries = listening, until, 0

    def accept(self):
        self.tries += 1
        if time.monotonic() < self._until:
            raise OSError(errno.EMFILE, "Too many open files")
        return self._listening.accept()

    def __getattr__(self, name):
        return getattr(self._listening, name)


def test_without_file_handles_it_waits_says_so_once_and_lets_them_in_later(monkeypatch):
    monkeypatch.setattr(host_module, "_PAUSE", 0.1)
    host = Host("0", TOKEN)
    host._listening = Spent(host._listening, time.monotonic() + 0.5)
    host.begin(b"what is trained", 1000)
    guest = joined(host)
    assert host._listening.tries < 20
    said = [line for line in host.news() if "nobody else can join for now (Too many open files)" in line]
    assert len(said) == 1
    guest.close()
    GUESTS.clear()
    host.end("that was all")


def test_what_is_announced_is_said_when_workers_are_let_in():
    host = Host("0")
    host.announce("others can join")
    assert host.news() == []
    host.begin(b"", 10)
    assert host.news() == ["others can join"]
    host.end("that was all")


def test_an_end_is_not_told_to_those_who_have_not_shown_the_token():
    host = Host("0", TOKEN)
    host.begin(b"what is trained", 1000)
    with (
        socket.create_connection(split_address(host.address)) as silent,
        socket.create_connection(split_address(host.address)) as greeting,
    ):
        greeting.sendall(Channel(hosts=False).sealed(Kind.HELLO, b"1" * 16 + __version__.encode()))
        challenge = greeting.recv(4096)
        assert challenge
        host.end("the disk of /home/anne is full", failed=True)
        assert silent.recv(4096) == b""
        assert greeting.recv(4096) == b""


@pytest.fixture
def host():
    made = Host("0", TOKEN, timeout=1.2)
    made.begin(b"what is trained", 1000)
    yield made
    for guest in GUESTS:
        guest.close()
    GUESTS.clear()
    made.end("that was all")


def joined(host, ready=True, name=""):
    guest = Guest(host.address, TOKEN, name=name)
    GUESTS.append(guest)
    assert guest.welcome == b"what is trained"
    guest.send(Kind.ACCEPT)
    if ready:
        guest.send(Kind.READY)
        until(lambda: host.workers > 0)
    return guest


def until(true, seconds=10):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.005)


def following(guest, kind):
    """The next message of a kind."""
    while (message := guest.receive()).kind is not kind:
        pass
    return message


def news(host, count, seconds=10):
    found = []
    until(lambda: len(found.extend(host.news()) or found) >= count, seconds)
    return found


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        os.urandom(3) + b"\0" * 5000,
        Channel(hosts=False).sealed(Kind.PART, b"x" * 5000),
        Channel(hosts=False).sealed(Kind.PROOF),
        Channel(hosts=False).sealed(Kind.HELLO, b"1" * 16 + b"0.0"),
        b"",
    ],
    ids=["http", "noise", "too long", "out of turn", "other version", "closed"],
)
def test_strangers_are_refused_in_a_line_and_hurt_nobody(data, host):
    with socket.create_connection(split_address(host.address)) as stranger:
        stranger.sendall(data)
        if data:
            while stranger.recv(4096):
                pass
    (line,) = news(host, 1)
    assert "was refused: it " in line
    guest = joined(host)
    assert host.workers == 1
    guest.close()


def test_another_token_is_refused_on_both_sides(host):
    with pytest.raises(InputError, match="has another token: give --token-file"):
        Guest(host.address, b"not the token of the run")
    assert "seal is wrong: damaged on its way, or made with another token" in news(host, 1)[0]
    assert host.workers == 0


def test_another_version_is_refused_on_both_sides(host, monkeypatch):
    monkeypatch.setattr(guest_module, "__version__", "0.0")
    with pytest.raises(InputError, match=r"and this machine 0\.0: install the same version"):
        Guest(host.address, TOKEN)
    assert "it has sidestep 0.0, and this run" in news(host, 1)[0]


def test_a_recorded_conversation_lets_nobody_in(host):
    """What a worker has sent once is of no use in another connection: the host's number is another."""
    sent = []

    class Recording(Channel):
        def sealed(self, *arguments, **named):
            sent.append(super().sealed(*arguments, **named))
            return sent[-1]

    plain, guest_module.Channel = guest_module.Channel, Recording
    try:
        joined(host).close()
    finally:
        guest_module.Channel = plain
    news(host, 2)  # it has come, and gone
    with socket.create_connection(split_address(host.address)) as stranger:
        stranger.sendall(b"".join(sent[:2]))
        while stranger.recv(4096):
            pass
    assert any("was refused: it sent a message whose seal is wrong" in line for line in news(host, 1))


def test_parts_are_given_come_back_and_pass_to_others_when_a_worker_goes(host):
    one = joined(host)
    assert host.publish(0, 3) == [0, 2]
    first = following(one, Kind.STEP)
    assert (first.step, parts_in(first.data)) == (0, ([1], b""))
    one.send(Kind.PART, b"\1result", 0)
    until(lambda: (found := host.taken()) and (found[0].part, found[0].data) == (1, b"result"))
    two = joined(host)
    until(lambda: host.workers == 2)
    assert host.publish(1, 4, b"decided") == [0, 3]
    assert parts_in(following(one, Kind.STEP).data) == ([1], b"decided")
    assert parts_in(following(two, Kind.STEP).data) == ([2], b"decided")
    two.send(Kind.PART, b"\2", 1)
    until(lambda: len(host.taken()) == 1)
    one.close("it was stopped")
    until(lambda: host.workers == 1)
    assert host.adopted() == [1]
    assert host.adopted() == []
    assert any("has gone, at step 1: it was stopped; the others take its parts" in line for line in host.news())
    assert host.publish(2, 6, b"next") == [0, 2, 4]
    two.close()
    until(lambda: host.workers == 0)
    assert host.adopted() == [1, 3, 5]


def test_the_fastest_get_the_parts_that_are_left_when_everybody_has_one(host):
    guests = [joined(host) for _ in range(2)]
    until(lambda: host.workers == 2)
    assert host.publish(0, 3) == [0]
    host.took(1000.0, 1)
    guests[0].send(Kind.PART, b"\1", 0)
    until(lambda: len(host.taken()) == 1)
    time.sleep(0.2)  # the slower one
    guests[1].send(Kind.PART, b"\2", 0)
    until(lambda: len(host.taken()) == 1)
    assert host.publish(1, 8) == [0]
    given = []
    for guest in guests:
        following(guest, Kind.STEP)
        given.append(len(parts_in(following(guest, Kind.STEP).data)[0]))
    assert given[0] > given[1] >= 1
    assert sum(given) == 7


def test_a_worker_that_comes_back_keeps_its_number(host):
    joined(host, name="anne").close("it was stopped")
    joined(host, name="bob")
    joined(host, name="anne")
    joined(host, name="anne\n" * 40)
    found = "\n".join(news(host, 5))
    for said in ("worker 1 (anne, 127", "worker 2 (bob, 127", "worker 3 (anne"):
        assert f"{said}" in found
    assert re.search(r"worker 1 \(anne, [\d.:]+\) has gone.*\n.*\n?.*worker 1 \(anne, [\d.:]+\) has come back", found)
    assert len(found.splitlines()) == 5  # a name is one line


def test_a_newcomer_gets_the_log_and_the_steps_that_it_lacks(host, tmp_path):
    (tmp_path / "log").write_bytes(b"steps 0 and 1" + b"not yet counted on")
    host.publish(0, 2)
    for step in (1, 2):
        host.publish(step, 2, b"%d" % (step - 1))
    host.publish(3, 2, b"2", History(tmp_path / "log", 13, 2))
    guest = joined(host, ready=False)
    message = following(guest, Kind.HISTORY)
    assert (message.data, message.step) == (b"steps 0 and 1", 2)
    assert following(guest, Kind.HISTORY).data == b""
    message = following(guest, Kind.STEP)
    assert (message.step, parts_in(message.data)) == (3, ([], b"2"))
    host.publish(4, 2, b"3", History(tmp_path / "log", 13, 2))
    assert parts_in(following(guest, Kind.STEP).data) == ([], b"3")
    guest.close()


@pytest.mark.parametrize(
    ("data", "step", "words"),
    [
        (b"\0", 0, "it sent part 0 of step 0, which it was not given"),
        (b"\1", 1, "it sent part 1 of step 1, which it was not given"),
        (b"", 0, "it sent part 255 of step 0"),
        (b"\1" * 1001, 0, "up to 1,000 are taken"),
    ],
)
def test_a_worker_that_sends_what_it_was_not_asked_for_is_dropped(data, step, words, host):
    guest = joined(host)
    host.publish(0, 2)
    guest.send(Kind.PART, data, step)
    assert any(words in line for line in news(host, 2))
    assert host.adopted() == [1]
    assert words in following(guest, Kind.REFUSED).data.decode()


def test_a_log_of_any_length_is_sent(host, tmp_path, monkeypatch):
    monkeypatch.setattr(peer_module, "_MOST_WAITING", 1 << 16)
    size = 24 << 20  # more than the connection takes at once
    (tmp_path / "log").write_bytes(b"1" * size)
    host.publish(0, 2)
    host.publish(1, 2, b"0", History(tmp_path / "log", size, 1))
    guest = joined(host, ready=False)
    taken = 0
    while data := following(guest, Kind.HISTORY).data:
        taken += len(data)
    assert taken == size


def test_a_part_is_taken_once(host):
    guest = joined(host)
    host.publish(0, 2)
    for _ in range(2):
        guest.send(Kind.PART, b"\1", 0)
    assert any("which it was not given" in line for line in news(host, 2))


def test_a_silent_worker_is_dropped_and_one_that_is_only_busy_is_not(host):
    busy = joined(host)
    silent = joined(host)
    until(lambda: host.workers == 2)
    silent._closed = True  # its thread ends, as of a process that is stopped
    lines = news(host, 3, seconds=5)
    assert "has gone, at step 0: it has been silent for 1.2 s" in lines[-1]
    assert host.workers == 1
    host.drop_late(9.0)
    assert host.workers == 1  # it owes nothing
    host.publish(0, 2)
    host.drop_late(9.0)
    assert host.workers == 0
    assert "it has not sent its part of step 0 within 9.0 s" in news(host, 1)[-1]
    busy.close()


def test_workers_beyond_the_parts_of_a_step_wait_in_reserve(host):
    guests = [joined(host) for _ in range(2)]
    until(lambda: host.workers == 2)
    host.news()
    assert host.publish(0, 2) == [0]
    assert "a step has 2 parts, so 1 worker in reserve" in news(host, 1)[0]
    for guest in guests:
        guest.close()


def test_a_worker_that_has_done_its_parts_takes_some_of_one_that_goes(host):
    guests = [joined(host) for _ in range(2)]
    until(lambda: host.workers == 2)
    assert host.publish(0, 6) == [0, 3]
    own, _ = parts_in(following(guests[0], Kind.STEP).data)
    for part in own:
        guests[0].send(Kind.PART, bytes([part]), 0)
    done = []
    until(lambda: len(done.extend(host.taken()) or done) == len(own))
    guests[1].close()
    until(lambda: host.workers == 1)
    (left,) = host.adopted()
    ((more,), body) = parts_in(following(guests[0], Kind.MORE).data)
    assert (sorted([*own, left, more]), body) == ([1, 2, 4, 5], b"")
    guests[0].send(Kind.PART, bytes([more]), 0)
    until(lambda: len(host.taken()) == 1)
    assert host.adopted() == []


@pytest.mark.parametrize("failed", [False, True])
def test_the_end_is_told_to_all(failed):
    host = Host("0", timeout=2)
    host.begin(b"", 10)
    guest = Guest(host.address)
    host.end("the disk is full", failed)
    message = guest.receive()
    assert (message.kind, message.data) == (Kind.REFUSED if failed else Kind.END, b"the disk is full")
    with pytest.raises(RankError, match="when its run goes on, with --resume, join again"):
        guest.receive()
    guest.close()
