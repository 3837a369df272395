"""Both ends of a WebSocket put together: what carries a caller's to a service, and a client's to a far side."""

from __future__ import annotations

import socket
from collections.abc import Callable

from plumberd.effects.relay import Relay
from plumberd.effects.ws_line import Line
from plumberd.effects.ws_pumps import RandomMasks, Session, WsReader, WsWriter
from plumberd.effects.ws_relay import WsRelay
from plumberd.framing import Framing
from plumberd.pure.refusals import Refused
from plumberd.pure.shape import STREAM, Shape
from plumberd.pure.uri import Uri
from plumberd.pure.who import RemoteWho
from plumberd.pure.ws_frames import FrameDecoder
from plumberd.pure.ws_messages import Inward, Masks, Outward, Subprotocol, form_of
from plumberd.wiring.clients.delivery import as_stream, relay_pair
from plumberd.wiring.core import Core
from plumberd.wiring.dialing.traveller import Traveller

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


def carry_outbound(
    core: Core,
    line: Line,
    sock: socket.socket,
    uri: Uri,
    shape: Shape,
    traveller: Traveller,
    done: Callable[[Relay], None],
) -> socket.socket:
    """Carry between the far side and one end of a pair; return the other, which is the client's.

    Where the traveller has brought one end, whose other one is the client's already, that end is the relay's
    from now on, and is returned.

    :param sock: below *line*; it is the relay's from now on.
    :param shape: what the client's end is like.
    :raises Refused: ``busy``; *sock* is closed, and what was brought is still its owner's.
    """
    ours = theirs = traveller.end
    try:
        if ours is None or theirs is None:
            ours, theirs = relay_pair(core, traveller.account, packets=shape.packets)
        else:
            core.begin_relay(traveller.account)
    except Refused:
        sock.close()
        raise
    framing = Framing(shape.framing_for(uri))
    protocol = protocol_of(uri, shape)
    is_text = uri.option("text") is not None
    relay = make_relay(
        core,
        line,
        sock,
        ours,
        protocol,
        framing,
        done,
        masked=False,
        text=is_text,
        masks=RandomMasks().next,
        framed=traveller.framed and protocol is not Subprotocol.RAW,
    )
    relay.start()
    return theirs


def onward(target: object, shape: Shape, caller: RemoteWho | None) -> Shape:
    """Return what the near end of a way to *target* is like; of a caller by tcp or tls the bytes go on as they are."""
    if caller is not None and caller.scheme in ("tcp", "tls") and isinstance(target, Uri):
        return shape if target.option("framing") is not None else STREAM
    return shape


def protocol_of(uri: Uri, shape: Shape) -> Subprotocol:
    """Return what the messages mean to a client of that *shape*."""
    is_bytes = not shape.packets and shape.framing_for(uri) == Framing.RAW.value
    return Subprotocol.RAW if is_bytes else Subprotocol.IPC


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
    framed: bool = False,
) -> WsRelay:
    """Return what carries between the WebSocket on *line*, which is on *sock*, and *other*; not started yet."""
    line.let_go()
    packets = other.type != socket.SOCK_STREAM
    limit = core.settings.limits.message_bytes
    session = Session(masks)
    outward = Outward(framing, packets=packets, limit_bytes=limit, text=text, masks=masks)
    writer = WsWriter(line, other, sock, outward, session)
    if preface:
        writer.preface(preface)
    form = form_of(protocol, framing, packets=packets or framed)
    decoder = FrameDecoder(masked=masked, limit_bytes=limit, form=form)
    inward = Inward(framing, packets=packets or framed)
    reader = WsReader(line, sock, other, decoder, inward, session, writer, framed=framed)
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
