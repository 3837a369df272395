"""Where a client looks for a broker, and what it asks."""

from __future__ import annotations

import os

from tests.conformance.case import GRANTED, PING, Cases, Talk, check_request, granted, with_id
from tests.conformance.stage import MESSAGE_BYTES, ROUTES, SECRET, SERVICE, Broker, Client, Stage, message
from tests.conformance.streams import Mismatch

CASES = Cases()


def served(stage: Stage, broker: Broker, client: Client, service: str = SERVICE, routes: str = ROUTES) -> None:
    """Check the request that comes to *broker*, grant it, and see that it works."""
    lookup = broker.accept(client)
    request = lookup.request()
    check_request(request, service, routes)
    far, theirs = stage.service()
    with theirs:
        lookup.send(message(**with_id(request, GRANTED)), theirs.fileno())
    Talk(broker, lookup, client, far).works()


def served_or_refused(stage: Stage, service: str, routes: str) -> None:
    """As :func:`served`; but the client may also refuse to ask."""
    broker = stage.broker()
    client = stage.client(broker, service, IPC_NETWORKD=routes)
    lookup = broker.accept_or_end(client)
    if lookup is None:
        client.check_fails()
        return
    check_request(lookup.request(), service, routes)
    lookup.send(message(ok=False, error="bad-request", reason="that is no name"))
    client.check_fails("bad-request", "that is no name")


@CASES.one("asks one lookup, of the service, with the routes")
def one_lookup(stage: Stage) -> None:
    granted(stage).works()


@CASES.each(
    ("asks with IPC_NETWORKD's value where IPC_NETWORK is set too", {"IPC_NETWORK": "x unix:y"}, ROUTES),
    ("asks with IPC_NETWORK's value where IPC_NETWORKD is empty", {"IPC_NETWORKD": "", "IPC_NETWORK": ROUTES}, ROUTES),
    ("asks without routes where neither is set", {"IPC_NETWORKD": ""}, ""),
    ("asks with quotes and backslashes in the routes", {"IPC_NETWORKD": 'a "b" \\c\\" d/'}, 'a "b" \\c\\" d/'),
    ("asks with an attempt at JSON in the routes", {"IPC_NETWORKD": '","op":"status'}, '","op":"status'),
    ("asks with tabs and ends of lines in the routes", {"IPC_NETWORKD": "a\tb;\r\nc d"}, "a\tb;\r\nc d"),
    ("asks with UTF-8 in the routes", {"IPC_NETWORKD": "a tcp://bücher.example/€𝄞"}, "a tcp://bücher.example/€𝄞"),
    ("asks with 10,000 bytes of routes", {"IPC_NETWORKD": "a b;" * 2500}, "a b;" * 2500),
)
def routes_of(stage: Stage, environment: dict[str, str], routes: str) -> None:
    broker = stage.broker()
    served(stage, broker, stage.client(broker, **environment), routes=routes)


@CASES.each(
    ("asks, or refuses to ask, with control characters in the routes", SERVICE, "a \x01\x1b[2J\x7f b"),
    ("asks, or refuses to ask, for a name with quotes and backslashes", 'a"b\\', ROUTES),
    ("asks, or refuses to ask, for a name that is an attempt at JSON", 'a","op":"status', ROUTES),
    ("asks, or refuses to ask, for a name with control characters", "a\nb\x01\x7f", ROUTES),
    ("asks, or refuses to ask, for a name that is empty", "", ROUTES),
    ("asks, or refuses to ask, for a name of 200 characters", "a" * 200, ROUTES),
)
def asked_or_not(stage: Stage, service: str, routes: str) -> None:
    served_or_refused(stage, service, routes)


