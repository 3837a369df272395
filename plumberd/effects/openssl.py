"""The bindings behind pyOpenSSL: the one module that touches them.

pyOpenSSL copies every read into an object of its own, writes one record at a
time, and has no pre-shared keys. Its bindings (``OpenSSL.SSL._lib``) can do all
three. They promise nothing for the next version: a test looks for each one that
is used here, and says so when it has gone.

An SSL object is used by one thread, this one; it has no lock of its own.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from OpenSSL import SSL

from plumberd.effects.tls_ending import ALERT_REASONS, EOF_REASON, TlsFault, Want, truncated

# pyOpenSSL uses these bindings itself and declares them nowhere; a test says so when they go away.
_lib: Any = SSL._lib  # type: ignore[attr-defined]
_ffi: Any = SSL._ffi  # type: ignore[attr-defined]

GROUPS = b"X25519:P-256:P-384"
"""The first is tried first. OpenSSL's own favourite, X25519MLKEM768, costs a tenth to a quarter of all handshakes."""

# Looked up once: they are called for every record.
_read_one = _lib.SSL_read
_write_all = _lib.SSL_write
_clear_error = _lib.ERR_clear_error
_get_error = _lib.SSL_get_error

_ERR_LIB_SHIFT, _ERR_LIB_SSL = 23, 20  # err.h: which part of OpenSSL an error is of

_TLS13_AES_128_GCM_SHA256 = b"\x13\x01"  # RFC 8446, B.4
_PSK_SUITES = b"TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256"
"""Those with SHA-256, a key's own hash where nothing else is said (RFC 8446, 4.2.11): others would pass it over."""

_PSK_CIPHERS = b"ECDHE-PSK-CHACHA20-POLY1305:ECDHE-PSK-AES128-CBC-SHA256"
"""For TLS 1.2: forward secrecy, which plain PSK, RSA-PSK and a stolen key have not."""


class Buffer:
    """A piece of memory that OpenSSL and sockets both read and write.

    :ivar view: what can be used of it.
    :ivar whole: the same, and a byte behind it: see :meth:`plumberd.pure.tls_records.Sealer.seal_into`.
    :ivar pointer: the same, for the bindings.
    :ivar start, end: what is in it stands between the two.
    """

    __slots__ = ("end", "pointer", "start", "view", "whole")

    def __init__(self, size: int) -> None:
        memory = bytearray(size + 1)
        self.whole = memoryview(memory)
        self.view = self.whole[:size]
        self.pointer = _ffi.from_buffer(memory)
        self.start = self.end = 0


def prepare_context(context: SSL.Context, groups: bytes = GROUPS) -> None:
    """Let *context* agree on *groups* alone, and take no data before the handshake is over (0-RTT).

    It tells :func:`take_secrets` what it makes the keys of its connections of.

    :raises ValueError: where OpenSSL knows none of the groups.
    """
    if _lib.SSL_CTX_set1_curves_list(_raw(context), groups) != 1:
        _clear_error()
        raise ValueError(f"OpenSSL does not know the groups {groups.decode()}")
    _lib.SSL_CTX_set_max_early_data(_raw(context), 0)
    _lib.SSL_CTX_set_keylog_callback(_raw(context), _note_secret)


def share_store(context: SSL.Context, other: SSL.Context) -> None:
    """Let *context* believe whom *other* believes: the system's authorities alone take 20 ms to read, and 3 MiB."""
    store = _lib.SSL_CTX_get_cert_store(_raw(other))
    _lib.X509_STORE_up_ref(store)
    _lib.SSL_CTX_set_cert_store(_raw(context), store)


def connect(context: SSL.Context, sock: socket.socket, *, server: bool) -> SSL.Connection:
    """Return a connection on *sock* that has not begun.

    An idle one has no buffers; and one write goes on until all of it is written or the socket takes no more.
    """
    connection = SSL.Connection(context, sock)
    ssl = connection._ssl
    _lib.SSL_set_mode(ssl, _lib.SSL_MODE_RELEASE_BUFFERS)
    _lib.SSL_clear_mode(ssl, _lib.SSL_MODE_ENABLE_PARTIAL_WRITE)
    if server:
        connection.set_accept_state()
    else:
        connection.set_connect_state()
    return connection


