"""The benchmark of several ranks finds the same bits, and counts what passes between them."""

from pathlib import Path

from benchmarks import ranks
from benchmarks.ranks import WAYS, leave
from tests.reference.ranks import on_ranks

NAMES = ("noise-step by probes", "noise-step by probes, trits alone", "noprop-dt by blocks")


def few(world, folder):
    return {name: leave(Path(folder) / name, 4, WAYS[name]) for name in NAMES}


def test_one_and_two_ranks_leave_the_same_bits_and_bytes_are_counted(tmp_path):
    (one,) = on_ranks(1, few, str(tmp_path / "one"))
    two, other = on_ranks(2, few, str(tmp_path / "two"))
    for name in NAMES:
        assert one[name]["sha256"] == two[name]["sha256"] != other[name]["sha256"]  # rank 1 writes nothing
        assert one[name]["bytes"] == 0 < two[name]["bytes"] < 500
    assert two[NAMES[1]]["bytes"] < 32  # 64 trits, a loss, and a header
    assert two["noise-step by probes"]["log"] > 0 == two["noprop-dt by blocks"]["log"]


def test_what_is_there_is_not_measured_again(tmp_path, monkeypatch, capsys):
    calls = []

    def on_ranks_once(ranks, *arguments):
        calls.append((ranks, arguments[-1]))
        return {"sha256": "a" * 64, "bytes": 30.0, "log": 24.0}

    monkeypatch.setattr(ranks, "_on_ranks", on_ranks_once)
    ranks.main(["bits", "--folder", str(tmp_path), "--most", "2", "--for", "-1"])
    assert not calls
    assert "not yet done" in capsys.readouterr().out
    for _ in range(2):
        ranks.main(["bits", "--folder", str(tmp_path), "--most", "2"])
    assert calls == [(size, name) for size in (1, 2) for name in WAYS]
    assert "the same bits for 1 to 2 ranks" in capsys.readouterr().out
