"""The benchmark of several ranks finds the same bits, and counts what passes between them."""

from pathlib import Path

from benchmarks.ranks import WAYS, leave
from tests.reference.ranks import on_ranks

NAMES = ("noise-step by probes", "noprop-dt by blocks")


def few(world, folder):
    return leave(Path(folder), 4, {name: WAYS[name] for name in NAMES})


def test_one_and_two_ranks_leave_the_same_bits_and_bytes_are_counted(tmp_path):
    (one,) = on_ranks(1, few, str(tmp_path / "one"))
    two, other = on_ranks(2, few, str(tmp_path / "two"))
    for name in NAMES:
        assert one[name]["sha256"] == two[name]["sha256"] != other[name]["sha256"]  # rank 1 writes nothing
        assert one[name]["bytes"] == 0 < two[name]["bytes"] < 500
    assert two["noise-step by probes"]["log"] > 0 == two["noprop-dt by blocks"]["log"]