def ssl_of(connection: SSL.Connection) -> Any:
    """Return the SSL object, which lives as long as anybody refers to it."""
    return connection._ssl


def do_handshake(ssl: Any) -> Want | None:
    """Go on with the handshake; return what it waits for, ``None`` when it is over.

    :raises OSError: the socket is broken.
    :raises TlsFault: it has failed.
    """
    _clear_error()
    result = _lib.SSL_do_handshake(ssl)
    return None if result == 1 else _reason_to_wait(ssl, result)


def read(ssl: Any, buffer: Buffer) -> tuple[int, Want | None, OSError | None]:
    """Read behind what is in *buffer*, which has room, record after record, until it is full or nothing is left.

    :return: how many bytes; and why it stopped: it waits, or it failed, which is only told once. Neither
        where the buffer is full or, with no bytes, at the orderly end.
    """
    _clear_error()
    at, size = buffer.end, len(buffer.view)
    pointer, count = buffer.pointer, 0
    begin = at
    while at < size:
        count = _read_one(ssl, pointer + at, size - at)
        if count <= 0:
            break
        at += count
    buffer.end = at
    if count > 0:
        return at - begin, None, None
    kind = _get_error(ssl, count)
    if kind == _lib.SSL_ERROR_WANT_READ:
        return at - begin, Want.READ, None
    if kind == _lib.SSL_ERROR_WANT_WRITE:
        return at - begin, Want.WRITE, None
    # Made and not raised: with the frames of a raise in it, the connection would live until the next round of gc.
    return at - begin, None, None if kind == _lib.SSL_ERROR_ZERO_RETURN else _fault(kind)


def write(ssl: Any, buffer: Buffer) -> Want | None:
    """Write all that is in *buffer*; ``None`` when that is done.

    Else it has to be called again with the same bytes, wherever they stand then: some of them may have gone.

    :raises OSError: the socket is broken.
    :raises TlsFault: TLS is.
    """
    _clear_error()
    result = _write_all(ssl, buffer.pointer + buffer.start, buffer.end - buffer.start)
    return None if result > 0 else _reason_to_wait(ssl, result)


def close_notify(ssl: Any) -> Want | None:
    """Tell the far side that nothing more comes; ``None`` when that is written. It may still speak.

    :raises OSError: the socket is broken.
    :raises TlsFault: TLS is.
    """
    _clear_error()
    result = _lib.SSL_shutdown(ssl)
    return None if result >= 0 else _reason_to_wait(ssl, result)


_flight = Buffer(1 << 14)


class Flights:
    """Where an SSL object reads and writes during its handshake: memory, so that others see its records.

    The SSL object owns it, until :func:`use_socket`.
    """

    __slots__ = ("_in", "_out")

    def __init__(self, ssl: Any) -> None:
        self._in, self._out = (_lib.BIO_new(_lib.BIO_s_mem()) for _ in range(2))
        _lib.SSL_set_bio(ssl, self._in, self._out)

    def feed(self, buffer: Buffer, start: int, stop: int) -> None:
        """Let it read ``buffer.view[start:stop]``.

        :raises OSError: there is no memory.
        """
        if _lib.BIO_write(self._in, buffer.pointer + start, stop - start) != stop - start:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    def unread(self) -> int:
        """Return how many bytes it has not read, and forget them."""
        count = 0
        while (more := _lib.BIO_read(self._in, _flight.pointer, len(_flight.view))) > 0:
            count += more
        return count

    def take(self) -> bytes:
        """Return what it has written, and forget that."""
        written = b""
        while (count := _lib.BIO_read(self._out, _flight.pointer, len(_flight.view))) > 0:
            written += _flight.view[:count]
        return written


