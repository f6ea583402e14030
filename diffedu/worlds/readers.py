"""Readers of the IDX and CIFAR-10 file formats, which trust no byte of them.

A pickle is a program: CIFAR's may call what rebuilds byte arrays, and nothing else.
"""

from __future__ import annotations

import gzip
import io
import math
import pickle
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np

from diffedu.errors import require

Pair = tuple[np.ndarray, np.ndarray]


def read_idx(path: str | Path) -> np.ndarray:
    """Read an IDX file of bytes, packed (.gz) or not.

    Args:
        path: the file.

    Returns:
        a uint8 array of the shape that the file's head tells.

    Raises:
        ValueError: if it is damaged, truncated, or no IDX file of bytes.
    """
    return parse_idx(Path(path), Path(path).read_bytes())


def parse_idx(path: Path, content: bytes) -> np.ndarray:
    """As `read_idx`, of bytes already read; the path tells whether they are packed."""
    if path.suffix == ".gz":
        content = _unpack(path, content)
    require(
        len(content) >= 4 and content[:3] == b"\x00\x00\x08" and content[3] > 0,
        f"{path} is no IDX file of bytes: it starts with {content[:4]!r}",
    )
    head = 4 + 4 * content[3]
    require(len(content) >= head, f"{path} is truncated within its head")
    shape = struct.unpack(f">{content[3]}I", content[4:head])
    found, wanted = len(content) - head, math.prod(shape)
    require(
        found == wanted,
        f"{path} is truncated or damaged: its head tells of shape {shape}, "
        f"{wanted} bytes, and {found} follow",
    )
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape)


def _unpack(path: Path, content: bytes) -> bytes:
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is a damaged or truncated .gz: {error}") from error


def _byte_type(name: bytes | str, *_: object) -> np.dtype:
    """The only element type that a batch may have."""
    if name not in (b"u1", "u1"):
        raise pickle.UnpicklingError(f"elements of type {name!r} are not expected")
    return np.dtype(np.uint8, copy=True)


def _latin(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes in an old protocol; no other codec is let in."""
    if encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"codec {encoding!r} is not expected")
    return text.encode("latin1")


_REBUILD = np.empty(0).__reduce__()[0]
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _REBUILD,
    ("numpy._core.multiarray", "_reconstruct"): _REBUILD,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _byte_type,
    ("_codecs", "encode"): _latin,
}


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that knows only the names in `_ALLOWED`."""

    def find_class(self, module: str, name: str) -> object:
        """What a name in the pickle stands for, or UnpicklingError."""
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _ALLOWED[module, name]


def read_cifar_batch(content: bytes, what: str) -> Pair:
    """Read one of CIFAR-10's pickled batches without trusting it.

    Args:
        content: the bytes of the file.
        what: how to call it in an error.

    Returns:
        images (N, 3, 32, 32) uint8, labels (N,) int64.

    Raises:
        ValueError: if the pickle asks for anything but byte arrays, is truncated,
            or holds other than images with their labels.
    """
    try:
        batch = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
        images = batch[b"data"].reshape(-1, 3, 32, 32)
        labels = np.array(batch[b"labels"], dtype=np.int64)
    except Exception as error:  # a broken pickle can raise nearly anything
        raise ValueError(
            f"{what} is refused as a CIFAR-10 batch ({type(error).__name__}: {error}); "
            "fetch the published file again"
        ) from error
    require(len(images) == len(labels), f"{what} has {len(labels)} labels")
    return images, labels


def read_members(archive: Path, content: bytes, names: list[str]) -> list[bytes]:
    """Files out of a .tar.gz; nothing is written to disk.

    Args:
        archive: its path, for the error.
        content: its bytes.
        names: the files wanted, as the archive calls them.

    Returns:
        the content of each.

    Raises:
        ValueError: if the archive is damaged or truncated, or lacks one.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            return [tar.extractfile(name).read() for name in names]
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{archive} is damaged or truncated: {error}") from error
    except (KeyError, AttributeError) as error:
        raise ValueError(f"{archive} lacks one of {names}") from error
