"""Packets over a link of one machine: as late and as few as it says; ranks that train over it; what cannot be asked."""

import errno
import os
import socket
import sys
import time
from contextlib import contextmanager, suppress

import pytest

from sidestep.bench.comparison.entries import read_entries
from sidestep.bench.comparison.one_run import Budget, RunPlan
from sidestep.bench.link import network as network_module
from sidestep.bench.link import processes
from sidestep.bench.link.network import Network, address, check_possible
from sidestep.bench.link.processes import run_over_link
from sidestep.bench.link.rate import Link
from sidestep.bench.link.step_times import measure_steps
from sidestep.cli import main
from sidestep.errors import InputError
from sidestep.training.stopping import StopRequest

THIN = Link(bits=1e6, round_trip=0.05)
able = sys.platform.startswith("linux") and os.geteuid() == 0 and os.path.exists("/dev/net/tun")
as_root = pytest.mark.skipif(not able, reason="network namespaces need Linux and root")


def packet(to, size=1500):
    """What the network looks at of a packet of IP: its version, and where it goes."""
    return bytes([0x45, *[0] * 15, *socket.inet_aton(address(to))]) + bytes(size - 20)


@contextmanager
def devices(link, count=3):
    """A network whose devices are socket pairs, and their other ends."""
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(count)]
    for one, other in pairs:
        one.setblocking(False)
        other.settimeout(5)
    with Network(link, [one.detach() for one, _ in pairs]) as found:
        yield found, [other for _, other in pairs]
    for _, other in pairs:
        other.close()


def test_packets_arrive_one_after_another_at_the_links_rate_half_a_round_trip_later():
    with devices(THIN) as (network, ends):
        start = time.monotonic()
        for _ in range(5):
            ends[0].send(packet(1))
        arrived = []
        for _ in range(5):
            assert ends[1].recv(2000) == packet(1)
            arrived.append(time.monotonic() - start)
        for turn, seconds in enumerate(arrived, 1):
            assert seconds >= 0.025 + turn * 8 * 1500 / 1e6 - 1e-3
        assert network.sent == [5 * 1500, 0, 0]
        assert network.dropped == 0


def test_two_that_send_to_one_share_its_link():
    with devices(THIN) as (_, ends):
        start = time.monotonic()
        for _ in range(4):
            ends[0].send(packet(2))
            ends[1].send(packet(2))
        for _ in range(8):
            ends[2].recv(2000)
        assert time.monotonic() - start >= 0.025 + 8 * 8 * 1500 / 1e6 - 1e-3


def test_what_waits_too_long_is_dropped_and_what_goes_nowhere_is_not_counted():
    with devices(THIN) as (network, ends):
        for _ in range(40):  # 480 ms of them, of which 200 ms may wait
            ends[0].send(packet(1))
        ends[2].send(packet(77))
        ends[2].send(b"\x60" + bytes(60))
        ends[1].settimeout(0.5)
        found = 0
        with suppress(TimeoutError):
            while ends[1].recv(2000):
                found += 1
        assert 10 <= found <= 30
        assert network.dropped == 40 - found
        assert network.sent == [40 * 1500, 0, 0]


def test_a_device_that_has_gone_with_its_process_ends_nothing_for_the_others(monkeypatch):
    plain, gone = os.read, []

    def read(file, size):
        if file in gone:
            raise OSError(errno.EBADFD, "File descriptor in bad state")  # what TUN says then
        return plain(file, size)

    monkeypatch.setattr(network_module.os, "read", read)
    with devices(THIN) as (network, ends):
        gone.append(network._devices[2])
        ends[2].send(packet(0))  # it is ready to be read from
        time.sleep(0.1)
        assert network._alive == network._devices[:2]
        ends[0].send(packet(1))
        assert ends[1].recv(2000) == packet(1)
        assert network._thread.is_alive()


class Told:
    """The end of a pipe of which the other is a process that said one thing, or has ended."""

    def __init__(self, said):
        self.said = said

    def send(self, reply):
        if self.said is None:
            raise BrokenPipeError


def test_a_process_that_has_ended_before_it_is_answered_is_a_failure_that_is_said(monkeypatch):
    running = [processes._Process(None, Told(said)) for said in ("a record", None)]

    def heard(them, stop):
        lost = any(each.pipe.said is None for each in them)
        return {"failed": {"kind": "error", "why": "a process ended without a result"}} if lost else None

    monkeypatch.setattr(processes, "_heard", heard)
    (found,) = processes._led(running, None, None, StopRequest())
    assert found["failed"]["why"] == "a process ended without a result"


def talk(given, place, meet):
    """Send a kilobyte from each to the other, and say how long it was on its way."""
    server = socket.create_server((address(place), 5000))
    assert meet(place) == [0, 1]
    start = time.monotonic()
    with socket.create_connection((address(1 - place), 5000)) as out:
        there, _ = server.accept()
        out.sendall(given)
        assert there.recv(len(given), socket.MSG_WAITALL) == given
    if place and given == b"wrong":
        raise InputError("nothing can be said")
    return {"seconds": time.monotonic() - start}


@as_root
def test_processes_reach_each_other_over_the_link_alone():
    sent = []

    def answer(network, values):
        sent.append(network.sent)
        return values

    found = run_over_link(THIN, talk, b"x" * 1000, 2, answer, StopRequest())
    assert all(each["seconds"] >= 0.05 for each in found)  # a round trip to connect, and half of one
    assert all(1000 < each < 3000 for each in sent[0])
    assert "link0" not in {name for _, name in socket.if_nameindex()}


@as_root
@pytest.mark.slow
def test_why_one_process_fails_is_said():
    (found,) = run_over_link(THIN, talk, b"wrong", 2, lambda network, values: values, StopRequest())
    assert found == {"failed": {"kind": "refused", "why": "InputError: nothing can be said"}}


@as_root
@pytest.mark.slow
def test_trits_take_less_of_a_link_than_gradients():
    (entry,) = read_entries(["noise-step:estimator=weight-probes,hidden=64"])
    plan = RunPlan(entry, "digits", 0, Budget(steps=1), device="cpu")
    found = measure_steps(THIN, plan, 2, 1.0, 3, StopRequest())
    assert found["steps"] == 3
    assert 300 < found["bytes"] < 4000
    assert found["seconds"] > 0.025


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--link", "1Mbit"], "a link is written as 1Mbit,50ms"),
        (["--link", "1Mbit,50ms", "--ranks", "1"], "--ranks takes numbers from 2 to 16"),
        (["--link", "1Mbit,50ms", "--epochs", "3"], "leave --epochs out"),
        (["--link", "1Mbit,50ms", "--steps", "0"], "1 step or more of every entry, got --steps 0"),
        (["--link", "1Mbit,50ms", "--steps", "-3"], "1 step or more of every entry, got --steps -3"),
        (["--link", "1Mbit,50ms", "--device", "cuda"], "leave --device out"),
        (["--link", "1Mbit,50ms", "--rules", "spsa", "--baseline", "spsa"], "leave --baseline out"),
        (["--ranks", "2"], "give --link 1Mbit,50ms, too"),
    ],
)
def test_what_cannot_be_asked_of_a_link_is_refused(words, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["bench", *words])
    assert ended.value.code == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_without_root_or_linux_what_is_needed_is_said(monkeypatch):
    monkeypatch.setattr(network_module.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(network_module.sys, "platform", "linux")
    with pytest.raises(InputError, match=r"needs root.*`python -m benchmarks.links`"):
        check_possible()
    monkeypatch.setattr(network_module.sys, "platform", "darwin")
    with pytest.raises(InputError, match="needs Linux"):
        check_possible()
