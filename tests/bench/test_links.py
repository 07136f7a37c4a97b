"""The relay is as thin as it says, the ring sums what it is given, and the simulation is the arithmetic of a link."""

import argparse
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from benchmarks.links.real import free_ports
from benchmarks.links.relay import Link, Relays, link_option, parse_link
from benchmarks.links.ring import Ring
from benchmarks.links.simulation import Churn, Costs, gather_seconds, run, sum_seconds
from benchmarks.links.ways import WAYS
from sidestep.errors import InputError
from sidestep.noise import Noise

THIN = Link(bits=1e6, round_trip=0.05)
COSTS = Costs(0.01, 0.001, 0.002, 1000, 1, False, 50, state=0, log=100)


def test_a_link_is_read_as_it_is_written():
    assert parse_link("1Mbit,50ms") == THIN
    assert parse_link("20 kbit/s, 0ms") == Link(20e3, 0.0)
    for wrong in ("1Mbit", "fast,50ms", "0Mbit,50ms", "1Mbit,50s", "1Mbit,-1ms"):
        with pytest.raises(InputError, match="a link"):
            parse_link(wrong)
        with pytest.raises(argparse.ArgumentTypeError, match="a link"):
            link_option(wrong)


def test_the_relay_delays_limits_and_changes_nothing():
    sent = Noise(1).words(2500).to(torch.uint8).numpy().tobytes()
    behind, before = free_ports(2)
    server = socket.create_server(("127.0.0.1", behind))
    with Relays(Link(bits=200_000, round_trip=0.1), [(before, ("127.0.0.1", behind))]):
        client = socket.create_connection(("127.0.0.1", before))
        there, _ = server.accept()
        start = time.monotonic()
        client.sendall(sent)
        found = there.recv(1, socket.MSG_WAITALL)
        first = time.monotonic() - start
        found += there.recv(len(sent) - 1, socket.MSG_WAITALL)
        last = time.monotonic() - start
        client.close()
        assert there.recv(1) == b""
        there.close()
    server.close()
    assert found == sent
    assert first >= 0.05  # half a round trip
    assert last >= 0.05 + 8 * len(sent) / 200_000


@pytest.mark.parametrize("size", [2, 3])
def test_a_ring_gathers_in_order_and_sums(size):
    listen = free_ports(size)
    values = Noise(2).normal(size * 7).view(size, 7).double()

    def rank(place):
        ring = Ring(place, size, listen[place], listen[(place + 1) % size])
        found = ring.gather(bytes([place]) * (place + 1)), ring.summed(values[place]), ring.broadcast(b"first")
        ring.close()
        return found

    with ThreadPoolExecutor(size) as pool:
        for gathered, total, said in pool.map(rank, range(size)):
            assert gathered == [bytes([place]) * (place + 1) for place in range(size)]
            torch.testing.assert_close(total, values.sum(0))
            assert said == b"first"


def test_a_lost_neighbour_is_an_error_and_no_wait():
    listen = free_ports(2)
    rings = [None, None]

    def meet(place):
        rings[place] = Ring(place, 2, listen[place], listen[1 - place])

    threads = [threading.Thread(target=meet, args=(place,)) for place in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    rings[1].close()
    with pytest.raises(OSError, match=r"gone|reset|Broken"):
        rings[0].gather(b"anybody there?")
    rings[0].close()


def test_one_worker_exchanges_nothing_and_two_pay_the_link():
    assert gather_seconds(THIN, 1, 1e6) == sum_seconds(THIN, 1, 1e6) == 0
    assert gather_seconds(THIN, 2, 1000) == pytest.approx(0.025 + 0.008)
    assert sum_seconds(THIN, 2, 1000) == pytest.approx(2 * (0.025 + 0.004))


@pytest.mark.parametrize("workers", [2, 3, 4, 7, 64, 1000])
@pytest.mark.parametrize("payload", [100, 1_000_000])
def test_the_exchange_never_takes_longer_than_a_ring_nor_less_than_the_bytes(workers, payload):
    for seconds, least in (
        (gather_seconds, (workers - 1) * 8 * payload / THIN.bits),
        (sum_seconds, 2 * (workers - 1) / workers * 8 * payload / THIN.bits),
    ):
        assert least < seconds(THIN, workers, payload) <= seconds(THIN, workers, payload, ring=True)


def test_a_run_without_churn_is_its_steps_and_churn_costs_more():
    calm = run(COSTS, THIN, 4, 32, Churn(0.0), Noise(0))
    assert calm.seconds == pytest.approx(50 * COSTS.step(THIN, 4, 32))
    assert (calm.sent, calm.left) == (50 * 3 * 1000, 0)
    stormy = run(COSTS, THIN, 4, 32, Churn(1e9), Noise(0))
    assert stormy.left == 50
    assert stormy.seconds == pytest.approx(50 * (2 * COSTS.step(THIN, 4, 32) + 6.5))
    assert stormy.sent > calm.sent


def test_fewer_exchanges_cost_less():
    often, rarely = (Costs(0.01, 0.001, 0.002, 1000, every, True, 48, state=0) for every in (1, 16))
    both = [run(costs, THIN, 4, 32, Churn(0.0), Noise(0)) for costs in (often, rarely)]
    assert both[0].sent == pytest.approx(16 * both[1].sent)
    assert both[1].seconds == pytest.approx(48 * rarely.step(THIN, 4, 32))


@pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))
def test_every_way_counts_the_message_of_one_worker(way):
    def payload(workers):
        own = way("digits", workers, 10)
        own.step(0)
        assert own.part_seconds > 0
        return own.payload

    one, four = payload(1), payload(4)
    assert 0.5 * one < four <= 1.1 * one  # a share of the examples, and a message of its own
