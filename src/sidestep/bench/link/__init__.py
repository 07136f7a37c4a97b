"""Steps of real ranks over a link of so many bits a second and so long a round trip, on one machine."""

__all__: list[str] = []
