"""How a client copies its standard input and output, once it is connected."""

from __future__ import annotations

import random

from tests.conformance.case import PING, PONG, Cases, Talk, check_same, granted
from tests.conformance.stage import Stage
from tests.conformance.streams import Mismatch, carry

CASES = Cases()

MEGABYTE = random.Random(1).randbytes(1_000_000)
OTHER = random.Random(2).randbytes(1_000_000)


@CASES.each(
    ("carries bytes over one end of a socket pair", False),
    ("carries bytes over a TCP socket", True),
)
def carries(stage: Stage, tcp: bool) -> None:
    talk = granted(stage, tcp=tcp)
    for number in range(20):
        talk.up(b"%d\n" % number)
        talk.down(b"%d\0\xff" % number)
    talk.finish()


@CASES.each(
    ("carries the bytes of a service that speaks first", False),
    ("carries the bytes of a service that speaks first, over TCP", True),
)
def speaks_first(stage: Stage, tcp: bool) -> None:
    talk = granted(stage, tcp=tcp)
    talk.down(b"220 ready\r\n")
    talk.up(PING)
    talk.finish()


@CASES.one("ends where neither side has anything to say")
def silence(stage: Stage) -> None:
    granted(stage).finish()


@CASES.each(
    ("passes the end of standard input on, and goes on with the service's bytes", False),
    ("passes the end of standard input on, and goes on with the service's bytes, over TCP", True),
)
def input_ends_first(stage: Stage, tcp: bool) -> None:
    talk = granted(stage, tcp=tcp)
    talk.up(PING)
    talk.end_up()
    talk.down(PONG)
    talk.down(MEGABYTE)
    talk.finish()


@CASES.each(
    ("passes the end of the service's bytes on, and goes on with standard input", False),
    ("passes the end of the service's bytes on, and goes on with standard input, over TCP", True),
)
def service_ends_first(stage: Stage, tcp: bool) -> None:
    talk = granted(stage, tcp=tcp)
    talk.down(PONG)
    talk.end_down()
    talk.up(PING)
    talk.up(MEGABYTE)
    talk.finish()


@CASES.each(
    ("carries a megabyte each way at the same time", False),
    ("carries a megabyte each way at the same time, over TCP", True),
)
def at_once(stage: Stage, tcp: bool) -> None:
    talk = granted(stage, tcp=tcp)
    talk.client.stdin.put(MEGABYTE, end=True)
    talk.far.put(OTHER, end=True)
    talk.until(lambda: talk.far.ended and talk.client.stdout.ended, "a megabyte each way, and the ends")
    check_same(talk.far.inbox, MEGABYTE, "at the service")
    check_same(talk.client.stdout.inbox, OTHER, "on standard output")
    talk.client.check_succeeds()


@CASES.one("takes a megabyte from a service that does not read yet")
def service_reads_late(stage: Stage) -> None:
    talk = granted(stage)
    talk.far.reading = False
    talk.client.stdin.put(MEGABYTE)
    talk.down(OTHER)
    talk.far.reading = True
    talk.until(lambda: len(talk.far.inbox) >= len(MEGABYTE), "a megabyte at the service")
    check_same(talk.far.inbox, MEGABYTE, "at the service")
    talk.finish()


@CASES.one("sends a megabyte while nobody reads its standard output")
def output_read_late(stage: Stage) -> None:
    talk = granted(stage)
    talk.client.stdout.reading = False
    talk.far.put(OTHER)
    talk.up(MEGABYTE)
    talk.client.stdout.reading = True
    talk.until(lambda: len(talk.client.stdout.inbox) >= len(OTHER), "a megabyte on standard output")
    check_same(talk.client.stdout.inbox, OTHER, "on standard output")
    talk.finish()


@CASES.one("leaves standard input and output in blocking mode, for who shares them")
def blocking_mode(stage: Stage) -> None:
    talk = granted(stage)
    talk.up(PING)
    talk.down(PONG)
    for fd in (0, 1):
        if not talk.client.blocks(fd):
            raise Mismatch(f"descriptor {fd} in blocking mode", "O_NONBLOCK is set")
    talk.finish()


@CASES.one("ends with another status than 0 where the connection is reset")
def reset(stage: Stage) -> None:
    talk = granted(stage, tcp=True)
    talk.up(PING)
    talk.down(PONG)
    talk.far.reset()
    fails(talk)


@CASES.one("ends with another status than 0 where the service is gone and standard input is not")
def service_gone(stage: Stage) -> None:
    talk = granted(stage)
    talk.up(PING)
    talk.far.close()
    talk.client.stdin.put(MEGABYTE)
    fails(talk)


@CASES.one("delivers what the service said before it hung up, whatever is left of standard input")
def last_words(stage: Stage) -> None:
    talk = granted(stage)
    talk.up(PING)
    talk.client.stdin.put(MEGABYTE)
    talk.client.stdout.reading = talk.far.reading = False
    words = OTHER[:100_000]
    talk.far.put(words)
    talk.until(lambda: not talk.far.outbox, "what the service says taken by the kernel")
    talk.far.close()
    talk.client.stdout.reading = True
    fails(talk)
    check_same(talk.client.stdout.inbox, words, "on standard output")


@CASES.one("ends with another status than 0, or by SIGPIPE, where nobody reads its standard output any more")
def output_gone(stage: Stage) -> None:
    talk = granted(stage)
    talk.down(PONG)
    talk.client.stdout.close()
    talk.far.put(MEGABYTE)
    carry((talk.far,), lambda: talk.far.ended, "the connection closed", stage.deadline)
    talk.client.stdout.ended = True
    if talk.client.finish() == 0:
        raise Mismatch("another status than 0", talk.client.state())


def fails(talk: Talk) -> None:
    """Check that the client ends by itself, and does not call it a success."""
    if not 0 < talk.client.finish() < 126:
        raise Mismatch("a status from 1 to 125", talk.client.state())
