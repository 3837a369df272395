"""``plumb``: the users' tool. It imports no Twisted, and of its commands only the one that runs.

Exit statuses: 0 granted or done, 1 refused or failed, 2 something is wrong here.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from plumberd import client, pump
from plumberd.commands.output import ERROR, OK, REFUSED, complain

MOST_PROCESSES = 100_000
"""More than any system runs; beyond it a number is a slip."""

MOST_DAYS = 7300
"""Of a certificate: twenty years."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    args = parser().parse_args(argv)
    try:
        status = int(args.run(args) or OK)
        sys.stdout.flush()  # here, where it may fail
        return status
    except client.Refused as e:
        complain(f"refused: {e.word}: {e.reason}")
        return REFUSED
    except client.Error as e:
        complain(e.strerror or e)
        return ERROR
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return ERROR
    except KeyboardInterrupt:
        return 130


class CommandParser(argparse.ArgumentParser):
    """The parser of one command. Some take another program's words behind ``--``, which nobody looks at."""

    takes_program = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """See :meth:`argparse.ArgumentParser.parse_known_args`."""
        if not self.takes_program:
            return super().parse_known_args(args, namespace)
        words = [*args]
        at = words.index("--") if "--" in words else len(words)
        if not words[at + 1 :] and "-h" not in words and "--help" not in words:
            self.error("wanted a program behind --: -- CMD [ARG…]")
        found, unknown = super().parse_known_args(words[:at], namespace)
        found.command = words[at + 1 :]
        return found, unknown


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    whole = argparse.ArgumentParser(prog="plumb", description="Connect to services through the local plumberd.")
    whole.add_argument(
        "--rundir", metavar="DIR", help="the broker's run directory [default: the first with a live one]"
    )
    commands = whole.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=CommandParser)
    _add_connect(commands)
    _add_exec(commands)
    _add_fdpass(commands)
    _add_forward(commands)
    _add_serve(commands)
    _add_restrict(commands)
    _add_sandbox(commands)
    _add_ss(commands)
    _add_kill(commands)
    _add_explain(commands)
    _add_why(commands)
    _add_status(commands)
    _add_reload(commands)
    _add_test(commands)
    _add_learn(commands)
    _add_env(commands)
    _add_passwd(commands)
    _add_psk(commands)
    _add_token(commands)
    _add_ca(commands)
    _add_cert(commands)
    return whole


def _connect(args: argparse.Namespace) -> int:
    target = args.target
    is_web = target.startswith(("ws://", "wss://"))
    messages = args.messages or (is_web and os.isatty(0))
    if is_web and messages and "text=" not in target.partition("?")[2]:
        target += "&text=yes" if "?" in target else "?text=yes"
    kind = "seqpacket" if messages else None
    service, uri = (None, target) if "://" in target else (target, None)
    sock, told = client.lookup(service, uri=uri, type=kind, rundir=args.rundir)
    if not messages:
        return pump.carry(sock, 0, 1)
    carry_lines = importlib.import_module("plumberd.pump_messages").carry_lines
    return int(carry_lines(sock, 0, 1, complain, told.get("message_bytes")))


def _late(module: str, function: str = "run") -> Any:
    """Return a command that is imported when it runs: the quick ones do not pay for the others."""

    def run(args: argparse.Namespace) -> int:
        return int(getattr(importlib.import_module(f"plumberd.commands.{module}"), function)(args))

    return run


def _add(commands: Any, name: str, words: str, run: Any) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=words, description=f"{words.capitalize()}.")
    command.set_defaults(run=run)
    return command


def _add_program(commands: Any, name: str, words: str, run: Any) -> argparse.ArgumentParser:
    """Add a command that takes another program's words behind its own."""
    command = _add(commands, name, words, run)
    assert isinstance(command, CommandParser)
    command.takes_program = True
    command.epilog = "Behind it stands -- CMD [ARG…], the program and its arguments."
    return command


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="for programs")


def _add_connect(commands: Any) -> None:
    command = _add(commands, "connect", "connect standard input and output to a service", _connect)
    command.add_argument(
        "--messages",
        action="store_true",
        help="each line is a message, and each message a line; so it is typed to ws://",
    )
    _add_target(command)


def _add_target(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "target", metavar="SERVICE|URI", type=_without_secret, help="pong, or tcp://host:port[/service]"
    )


