"""Entropy coding with whole-numbered frequencies: asymmetric numeral systems (ANS), 64-bit state, 32-bit words.

    a symbol of frequency f, of 2^24 in all, takes 24 - log2(f) bits

The arithmetic is constriction's; the frequencies are ours and whole, so what is decoded depends on no float. A model
that is given `f - 1` as float64 for n symbols scales by (2^24 - n) / sum(f - 1) = 1 and adds 1 each: it has exactly
the frequencies f. Source: Duda, "Asymmetric numeral systems" (2013); constriction: Bamler (2022).
"""

from collections.abc import Sequence

import constriction
import numpy as np
import numpy.typing as npt

from sidestep.steplog.format import DamagedLogError

__all__ = ["TOTAL", "AnsReader", "AnsWriter", "frequencies"]

TOTAL = 1 << 24

Symbols = npt.NDArray[np.int32]
Frequencies = npt.NDArray[np.int64]


def frequencies(counts: Sequence[int]) -> Frequencies:
    """Return frequencies of sum 2^24, each at least 1, in proportion to `counts`, whose sum is above 0.

        f_k = 1 + floor((2^24 - n) c_k / sum(c))        and what is left goes to the first largest

    >>> frequencies([1, 2, 1]).tolist()
    [4194304, 8388608, 4194304]
    """
    free, total = TOTAL - len(counts), sum(counts)
    found = [1 + free * count // total for count in counts]
    found[found.index(max(found))] += TOTAL - sum(found)
    return np.array(found, dtype=np.int64)


class AnsWriter:
    """Takes symbols in the order in which they will be read; ANS itself is a stack, so they are coded backwards."""

    def __init__(self) -> None:
        self._parts: list[tuple[Symbols, Frequencies]] = []

    def put(self, symbols: npt.NDArray[np.integer], table: Frequencies) -> None:
        """Append symbols (n,) by one table of frequencies (symbols,), or by one table each, (n, symbols)."""
        if len(symbols):
            self._parts.append((symbols.astype(np.int32), table))

    def to_bytes(self) -> bytes:
        """Return the words, 4 bytes each."""
        coder = constriction.stream.stack.AnsCoder()
        for symbols, table in reversed(self._parts):
            if table.ndim == 1:
                coder.encode_reverse(symbols, _model(table))
            else:
                coder.encode_reverse(symbols, _FAMILY, _floats(table))
        return coder.get_compressed().astype("<u4").tobytes()


class AnsReader:
    """Gives symbols back in the order in which they were put."""

    def __init__(self, data: bytes) -> None:
        if len(data) % 4:
            raise DamagedLogError("coded words are cut")
        try:
            self._coder = constriction.stream.stack.AnsCoder(np.frombuffer(data, "<u4").astype(np.uint32))
        except ValueError as error:
            raise DamagedLogError(f"coded words cannot be read: {error}") from error

    def get(self, count: int, table: Frequencies) -> Symbols:
        """Return the next `count` symbols, (count,); `table` as it was when they were put."""
        if not count:
            return np.empty(0, dtype=np.int32)
        if table.ndim == 1:
            return self._coder.decode(_model(table), count)
        return self._coder.decode(_FAMILY, _floats(table))

    def finish(self) -> None:
        """Raise DamagedLogError unless all words are used up."""
        if not self._coder.is_empty():
            raise DamagedLogError("a block has more coded words than symbols")


_FAMILY = constriction.stream.model.Categorical(perfect=False)


def _model(table: Frequencies) -> constriction.stream.model.Categorical:
    return constriction.stream.model.Categorical(_floats(table), perfect=False, lazy=False)


def _floats(table: Frequencies) -> npt.NDArray[np.float64]:
    return np.ascontiguousarray((table - 1).astype(np.float64))
