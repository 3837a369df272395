"""Both ends of a WebSocket put together: what carries a caller's to a service, and a client's to a far side."""

from __future__ import annotations

import socket
from collections.abc import Callable

from plumberd.effects.relay import Relay
from plumberd.effects.ws_line import Line
from plumberd.effects.ws_pumps import Session, WsReader, WsWriter
from plumberd.effects.ws_relay import WsRelay
from plumberd.framing import Framing
from plumberd.pure.ws_frames import FrameDecoder
from plumberd.pure.ws_messages import Inward, Masks, Outward, Subprotocol, form_of
from plumberd.wiring.clients.delivery import as_stream
from plumberd.wiring.core import Core

STREAM_FRAMING = Framing.LIBIPC_ZIG
"""How the messages of a service look that listens on a stream, where nobody says otherwise."""

PACKET_FRAMING = Framing.LIBIPC_2019
"""Likewise, of one with packets."""


def carry_inbound(
    core: Core,
    line: Line,
    sock: socket.socket,
    service: socket.socket,
    protocol: Subprotocol,
    name: str,
    preface: bytes,
    done: Callable[[Relay], None],
) -> WsRelay:
    """Return what carries between a caller and *service*; it owns both sockets.

    :param name: of the service that the caller asked for.
    :param preface: sent first.
    :param done: told when it is over.
    :raises OSError: there are no descriptors; *service* is closed.
    """
    configured = core.settings.framings.get(name)
    if protocol is Subprotocol.RAW and service.type == socket.SOCK_SEQPACKET:
        service = as_stream(core, service, configured or PACKET_FRAMING.value)
    packets = service.type == socket.SOCK_SEQPACKET
    framing = PACKET_FRAMING if packets else STREAM_FRAMING
    if protocol is Subprotocol.RAW:
        framing = Framing.RAW
    elif configured is not None:
        framing = Framing(configured)
    is_text = protocol is Subprotocol.IPC_TEXT
    return make_relay(
        core, line, sock, service, protocol, framing, done, masked=True, text=is_text, masks=None, preface=preface
    )


def make_relay(
    core: Core,
    line: Line,
    sock: socket.socket,
    other: socket.socket,
    protocol: Subprotocol,
    framing: Framing,
    done: Callable[[Relay], None],
    *,
    masked: bool,
    text: bool,
    masks: Masks | None,
    preface: bytes = b"",
) -> WsRelay:
    """Return what carries between the WebSocket on *line*, which is on *sock*, and *other*; not started yet."""
    packets = other.type != socket.SOCK_STREAM
    limit = core.settings.limits.message_bytes
    session = Session(masks)
    outward = Outward(framing, packets=packets, limit_bytes=limit, text=text, masks=masks)
    writer = WsWriter(line, other, sock, outward, session)
    if preface:
        writer.preface(preface)
    decoder = FrameDecoder(masked=masked, limit_bytes=limit, form=form_of(protocol, framing, packets=packets))
    reader = WsReader(line, sock, other, decoder, Inward(framing, packets=packets), session, writer)
    relay = WsRelay(
        core.poll,
        core.reactor,
        core.pipes,
        sock,
        other,
        done,
        reader=reader,
        writer=writer,
        session=session,
        lives=core.lives,
    )
    core.relays.add(relay)
    return relay
