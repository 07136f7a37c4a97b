"""A link as it is written, `1Mbit,50ms`, and how long a message takes over it."""

from dataclasses import dataclass

from sidestep.errors import InputError

__all__ = ["Link", "parse_link"]

_UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_MOST_BITS, _MOST_TRIP = 1e12, 60.0


@dataclass(frozen=True)
class Link:
    """bits: a second, each way. round_trip: seconds."""

    bits: float
    round_trip: float

    def __str__(self) -> str:
        unit, size = ("Gbit/s", 1e9) if self.bits >= 1e9 else ("Mbit/s", 1e6) if self.bits >= 1e6 else ("kbit/s", 1e3)
        return f"{self.bits / size:g} {unit}, {1000 * self.round_trip:g} ms"

    def seconds(self, payload: float) -> float:
        """Return when the last byte of a message arrives at the other end."""
        return self.round_trip / 2 + 8 * payload / self.bits


def parse_link(text: str) -> Link:
    """Return the link that a text such as `1Mbit,50ms` describes: bits a second, and the round trip.

    Raises:
        InputError: for anything else.

    >>> parse_link("1Mbit,50ms")
    Link(bits=1000000.0, round_trip=0.05)
    """
    try:
        speed, trip = text.lower().replace(" ", "").split(",")
        unit = next(unit for unit in _UNITS if speed.removesuffix("/s").endswith(unit))
        found = Link(float(speed.removesuffix("/s").removesuffix(unit)) * _UNITS[unit], _seconds(trip))
    except (ValueError, StopIteration) as error:
        raise InputError(
            f"a link is written as 1Mbit,50ms: kbit, Mbit or Gbit a second, and the round trip in ms; got {text!r}"
        ) from error
    if not (0 < found.bits < _MOST_BITS and 0 <= found.round_trip < _MOST_TRIP):
        raise InputError(f"a link has bits a second above 0 and a round trip under 60 s, got {text!r}")
    return found


def _seconds(trip: str) -> float:
    if not trip.endswith("ms"):
        raise ValueError(trip)
    return float(trip.removesuffix("ms")) / 1000