def use_socket(ssl: Any, fd: int) -> None:
    """Let *ssl* read and write *fd* itself; what lay in memory is forgotten."""
    _lib.SSL_set_fd(ssl, fd)


_CLIENTS, _SERVERS = b"CLIENT_TRAFFIC_SECRET_0 ", b"SERVER_TRAFFIC_SECRET_0 "
_noted: dict[bool, bytes] = {}


@_ffi.callback("void(*)(const SSL *, const char *)")  # type: ignore[untyped-decorator]
def _note_secret(ssl: Any, line: Any) -> None:
    # The format of SSLKEYLOGFILE (RFC 9850): label, client random, secret.
    text = _ffi.string(line)
    if text.startswith((_CLIENTS, _SERVERS)):
        _noted[text.startswith(_SERVERS)] = bytes.fromhex(text.rsplit(b" ", 1)[1].decode("ascii"))


def take_secrets() -> dict[bool, bytes]:
    """Return the traffic secrets since the last call: the client's at ``False``, the server's at ``True``."""
    noted = _noted.copy()
    _noted.clear()
    return noted


def verify_result(ssl: Any) -> int:
    """Return OpenSSL's number for what is wrong with the far side's certificate, 0 for nothing."""
    return int(_lib.SSL_get_verify_result(ssl))


def is_resumed(ssl: Any) -> bool:
    """Tell whether the handshake rests on a secret that was known before: a session's, or a pre-shared key."""
    return bool(_lib.SSL_session_reused(ssl))


class PskServer:
    """Pre-shared keys that callers may use, by their names; certificates go on working beside them.

    The context owns it from :meth:`attach` on, and so the callbacks live as long as who calls them.
    """

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        """Take *keys*, which may be changed as long as the context lives."""
        self._keys = keys
        self._named: dict[int, tuple[str, bool]] = {}
        self._session_callback = _ffi.callback(
            "int(*)(SSL *, const unsigned char *, size_t, SSL_SESSION **)", self._find_session, error=0
        )
        self._key_callback = _ffi.callback(
            "unsigned int(*)(SSL *, const char *, unsigned char *, unsigned int)", self._find_key, error=0
        )
        self._cipher = _ffi.new("unsigned char[]", _TLS13_AES_128_GCM_SHA256)

    def attach(self, context: SSL.Context, ciphers: bytes) -> None:
        """Let *context* accept the keys.

        :param ciphers: of TLS 1.2, for certificates; those for keys are tried before.
        """
        context.set_tls13_ciphersuites(_PSK_SUITES)
        context.set_cipher_list(_PSK_CIPHERS + b":" + ciphers if ciphers else _PSK_CIPHERS)
        context.set_options(SSL.OP_CIPHER_SERVER_PREFERENCE)
        _lib.SSL_CTX_set_psk_find_session_callback(_raw(context), self._session_callback)
        _lib.SSL_CTX_set_psk_server_callback(_raw(context), self._key_callback)
        _attached[context] = self

    def take_named(self, ssl: Any) -> tuple[str, bool]:
        """Return the last name that this caller gave, empty for none, and whether there is such a key; forget both.

        That a key was named proves nothing; that the handshake has succeeded with it does.
        """
        return self._named.pop(_number(ssl), ("", False))

    def _look_up(self, ssl: Any, name: bytes) -> bytes | None:
        text = name.decode("utf-8", "replace")
        key = self._keys.get(text)
        self._named[_number(ssl)] = text, key is not None
        return key

    def _find_session(self, ssl: Any, name: Any, length: int, session: Any) -> int:
        """TLS 1.3: called for every name that the caller offers, tickets among them, until one is good."""
        session[0] = _ffi.NULL
        key = self._look_up(ssl, bytes(_ffi.buffer(name, length)))
        if key is not None:
            session[0] = _psk_session(ssl, self._cipher, key)
        return 1

    def _find_key(self, ssl: Any, name: Any, key: Any, room: int) -> int:
        """TLS 1.2: called when a key was agreed on. In 1.3 it would be asked for what is not there."""
        if _lib.SSL_version(ssl) != SSL.TLS1_2_VERSION:
            return 0
        # Who gives a name that is not known fails as who has a wrong key: names are not to be tried out.
        found = self._look_up(ssl, _ffi.string(name)) or os.urandom(32)
        if len(found) > room:
            return 0
        _ffi.memmove(key, found, len(found))
        return len(found)


