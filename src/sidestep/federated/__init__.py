"""Federated training of seeded rules: clients keep their data and send scalars, and a server adds them up."""

from sidestep.federated.client import Client
from sidestep.federated.server import Round, Server
from sidestep.federated.split import split_by_label

__all__ = ["Client", "Round", "Server", "split_by_label"]
