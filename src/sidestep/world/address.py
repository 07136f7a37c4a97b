"""Where a host listens, and the token that those who join it have to know."""

import os
import secrets
import socket
from pathlib import Path

from sidestep.errors import InputError
from sidestep.files import open_plain
from sidestep.wording import sentence
from sidestep.world.sealed import LEAST_TOKEN

__all__ = ["is_loopback", "read_token", "settled_token", "split_address"]

_MOST_TOKEN = 1024  # bytes of its file


def split_address(where: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT, or of PORT alone, which is this machine's own address.

    Raises:
        InputError: for anything else.

    >>> split_address("29400"), split_address("[::1]:80")
    (('127.0.0.1', 29400), ('::1', 80))
    """
    host, _, port = where.rpartition(":")
    if not (port.isdecimal() and len(port) < 8 and int(port) < 65536 and _is_name(host)) or (not host and ":" in where):
        raise InputError(
            f"an address has the form HOST:PORT, for instance 192.168.0.2:29400, or PORT for this machine alone, got "
            f"{where!r}"
        )
    return host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port)


def _is_name(host: str) -> bool:
    """Whether a name can be looked up: no part of it is empty or too long."""
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Say whether an address can be reached from this machine alone."""
    try:
        found = {each[4][0] for each in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return all(str(each).startswith("127.") or each == "::1" for each in found)


def read_token(path: Path) -> bytes:
    """Return what a file of a token holds, without spaces around it.

    Raises:
        InputError: if it cannot be read, or is too short to be hard to guess.
    """
    try:
        with open_plain(path, os.O_RDONLY) as file:
            token = file.read(_MOST_TOKEN + 1).strip()
    except OSError as error:
        raise InputError(
            f"the token in {path} cannot be read: {error.strerror}; copy the file from the machine that listens"
        ) from error
    if not LEAST_TOKEN <= len(token) <= _MOST_TOKEN:
        raise InputError(
            f"the token in {path} has {len(token)} letters, and needs {LEAST_TOKEN} to {_MOST_TOKEN:,}: remove the "
            "file, and the machine that listens writes a new one"
        )
    return token


def settled_token(path: Path) -> tuple[bytes, bool]:
    """Return the token in a file and whether it is new: where there is no file, one that only its owner can read."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return read_token(path), False
    except OSError as error:
        raise InputError(f"the token cannot be written to {path}: {sentence(str(error.strerror))}") from error
    token = secrets.token_hex(32)
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(f"{token}\n")
    return token.encode(), True
