"""What every test runs under: no network but loopback, no window, one thread."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

os.environ["MPLBACKEND"] = "agg"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


class NetworkClosed(RuntimeError):
    """A test reached for the network; not an OSError, so that nothing swallows it."""


def _require_loopback(host: Any) -> None:
    """Raise NetworkClosed unless the host is this machine."""
    name = host.decode() if isinstance(host, bytes) else str(host or "localhost")
    local = name in ("localhost", "::1", "0.0.0.0", "::") or name.startswith("127.")
    if not local:
        raise NetworkClosed(f"tests run without a network, but one asked for {name}")


def _close_network() -> None:
    """Let sockets connect to loopback and to files only."""
    resolve = socket.getaddrinfo

    def guarded(name: str) -> Any:
        method = getattr(socket.socket, name)

        def call(self: socket.socket, address: Any, *rest: Any) -> Any:
            if isinstance(address, tuple):
                _require_loopback(address[0])
            return method(self, address, *rest)

        return call

    def lookup(host: Any, *args: Any, **kwargs: Any) -> Any:
        _require_loopback(host)
        return resolve(host, *args, **kwargs)

    socket.socket.connect = guarded("connect")
    socket.socket.connect_ex = guarded("connect_ex")
    socket.getaddrinfo = lookup


_close_network()


@pytest.fixture(scope="session")
def root() -> Path:
    """The top folder of the checkout."""
    return Path(__file__).resolve().parent.parent
