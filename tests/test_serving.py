"""plumberd.serving: accepted connections as an iterator, held until somebody has time, and claims made again."""

from __future__ import annotations

import os
import select
import socket
import threading
from typing import Any

from plumberd import client
from plumberd.serving import Serving
from plumberd.wiring.service import PlumberdService
from tests.children import ChildTestCase
from tests.claims import ClaimTestCase, say_nothing, wanted_peer
from tests.fake_broker import FakeBrokerTestCase, frame, refuse, send
from tests.support import DEADLINE_SECONDS, in_thread, read_all, until


class ServingTestCase(ClaimTestCase, ChildTestCase):
    async def serving(self, broker: PlumberdService, **options: Any) -> Serving:
        """Claim pong; what is logged goes into :attr:`lines`."""
        self.lines: list[str] = []
        serving = await in_thread(client.serve, "pong", rundir=broker.settings.rundir, log=self.lines.append, **options)
        self.addCleanup(in_thread, serving.close)
        return serving

    async def taken(self, serving: Serving) -> tuple[socket.socket, dict[str, Any]]:
        sock, told = await in_thread(next, serving)
        self.assertTrue(os.get_blocking(sock.fileno()))
        self.assertFalse(os.get_inheritable(sock.fileno()))
        return self.owned(sock), told