def _add_exec(commands: Any) -> None:
    words = "run a program that has a connection on its descriptors 6 and 7"
    command = _add_program(commands, "exec", words, _late("exec"))
    _add_target(command)
    command.add_argument("--stdio", action="store_true", help="on its standard input and output instead")


def _add_fdpass(commands: Any) -> None:
    words = "send a connection over the UNIX socket that is standard output, for ssh's ProxyUseFdpass"
    _add_target(_add(commands, "fdpass", words, _late("fdpass")))


def _add_forward(commands: Any) -> None:
    words = "let UDP ports of this machine lead to services, until it is ended"
    command = _add(commands, "forward", words, _late("forward"))
    command.add_argument(
        "forwardings",
        metavar="PORT=SERVICE",
        type=_without_secret,
        nargs="+",
        help="5353=resolver, [::1]:5353=udp://192.0.2.53:53; the address is 127.0.0.1 where none is told",
    )


def _add_serve(commands: Any) -> None:
    words = "be a service: run a program for each connection, as inetd does"
    command = _add_program(commands, "serve", words, _late("serve"))
    command.add_argument("service", metavar="SERVICE", help="its name; a rule has to allow serve")
    command.add_argument(
        "--max",
        type=_up_to(MOST_PROCESSES),
        default=40,
        metavar="N",
        help="how many at once; others wait [default: 40]",
    )


def _add_restrict(commands: Any) -> None:
    words = "run a program that inherits a control socket for these services alone"
    command = _add_program(commands, "restrict", words, _late("restrict"))
    command.add_argument("services", metavar="SERVICE", nargs="+", help="what it may look up")


def _add_sandbox(commands: Any) -> None:
    words = "run a program in a cage without network"
    command = _add_program(commands, "sandbox", words, _late("sandbox"))
    for option, metavar, text in (
        ("--services", "A,B", "what it may look up; without it there is no control socket"),
        ("--udp", "PORT=SERVICE", "a UDP port of its loopback that leads to a service; may be repeated"),
        ("--setenv", "NAME[=VALUE]", "a variable for its environment, which has few; may be repeated"),
        ("--read", "PATH", "show a file or directory, to be read; may be repeated"),
        ("--write", "PATH", "show it, to be read and written; may be repeated"),
    ):
        command.add_argument(option, metavar=metavar, action="append", default=[], help=text)


def _add_ss(commands: Any) -> None:
    command = _add(commands, "ss", "list handed-over connections that still live", _late("ss"))
    command.add_argument("service", metavar="SERVICE", nargs="?", help="of this one alone")
    _add_json(command)


def _add_kill(commands: Any) -> None:
    command = _add(commands, "kill", "end handed-over connections", _late("ss", "run_kill"))
    command.add_argument("connections", metavar="ID", nargs="+", help="as plumb ss tells it")


def _without_secret(text: str) -> str:
    """Return *text*, a service or a URI, unless a password stands in it."""
    if "@" in text and "://" in text:
        from plumberd.pure.uri import has_password  # late: few write a user here

        if has_password(text):
            raise argparse.ArgumentTypeError(
                "a password on the command line shows in ps: write the URI into $IPC_NETWORKD, "
                "as SERVICE URI, and ask for the service; or into the configuration"
            )
    return text


def _up_to(most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and 0 < int(text) <= most):
            raise argparse.ArgumentTypeError(f"wanted a number from 1 to {most}, found {text!r}")
        return int(text)

    return number


def _add_explain(commands: Any) -> None:
    command = _add(commands, "explain", "tell what would become of a connection, and why", _late("explain"))
    command.add_argument("direction", choices=("in", "out", "serve"), help="seen from this machine")
    command.add_argument("service", metavar="SERVICE", help="its name; any for a lookup that names none")
    command.add_argument(
        "target",
        metavar="URI|PEER",
        type=_without_secret,
        nargs="?",
        help="out: where to [default: as a lookup]; in: the caller",
    )
    command.add_argument(
        "--as",
        dest="who",
        action="append",
        default=[],
        metavar="WHO",
        help="as somebody else: user:NAME and the other words of rules, confined; may be repeated",
    )
    command.add_argument("--config", metavar="FILE", help="ask this configuration, and no broker")
    _add_json(command)


