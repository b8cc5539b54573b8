"""One connection to a server of torch's TCPStore: its protocol, bounded in time.

torch's own client waits in C++ without a limit for an answer from a server that is frozen, cut off or no store at all,
writes stack traces to stderr when nobody listens, and can abort an interpreter that ends meanwhile. So the requests
are written here; the server is torch's. A request is a byte that says which, then its arguments; strings and numbers
of bytes are counted by 64 bits in the machine's own order. SET, APPEND and MULTI_SET have no answer, so every batch
ends with a request that has one. GET and MULTI_GET answer a key that is not there with no bytes at all.

Source: `torch/csrc/distributed/c10d/TCPStoreBackend.hpp`, which torch installs with its headers; the same from 2.1 on.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterable, Sequence

ANSWER_BYTES_MAX = 2**30
_VALIDATE, _SET, _COMPARE_SET, _GET, _ADD, _CHECK = range(6)
_DELETE_KEY, _APPEND, _MULTI_GET = 8, 9, 10
_MAGIC = 0x3C85F7CE
_COUNT = struct.Struct("=Q")
_NUMBER = struct.Struct("=q")
_DISCARD = struct.pack("ii", 1, 0)


class WireError(Exception):
    """The connection is of no more use. Attribute `refused`: nobody listens there."""

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


class Wire:
    """A connection. Its `deadline_s` (on the monotonic clock) bounds whatever is sent or received.

    Every method raises WireError; then `close` is all that is left to call. Keys and values are bytes.
    """

    def __init__(self, address: tuple[str, int], deadline_s: float) -> None:
        self.deadline_s = deadline_s
        self._buffer = b""  # received, used up to _at
        self._at = 0
        try:
            self._socket = socket.create_connection(address, self._left_s())
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        except ConnectionRefusedError as error:
            raise WireError("nobody listens there", refused=True) from error
        except OSError as error:
            raise WireError(str(error) or type(error).__name__) from error
        self._send(bytes([_VALIDATE]) + struct.pack("=I", _MAGIC))

    def _left_s(self) -> float:
        left_s = self.deadline_s - time.monotonic()
        if left_s <= 0:
            raise WireError("it does not answer in time")
        return left_s

    def _send(self, data: bytes) -> None:
        try:
            self._socket.settimeout(self._left_s())
            self._socket.sendall(data)
        except OSError as error:
            raise _broken(error) from error

    def _receive(self, size: int) -> bytes:
        end = self._at + size
        while len(self._buffer) < end:
            try:
                self._socket.settimeout(self._left_s())
                part = self._socket.recv(max(end - len(self._buffer), 65536))
            except OSError as error:
                raise _broken(error) from error
            if not part:
                raise WireError("it closed the connection")
            self._buffer = self._buffer[self._at :] + part
            self._at, end = 0, size
        data = self._buffer[self._at : end]
        self._at = end
        return data

    def _number(self) -> int:
        return int(_NUMBER.unpack(self._receive(_NUMBER.size))[0])

    def _string(self) -> bytes:
        size = _COUNT.unpack(self._receive(_COUNT.size))[0]
        if size > ANSWER_BYTES_MAX:
            raise WireError("it does not speak as a store does")
        return self._receive(size)

    def compare_set(self, key: bytes, expected: bytes, desired: bytes) -> bytes:
        """What stands there afterwards; `expected`, if nothing stands there and something was expected."""
        self._send(bytes([_COMPARE_SET]) + _string(key) + _string(expected) + _string(desired))
        return self._string()

    def get(self, *keys: bytes) -> list[bytes]:
        """Their values; empty for those that are not there. For a few: one request each, in one go."""
        self._send(b"".join(bytes([_GET]) + _string(key) for key in keys))
        return [self._string() for _ in keys]

    def multi_get(self, keys: Sequence[bytes]) -> list[bytes]:
        """As `get`, by one request."""
        self._send(bytes([_MULTI_GET]) + _COUNT.pack(len(keys)) + b"".join(map(_string, keys)))
        found: list[bytes] = []
        while len(found) < len(keys):
            found.append(self._string())
            buffer, at = self._buffer, self._at  # what has come already, without a call for each
            last = min(len(keys) - len(found), len(buffer))
            for _ in range(last):
                start = at + _COUNT.size
                end = start + _COUNT.unpack_from(buffer, at)[0] if start <= len(buffer) else len(buffer) + 1
                if end > len(buffer):
                    break
                found.append(buffer[start:end])
                at = end
            self._at = at
        return found

    def add(self, key: bytes) -> int:
        self._send(_add(key))
        return self._number()

    def set(self, pairs: Iterable[tuple[bytes, bytes]], *, asked: bytes) -> None:
        """Set keys, in their order. Returns once the server has them; `asked` is any key."""
        sets = b"".join(bytes([_SET]) + _string(key) + _string(value) for key, value in pairs)
        self._send(sets + bytes([_CHECK]) + _COUNT.pack(1) + _string(asked))
        self._receive(1)

    def set_and_append(self, key: bytes, value: bytes, log: bytes, line: bytes, counter: bytes) -> None:
        """Set the key, then append `line` to `log`, then add to `counter`; returns once that is done."""
        sets = bytes([_SET]) + _string(key) + _string(value)
        self._send(sets + bytes([_APPEND]) + _string(log) + _string(line) + _add(counter))
        self._number()

    def delete(self, keys: Sequence[bytes]) -> None:
        self._send(b"".join(bytes([_DELETE_KEY]) + _string(key) for key in keys))
        for _ in keys:
            self._number()

    def close(self) -> None:
        """Let go of the connection, and of what it has not yet delivered: nothing of it may arrive after what a later
        connection sends."""
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _DISCARD)
        except OSError:  # it is gone already, which is as good
            pass
        self._socket.close()


def _string(data: bytes) -> bytes:
    return _COUNT.pack(len(data)) + data


def _add(key: bytes) -> bytes:
    return bytes([_ADD]) + _string(key) + _NUMBER.pack(1)


def _broken(error: OSError) -> WireError:
    return WireError("it does not answer in time" if isinstance(error, TimeoutError) else str(error))