class PskClient:
    """The one key that a context offers, with its name. The context owns it from :meth:`attach` on."""

    def __init__(self, name: str, key: bytes) -> None:
        self._name = name.encode()
        self._key = key
        self._callback = _ffi.callback(
            "unsigned int(*)(SSL *, const char *, char *, unsigned int, unsigned char *, unsigned int)",
            self._give_key,
            error=0,
        )

    @property
    def name(self) -> str:
        """The name of the key."""
        return self._name.decode()

    def attach(self, context: SSL.Context) -> None:
        """Let *context* offer the key, and in TLS 1.2 nothing else."""
        context.set_tls13_ciphersuites(_PSK_SUITES)
        context.set_cipher_list(_PSK_CIPHERS)
        _lib.SSL_CTX_set_psk_client_callback(_raw(context), self._callback)
        _attached[context] = self

    def _give_key(self, ssl: Any, hint: Any, name: Any, name_room: int, key: Any, room: int) -> int:
        if len(self._name) >= name_room or len(self._key) > room:
            return 0
        _ffi.memmove(name, self._name + b"\0", len(self._name) + 1)
        _ffi.memmove(key, self._key, len(self._key))
        return len(self._key)


_attached: WeakKeyDictionary[SSL.Context, PskServer | PskClient] = WeakKeyDictionary()
"""Keeps what OpenSSL's callbacks are called on; who holds an SSL object holds its first context too."""


def psk_of(context: SSL.Context | None) -> PskServer | PskClient | None:
    """Return the keys of *context*, if it has any."""
    return _attached.get(context) if context is not None else None


def _psk_session(ssl: Any, cipher_number: Any, key: bytes) -> Any:
    """Make the session that a key stands for in TLS 1.3; OpenSSL owns it."""
    session = _lib.Cryptography_SSL_SESSION_new()
    cipher = _lib.SSL_CIPHER_find(ssl, cipher_number)
    _lib.SSL_SESSION_set1_master_key(session, key, len(key))
    _lib.SSL_SESSION_set_cipher(session, cipher)
    _lib.SSL_SESSION_set_protocol_version(session, SSL.TLS1_3_VERSION)
    return session


def _raw(context: SSL.Context) -> Any:
    return context._context


def _number(ssl: Any) -> int:
    return int(_ffi.cast("uintptr_t", ssl))


def _reason_to_wait(ssl: Any, result: int) -> Want:
    kind = _get_error(ssl, result)
    if kind == _lib.SSL_ERROR_WANT_READ:
        return Want.READ
    if kind == _lib.SSL_ERROR_WANT_WRITE:
        return Want.WRITE
    raise _fault(kind)


def _fault(kind: int) -> OSError:
    """Make an exception of the last error; what is queued of it is taken."""
    number = _ffi.errno
    error = _lib.ERR_get_error()
    _clear_error()
    if error == 0 or kind == _lib.SSL_ERROR_SYSCALL:
        if number:
            return OSError(number, os.strerror(number))
        return truncated()
    # Each part of OpenSSL counts its reasons from the same numbers on.
    reason = _lib.ERR_GET_REASON(error) if error >> _ERR_LIB_SHIFT & 0xFF == _ERR_LIB_SSL else 0
    if reason == EOF_REASON:
        return truncated()
    text = _lib.ERR_reason_error_string(error)
    said = _ffi.string(text).decode("ascii", "replace") if text else f"OpenSSL's error {reason}"
    return TlsFault("broken off" if reason >= ALERT_REASONS else "garbled", reason, said)
