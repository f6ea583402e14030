"""No network but loopback: an audit hook that refuses to connect or look up names.

A hook can't be taken out again, and sees sockets whoever makes them.
"""

from __future__ import annotations

import sys
from typing import Any

LOCAL = ("", "localhost", "::1", "0.0.0.0", "::", "<broadcast>")


class NetworkClosed(RuntimeError):
    """Something reached for the network; not an OSError, so that none swallows it."""


def close() -> None:
    """Refuse every connection and look-up beyond this machine, from now on."""
    sys.addaudithook(_watch)


def _watch(event: str, args: tuple[Any, ...]) -> None:
    if not event.startswith("socket."):
        return
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = args[1]
        if isinstance(address, tuple):
            _require_local(address[0], address[1])
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        _require_local(args[0], "")


def _require_local(host: Any, port: Any) -> None:
    name = host.decode() if isinstance(host, bytes | bytearray) else str(host or "")
    if name in LOCAL or name.startswith("127.") or name.startswith("::ffff:127."):
        return
    place = f"{name}:{port}" if port else name
    raise NetworkClosed(
        f"this runs without a network, but something asked for {place}; "
        "nothing in the course may need one"
    )
