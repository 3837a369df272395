"""A remote caller that speaks HTTP: a browser or any other client of a WebSocket, plain, inside TLS, or behind a proxy.

Host → Origin → what is asked for → who it is → the steps of every caller → the answer is the
beginning of the WebSocket. To who has proved nothing every refusal about a service is the same 403 at
equal time; what a request lacks by itself, whoever sends it, is told at once.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from http import HTTPStatus

from plumberd.effects.poll import ERR, HUP
from plumberd.effects.tls_contexts import Inward
from plumberd.effects.tls_wire import Wire
from plumberd.effects.ws_line import Line, PlainLine, TlsLine
from plumberd.pure.address import account_of_address
from plumberd.pure.identities import with_token
from plumberd.pure.plumb_handshake import MOST_HOPS
from plumberd.pure.policy.route import Way
from plumberd.pure.refusals import Refusal, Refused, printable
from plumberd.pure.shape import STREAM, Shape
from plumberd.pure.web_http import STATUS, HttpError, HttpRequest, RequestReader, answer, refusal, switching
from plumberd.pure.web_request import Own, Proof, Upgrade, hops_of, parse_request, proof_of
from plumberd.pure.web_safety import check_host, check_origin, check_site, source_of
from plumberd.pure.who import RemoteWho
from plumberd.pure.ws_messages import Subprotocol
from plumberd.wiring.dialing.ws_ends import STREAM_FRAMING, carry_inbound
from plumberd.wiring.inbound.inbound import Callers
from plumberd.wiring.inbound.inbound_proving import ProvingInbound, proved_by
from plumberd.wiring.inbound.web_pages import BY_NAME, OWN_ONLY, Page, list_services, page_of, tell_of

_DISCARDED_BYTES = 1 << 20
"""So much of what a refused caller still sends is read, that it can read its refusal."""


_WORDS = {HTTPStatus.FORBIDDEN: Refusal.DENIED, HTTPStatus.NOT_FOUND: Refusal.UNKNOWN_SERVICE}
"""What a request lacks by itself is a bad request but for these."""


class WebInbound(ProvingInbound):
    """A caller on a socket of its own."""

    def __init__(self, callers: Callers, who: RemoteWho, sock: socket.socket, inward: Inward | None) -> None:
        super().__init__(callers, who, sock, None)
        self._inward = inward
        self._line: Line = PlainLine(sock)
        self._reader = RequestReader()
        self._request: HttpRequest | None = None
        self._asked: Upgrade | Own | None = None
        self._bearer: tuple[str, str] | None = None
        """The token that was shown, and its name."""
        self._granted: Page | None = None
        """The answer that is no refusal, and waits until one would go out."""
        self._unsaid: bytes | None = None
        self._reason = ""
        self._before_service = True
        self._discarded = 0

    def start(self) -> None:
        """Wait for the request, or for the TLS handshake before it."""
        if not self.begin():
            self._sock.close()
        elif self._inward is None:
            self.watch()
        else:
            self.expect_tls(self._inward)

    # -- what Inbound asks for

    @property
    def shape(self) -> Shape:
        """See :attr:`Inbound.shape`: messages go on as messages."""
        asked = self._asked
        assert isinstance(asked, Upgrade)
        if asked.protocol is Subprotocol.RAW:
            return STREAM
        return Shape(framing=self.core.settings.framings.get(self._service, STREAM_FRAMING.value))

    def carry(self, service: socket.socket) -> None:
        """See :meth:`Inbound.carry`."""
        asked = self._asked
        assert isinstance(asked, Upgrade)
        self._line.give_back(self._reader.rest)
        preface = switching(asked.key, asked.protocol.value if asked.is_offered else None)
        try:
            relay = carry_inbound(
                self.core, self._line, self._sock, service, asked.protocol, self._service, preface, self.carried
            )
        except OSError:
            self.close()
            self.core.relay_places.leave(self._account)
            self.ended("no descriptors for a relay")
            return
        relay.start()

    def tell(self, word: Refusal) -> None:
        """See :meth:`Inbound.tell`: the same to everybody who has proved nothing."""
        proved = bool(self.who.identities)
        if not (proved or self._before_service):
            word = Refusal.DENIED
        reason = f": {printable(self._reason)}" if proved else ""
        if isinstance(self._asked, Own):
            told = {**self._named(), "ok": False, "error": word.value, "reason": self._why(word, proved)}
            self._answer(_json(told, self._asked))
        else:
            self._answer(refusal(STATUS[word], word.value + reason, time.time()))

    def refuse(self, refused: Refused) -> None:
        """See :meth:`Inbound.refuse`."""
        self._reason = refused.reason
        super().refuse(refused)

    # -- the steps

    def _secured(self, wire: Wire) -> None:
        self._line = TlsLine(wire, self.core.buffers)
        self.watch()
        self._read()

    def _ready(self, events: int) -> None:
        self._line.told(events)
        if self._unsaid is not None:
            self._say()
        elif self.callers.lingering.is_set(self):
            self._discard()
        elif self._request is None:
            self._read()
        elif events & (ERR | HUP):
            if self._refused is None:
                self.note("gone", "hung up before it was let in")
            self.drop()

    def _read(self) -> None:
        try:
            while self._request is None:
                data = self._line.recv()
                if not data:
                    raise ConnectionResetError
                self._request = self._reader.receive(data)
        except BlockingIOError:
            return
        except HttpError as e:
            self._refuse_request(e)
            return
        except OSError:
            self.note("gone", "hung up without a request")
            self.drop()
            return
        try:
            self._look_at(self._request)
        except HttpError as e:
            self._refuse_request(e)
        except Refused as e:
            self.refuse_now(e)

    def _look_at(self, request: HttpRequest) -> None:
        """Look at what the request says by itself.

        :raises HttpError: it may not be answered otherwise.
        :raises Refused: what it proves is nothing.
        """
        web, peer = self.core.settings.web, self.who
        place = check_host(request, web)
        source = source_of(request, peer.address, web, encrypted=self._wire is not None)
        has_origin = check_origin(request, place, web, encrypted=source.encrypted)
        scheme = "wss" if source.encrypted else "ws"
        proved = proved_by(self._wire) if self._wire is not None else frozenset()
        if not source.proxied:
            self.who = RemoteWho(scheme, peer.address, peer.port, proved)
        else:
            self.who = RemoteWho(scheme, source.address, 0, proved, f"proxy {peer.address or 'unix'}")
        self._asked = asked = parse_request(request)
        self.hops = hops_of(request)
        page = page_of(asked, web) if isinstance(asked, Own) else None
        if isinstance(page, bytes):
            self._answer(page)  # the same for everybody
            return
        is_browser = check_site(request, has_origin=has_origin)
        if isinstance(asked, Upgrade):
            self._service = printable(asked.name, 64)
        # From here on how long it takes may tell something about who is asked for, and who asks.
        self.is_named = True
        self.callers.refusals.set(self, self._refusal_is_due)
        self.core.patience.cancel(self)
        self.core.connect_deadline.set(self, self._dial_too_slow)
        self._prove(proof_of(request, is_browser=is_browser, encrypted=source.encrypted))

    def _prove(self, proof: Proof) -> None:
        account = account_of_address(self.who.address)
        if proof.token is not None:
            name = self.core.settings.web.tokens.name_of(proof.token)
            if name is None:
                # Who has a right one is let in all the same: others of the address could lock it out.
                failures, now = self.callers.token_failures, self.core.reactor.seconds()
                if failures.wait_seconds(account, now):
                    limit = f"login_failures_per_minute={failures.per_address}"
                    raise Refused(Refusal.BUSY, f"{limit}: so many tokens from {account} were wrong")
                failures.failed(account, "", now)
                raise Refused(Refusal.UNAUTHENTICATED, "the token is nobody's")
            self._bearer = (proof.token, name)
            self.add_proved(with_token(name))
        if proof.login is None:
            self._proved_all()
        else:
            self.check_login(proof.login, self._proved_all)

    def _proved_all(self) -> None:
        """From here on it is who it has proved to be."""
        self._before_service = False
        asked = self._asked
        if self.hops > MOST_HOPS:
            raise Refused(Refusal.NOT_POSSIBLE, f"a chain of more than {MOST_HOPS} gateways")
        if isinstance(asked, Upgrade):
            self.named(asked.name.encode("ascii"))
            return
        assert isinstance(asked, Own)
        if asked.path != BY_NAME:
            name = asked.path.removeprefix(f"{BY_NAME}/")
            self._service = printable(name, 64)
            tell_of(self.core, name, self.who)
            self._grant(_json({**self._named(), "ok": True}, asked))
        else:
            services = [{"service": name} for name in list_services(self.core, self.callers.listening, self.who)]
            self._grant(_json({"ok": True, "services": services}, asked))

    def _grant(self, data: Page) -> None:
        """Answer when a refusal would be answered: a page that cannot read the answer sees how long it takes."""
        self._granted = data
        if not self.callers.refusals.is_set(self):
            self._answer(data)

    def _refusal_is_due(self) -> None:
        if self._granted is not None:
            self._answer(self._granted)
        else:
            super()._refusal_is_due()

    def _judge(self) -> Way:
        """See :meth:`Inbound._judge`, which is asked again after a reload: the token may be gone by then."""
        if self._bearer is not None:
            token, name = self._bearer
            if self.core.settings.web.tokens.name_of(token) != name:
                raise Refused(Refusal.UNAUTHENTICATED, f"the token {name} has been taken away")
        return super()._judge()

    def _named(self) -> dict[str, str]:
        return {"service": self._service} if self._service else {}

    def _why(self, word: Refusal, proved: bool) -> str:
        """Return a sentence; who has proved nothing learns nothing by it."""
        if proved or self._before_service:
            return printable(self._reason)
        return "it is refused to who has proved nothing: a token may be wanted, or there is no such service"

    def _refuse_request(self, error: HttpError) -> None:
        """Refuse a request for what it lacks by itself."""
        word = _WORDS.get(error.status, Refusal.BAD_REQUEST)
        text = printable(str(error))
        self.note(word.value, text)
        headers: tuple[tuple[str, str], ...] = ()
        if error.status is HTTPStatus.UPGRADE_REQUIRED:
            headers = (("Sec-WebSocket-Version", "13"), ("Upgrade", "websocket"))
        elif error.status is HTTPStatus.METHOD_NOT_ALLOWED:
            headers = (("Allow", "GET, HEAD"),)
        has_body = self._request is None or self._request.method != "HEAD"
        self._answer(refusal(error.status, f"{word.value}: {text}", time.time(), headers, has_body=has_body))

    # -- the answer that is not the beginning of a WebSocket

    def _answer(self, data: Page) -> None:
        """Send *data*, and hang up in order."""
        self.is_named = True
        self.callers.refusals.cancel(self)
        self.core.patience.cancel(self)
        self.core.connect_deadline.set(self, self.drop)
        self._unsaid = data
        self._say()

    def _say(self) -> None:
        line, data = self._line, self._unsaid
        assert data is not None
        try:
            if not line.flush():
                return
            while data:
                count = line.send(data)
                data = data[count:]
                if not count or line.holds:
                    break
            self._unsaid = data
            if data or line.holds or not line.end():
                return
        except OSError:
            self.drop()
            return
        self._unsaid = None
        self.core.connect_deadline.cancel(self)
        # Closing with bytes unread would reset the connection, and the answer with it.
        self.callers.lingering.set(self, self.drop)
        self._discard()

    def _discard(self) -> None:
        try:
            while data := self._line.recv():
                self._discarded += len(data)
                if self._discarded > _DISCARDED_BYTES:
                    break
        except BlockingIOError:
            return
        except OSError:
            pass
        self.drop()


def _json(members: Mapping[str, object], asked: Own) -> bytes:
    data = json.dumps(members).encode("ascii")
    headers = (("Cache-Control", "no-store"), OWN_ONLY)
    return answer(HTTPStatus.OK, data, "application/json", time.time(), headers, has_body=asked.has_body)