@CASES.one("does not cut routes that no request can hold")
def too_long(stage: Stage) -> None:
    broker = stage.broker()
    client = stage.client(broker, IPC_NETWORKD="a b;" * (MESSAGE_BYTES // 4))
    lookup = broker.accept_or_end(client)
    if lookup is not None:
        lookup.sock.settimeout(stage.deadline.left())
        length = int.from_bytes(lookup.sock.recv(4), "big")
        if 0 < length <= MESSAGE_BYTES:
            raise Mismatch("no request, or one that the broker refuses", f"one of {length} bytes")
        lookup.send(message(ok=False, error="bad-request", reason="a request holds at most 65536 bytes"))
        lookup.close()
    client.check_fails()


@CASES.one("keeps its standard input from the broker")
def keeps_input(stage: Stage) -> None:
    broker = stage.broker()
    client = stage.client(broker)
    client.stdin.put(SECRET)
    client.stdin.move()
    lookup = broker.accept(client)
    request = lookup.request()
    far, theirs = stage.service()
    with theirs:
        lookup.send(message(**with_id(request, GRANTED)), theirs.fileno())
    talk = Talk(broker, lookup, client, far)
    talk.until(lambda: far.inbox == SECRET, "what was on standard input before the answer, at the service")
    talk.works()


@CASES.one("closes the connection to the broker once it has its answer")
def closes(stage: Stage) -> None:
    talk = granted(stage)
    talk.lookup.check_ended()
    talk.up(PING)
    talk.finish()


@CASES.each(
    ("asks IPC_RUNDIR's broker first", "IPC_RUNDIR", "RUNDIR", "XDG_RUNTIME_DIR"),
    ("asks RUNDIR's broker second", "RUNDIR", "XDG_RUNTIME_DIR"),
    ("asks XDG_RUNTIME_DIR/ipc's broker third", "XDG_RUNTIME_DIR"),
)
def order(stage: Stage, first: str, *others: str) -> None:
    brokers = {name: stage.broker(f"{name}/ipc" if name == "XDG_RUNTIME_DIR" else name) for name in (first, *others)}
    environment = {name: os.path.join(stage.folder, name) for name in brokers}
    served(stage, brokers[first], stage.client(None, IPC_NETWORKD=ROUTES, **environment))
    for name in others:
        brokers[name].check_left_alone(f"{first}'s broker asked, and not {name}'s")


@CASES.each(
    ("asks the next broker where a variable is empty", ""),
    ("asks the next broker where a directory is missing", "missing"),
    ("asks the next broker where a directory has no socket", "nothing"),
    ("asks the next broker where a socket is stale", "stale"),
    ("asks the next broker where a socket's place has a plain file", "file"),
    ("asks the next broker where a path is too long for a socket", "long"),
)
def the_next(stage: Stage, what: str) -> None:
    place = os.path.join(stage.folder, what * 100 if what == "long" else what)
    if what == "long":
        place = place[:200]
        os.mkdir(place, 0o700)
    elif what == "stale":
        stage.broker(what).die()
    elif what in ("nothing", "file"):
        os.mkdir(place, 0o700)
    if what == "file":
        open(os.path.join(place, "plumberd"), "wb").close()
    live = stage.broker("live")
    client = stage.client(None, IPC_RUNDIR=what and place, RUNDIR=live.rundir, IPC_NETWORKD=ROUTES)
    served(stage, live, client)


@CASES.one("says that no broker answers")
def nobody(stage: Stage) -> None:
    stage.client(None, IPC_RUNDIR=stage.folder, IPC_NETWORKD=ROUTES).check_fails()


@CASES.each(
    ("asks in no directory that everybody can write", 0o777),
    ("asks in no directory that its group can write", 0o770),
)
def unsafe(stage: Stage, mode: int) -> None:
    broker = stage.broker(mode=mode)
    client = stage.client(broker)
    if broker.accept_or_end(client) is not None:
        raise Mismatch(f"a client that does not trust a directory of mode {mode:04o}", "it connects")
    client.check_fails()


@CASES.each(
    ("asks in a directory that everybody can write, and that is sticky", 0o1777),
    ("asks in a directory that nobody else can write", 0o755),
)
def safe(stage: Stage, mode: int) -> None:
    broker = stage.broker(mode=mode)
    served(stage, broker, stage.client(broker))