def _add_why(commands: Any) -> None:
    command = _add(commands, "why", "tell your own last refusals, and what to do about them", _late("why"))
    command.add_argument("service", metavar="SERVICE", nargs="?", help="of this one alone")
    _add_json(command)


def _add_status(commands: Any) -> None:
    command = _add(commands, "status", "tell what runs where", _late("status"))
    command.add_argument("--limits", action="store_true", help="tell the use against each limit instead")
    _add_json(command)


def _add_reload(commands: Any) -> None:
    _add_json(_add(commands, "reload", "have the broker read its configuration again", _late("reload")))


def _add_test(commands: Any) -> None:
    command = _add(commands, "test", "try what a policy is meant to do", _late("test"))
    command.add_argument("file", metavar="FILE", help="assertions, a line each: granted|refused in|out|serve SERVICE …")
    command.add_argument("--config", metavar="FILE", help="ask this configuration, and no broker")
    _add_json(command)


def _add_learn(commands: Any) -> None:
    command = _add(commands, "learn", "draft rules that grant what an audit log has seen", _late("learn"))
    command.add_argument("files", metavar="AUDIT-FILE", nargs="*", help="the log; - or nothing for standard input")
    command.add_argument("--all", action="store_true", help="also what was granted by a default")
    _add_json(command)


def _add_env(commands: Any) -> None:
    _add_json(_add(commands, "env", "print the lines that a client exports", _late("status", "run_env")))


def _add_passwd(commands: Any) -> None:
    command = _add(commands, "passwd", "set the password of a user for logins of callers", _late("passwd"))
    command.add_argument("file", metavar="FILE", help="the file that auth.password_file names")
    command.add_argument("user", metavar="USER", help="whose; rules call them login:USER")
    command.add_argument("--stdin", action="store_true", help="read it from standard input, a line, and ask nobody")
    command.add_argument("--delete", action="store_true", help="take the user out instead")


def _add_token(commands: Any) -> None:
    command = _add(commands, "token", "make a bearer token for pages and other callers of webipcd", _late("token"))
    command.add_argument("action", choices=("new",), help="there is nothing else to do with one")
    command.add_argument("name", metavar="NAME", help="whose it is; rules call it token:NAME")
    command.add_argument("--append", metavar="FILE", help="also append its line to this file, made with mode 0600")
    _add_json(command)


def _add_psk(commands: Any) -> None:
    command = _add(commands, "psk", "make a pre-shared key for two machines", _late("psk"))
    command.add_argument("action", choices=("new",), help="there is nothing else to do with one")
    command.add_argument("name", metavar="NAME", help="its identity, which rules call psk:NAME")
    command.add_argument("--append", metavar="FILE", help="also append it to this file, which is made with mode 0600")
    _add_json(command)


def _add_ca(commands: Any) -> None:
    command = _add(commands, "ca", "make an authority, or take certificates of it back", _late("ca", "run_ca"))
    command.add_argument("action", choices=("init", "revoke"), help="make one; make its list of what is taken back")
    command.add_argument(
        "certificates", metavar="FILE", nargs="*", help="revoke: the certificates, beside the old ones"
    )
    command.add_argument("--name", metavar="TEXT", help="init: what it is called [default: plumb on HOSTNAME]")
    _add_issuing(command, "3650, of a list 365")


def _add_cert(commands: Any) -> None:
    command = _add(commands, "cert", "issue a certificate", _late("ca", "run_cert"))
    command.add_argument("names", metavar="NAME", nargs="+", help="whom it is for: hosts, *.HOST, addresses")
    command.add_argument("--server", action="store_true", help="for listening alone")
    command.add_argument("--client", action="store_true", help="for connecting alone")
    command.add_argument("--spiffe", metavar="ID", help="also prove this SPIFFE ID: spiffe://DOMAIN/PATH")
    _add_issuing(command, "365")


def _add_issuing(command: argparse.ArgumentParser, days: str) -> None:
    command.add_argument("--days", metavar="N", type=_up_to(MOST_DAYS), help=f"how long it is valid [default: {days}]")
    command.add_argument("--dir", metavar="DIR", default="plumb-ca", help="the authority's folder [default: plumb-ca]")
    _add_json(command)


if __name__ == "__main__":
    sys.exit(main())