class Taking(ServingTestCase):
    async def test_a_local_client_and_a_caller_come_with_what_is_told_of_them(self) -> None:
        broker = self.claimable()
        serving = await self.serving(broker)
        self.assertEqual(serving.rule, "1: allow serve pong")
        for call, family, mode, rule in (
            (self.call, socket.AF_UNIX, "local", "default for local services"),
            (self.call_in, socket.AF_INET, None, "2: allow in pong tcp:127.0.0.1"),
        ):
            far = await call(broker)
            sock, told = await self.taken(serving)
            self.assertEqual((sock.family, told["service"], told["identities"]), (family, "pong", []))
            self.assertEqual((told["peer"], told["rule"]), (wanted_peer(far), rule))
            if mode:
                self.assertEqual(told["mode"], mode)
            far.sendall(b"hello")
            far.shutdown(socket.SHUT_WR)
            sock.sendall(await in_thread(read_all, sock))
            sock.close()
            self.assertEqual(await in_thread(read_all, far), b"hello")

    async def test_a_loop_over_it_ends_with_close(self) -> None:
        broker = self.claimable()
        serving = await self.serving(broker)
        served: list[bytes] = []

        def serve() -> None:
            for sock, _ in serving:
                with sock:
                    served.append(sock.recv(1))
                if len(served) == 3:
                    serving.close()

        looping = in_thread(serve)
        for word in (b"a", b"b", b"c"):
            (await self.call(broker)).sendall(word)
        await looping
        self.assertEqual(sorted(served), [b"a", b"b", b"c"])
        await self.claimed(broker, 0)

    async def test_close_ends_a_wait_in_another_thread(self) -> None:
        serving = await self.serving(self.claimable())
        waiting = in_thread(serving.take)
        await in_thread(serving.close)
        self.assertIsNone(await waiting)
        self.assertIsNone(serving.take())
        self.assertEqual(serving.fileno(), -1)

    async def test_it_is_there_for_select(self) -> None:
        broker = self.claimable()
        serving = await self.serving(broker)
        self.assertEqual(select.select([serving], [], [], 0)[0], [])
        self.assertIsNone(serving.take(0))
        for _ in range(2):
            await self.call(broker)
        for _ in range(2):
            ready = await in_thread(select.select, [serving], [], [], DEADLINE_SECONDS)
            self.assertEqual(ready[0], [serving])
            await until(lambda: (found := serving.take(0)) and self.owned(found[0]))
        self.assertEqual(select.select([serving], [], [], 0)[0], [])

    async def test_several_threads_may_take(self) -> None:
        broker = self.claimable()
        serving = await self.serving(broker)
        answered: list[int] = []

        def serve(number: int) -> None:
            for sock, _ in serving:
                with sock:
                    sock.sendall(b"x")
                answered.append(number)

        threads = [threading.Thread(target=serve, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(12):
            self.assertEqual(await in_thread(read_all, await self.call(broker)), b"x")
        await in_thread(serving.close)
        for thread in threads:
            await in_thread(thread.join, DEADLINE_SECONDS)
        self.assertEqual(len(answered), 12)

    async def test_a_slow_service_keeps_its_claim(self) -> None:
        broker = self.claimable()
        serving = await self.serving(broker)
        callers = [await self.call(broker) for _ in range(20)]
        await until(lambda: len(serving._held) == 20)  # though nobody has taken one yet
        for far in callers:
            far.sendall(b"x")
        for _ in callers:
            sock, _ = await self.taken(serving)
            self.assertEqual(await in_thread(sock.recv, 1), b"x")
        self.assertEqual(self.lines, [])

    async def test_beyond_what_it_holds_connections_are_closed_and_that_is_told(self) -> None:
        broker = self.claimable()
        serving = await self.serving(broker, waiting=2)
        callers = [await self.call(broker) for _ in range(3)]
        self.assertEqual(await in_thread(read_all, callers[2]), b"")
        await until(lambda: self.lines == ["a connection to pong is closed: 2 wait already"])
        for far in callers[:2]:
            far.sendall(b"x")
            sock, _ = await self.taken(serving)
            self.assertEqual(await in_thread(sock.recv, 1), b"x")

    async def test_what_is_held_at_the_end_is_closed(self) -> None:
        broker = self.claimable()
        serving = await self.serving(broker)
        far = await self.call(broker)
        await until(lambda: serving._held)
        with serving:
            pass
        self.assertEqual(await in_thread(read_all, far), b"")


class Forked(ServingTestCase):
    async def test_a_child_that_closes_its_copy_ends_nothing_for_its_parent(self) -> None:
        broker = self.claimable()
        code = (
            "import os, sys\n"
            "from plumberd import client\n"
            "serving = client.serve('pong', rundir=sys.argv[1])\n"
            "print('serves', flush=True)\n"
            "for count, (sock, _) in enumerate(serving):\n"
            "    child = os.fork()\n"
            "    if not child:\n"
            "        serving.close()\n"
            "        serving.close()\n"
            "        left = len(os.listdir('/proc/self/fd'))  # 0, 1, 2, the connection, the listing's own\n"
            "        sock.sendall(str(left).encode())\n"
            "        os._exit(0)\n"
            "    sock.close()\n"
            "    os.waitpid(child, 0)\n"
            "    if count == 2:\n"
            "        break\n"
            "used = os.times()\n"
            "serving.close()\n"
            "print('ended', used.user + used.system < 5, len(os.listdir('/proc/self/fd')))\n"
        )
        child = self.child(code, broker.settings.rundir)
        self.assertEqual(await in_thread(child.line), "serves")
        for _ in range(3):
            self.assertEqual(await in_thread(read_all, await self.call(broker)), b"5")
        self.assertEqual(await in_thread(child.finish), (0, "ended True 4\n", ""))

    async def test_a_signal_s_handler_may_close_it(self) -> None:
        broker = self.claimable()
        code = (
            "import signal, sys\n"
            "from plumberd import client\n"
            "serving = client.serve('pong', rundir=sys.argv[1])\n"
            "signal.signal(signal.SIGTERM, lambda *_: serving.close())\n"
            "print('serves', flush=True)\n"
            "print(len(list(serving)))\n"
        )
        child = self.child(code, broker.settings.rundir)
        self.assertEqual(await in_thread(child.line), "serves")
        child.process.terminate()
        self.assertEqual(await in_thread(child.finish), (0, "0\n", ""))


class Claiming(ServingTestCase):
    async def test_without_a_rule_it_is_refused(self) -> None:
        broker = self.claimable("allow in pong tcp:127.0.0.1")
        with self.assertRaises(client.Refused) as raised:
            await self.serving(broker)
        self.assertEqual(raised.exception.word, "denied")

    async def test_what_is_served_already_is_refused(self) -> None:
        broker = self.claimable()
        await self.serving(broker)
        with self.assertRaises(client.Refused) as raised:
            await self.serving(broker)
        self.assertIn("claimed already", raised.exception.reason)

    async def test_without_a_broker_it_says_where_was_looked(self) -> None:
        with self.assertRaises(client.NoBroker):
            await in_thread(client.serve, "pong", rundir=self.folder())

    async def test_the_inherited_control_socket_is_not_asked_for_it(self) -> None:
        broker = self.claimable()
        control = await in_thread(client.control_socket, ["pong"], rundir=broker.settings.rundir)
        with control:
            serving = await self.serving(broker)
            self.assertEqual(serving.service, "pong")


class Again(ServingTestCase):
    async def test_a_claim_is_made_again_when_the_broker_is_back(self) -> None:
        broker = self.claimable()
        serving = await self.serving(broker)
        await broker.stopService()
        await until(lambda: self.lines)
        again = self.restart(broker)
        await self.claimed(again)
        far = await self.call(again)
        sock, _ = await self.taken(serving)
        sock.close()
        self.assertEqual(await in_thread(read_all, far), b"")
        first, *_, last = self.lines
        self.assertEqual(first, "the claim to pong is lost, and will be made again: the broker hung up")
        self.assertEqual(last, "pong is claimed again: 1: allow serve pong")

    async def test_one_that_is_refused_then_is_tried_on_and_that_is_told_once(self) -> None:
        broker = self.claimable()
        serving = await self.serving(broker)
        await broker.stopService()
        other = self.restart(broker, "deny serve pong")
        await until(lambda: any("denied" in line for line in self.lines))
        refusals = len([o for o in self.outcomes if o.verdict == "denied"])
        await until(lambda: len([o for o in self.outcomes if o.verdict == "denied"]) >= refusals + 2)
        self.assertEqual(len([line for line in self.lines if "denied" in line]), 1)
        await other.stopService()
        await self.claimed(self.restart(broker))
        await until(lambda: self.lines[-1] == "pong is claimed again: 1: allow serve pong")
        self.assertEqual(serving.rule, "1: allow serve pong")

    async def test_close_ends_the_trying(self) -> None:
        broker = self.claimable()
        serving = await self.serving(broker)
        await broker.stopService()
        await until(lambda: self.lines)
        await in_thread(serving.close)
        self.assertIsNone(serving.take())

    async def test_what_listens_to_the_lines_cannot_end_it(self) -> None:
        broker = self.claimable()

        def fail(line: str) -> None:
            self.lines.append(line)
            raise RuntimeError

        serving = await self.serving(broker)
        serving._log = fail
        await broker.stopService()
        await self.claimed(self.restart(broker))
        self.assertIsNone(serving.take(0))


class Misbehaviour(FakeBrokerTestCase):
    async def test_a_broker_that_hangs_up_after_its_grant_is_asked_again_and_again(self) -> None:
        rundir = self.broker(lambda sock, _: send(sock, frame({"ok": True, "rule": "r"})))
        serving = await in_thread(client.serve, "pong", rundir=rundir)
        await until(lambda: len(self.requests) > 2)
        await in_thread(serving.close)
        self.assertEqual(self.requests[0], {"op": "serve", "service": "pong"})

    async def test_one_that_hangs_up_at_once_is_an_error(self) -> None:
        rundir = self.broker(lambda *_: None)
        with self.assertRaises(client.Error) as raised:
            await in_thread(client.serve, "pong", rundir=rundir)
        self.assertIn("hung up", str(raised.exception.strerror))

    async def test_one_that_says_nothing_is_late(self) -> None:
        rundir = self.broker(say_nothing)
        with self.assertRaises(client.Error) as raised:
            await in_thread(client.serve, "pong", rundir=rundir, timeout=0.1)
        self.assertIn("within 0.1 seconds", str(raised.exception.strerror))

    async def test_one_that_refuses_has_its_word(self) -> None:
        with self.assertRaises(client.Refused) as raised:
            await in_thread(client.serve, "pong", rundir=self.broker(refuse("denied", "no rule")))
        self.assertEqual(raised.exception.word, "denied")

    async def test_a_full_backlog_is_waited_for_and_not_for_ever(self) -> None:
        rundir = self.folder()
        self.unix_listener(f"{rundir}/plumberd", backlog=0)
        filler = self.owned(socket.socket(socket.AF_UNIX))
        filler.connect(f"{rundir}/plumberd")
        with self.assertRaises(client.Error) as raised:
            await in_thread(client.serve, "pong", rundir=rundir, timeout=0.1)
        self.assertIn("within 0.1 seconds", str(raised.exception.strerror))
