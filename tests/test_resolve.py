"""plumberd.effects.resolve: a hanging name server delays the one who asked for it, and no search domain counts."""

from __future__ import annotations

import ipaddress
import os
import socket
import threading
from typing import Any

from plumberd.effects.resolve import MOST_ADDRESSES, Answer, Resolution, Resolver, look_up
from plumberd.pure.limits import Limits
from plumberd.pure.refusals import Refusal, Refused
from tests.support import DEADLINE_SECONDS, CleanTestCase, in_thread, real_reactor, until

ADDRESS = ipaddress.ip_address("192.0.2.1")
THREADS = Limits().resolving
THREADS_PER_KEY = Limits().resolving_per_uid


class ResolverTestCase(CleanTestCase):
    """A resolver whose blocking function hangs for names that begin with ``hang``, until the test lets go."""

    def setUp(self) -> None:
        super().setUp()
        self.let_go = threading.Event()
        self.looking = threading.Event()
        self.looked_up: list[str] = []
        self.told: list[tuple[str, Answer | Refused]] = []
        self.resolver = Resolver(real_reactor, self.lookup)
        self.addCleanup(self.end)

    async def end(self) -> None:
        self.resolver.close()
        self.let_go.set()
        await until(lambda: not self.threads())

    def threads(self) -> int:
        return sum(thread.name == "resolver" for thread in threading.enumerate())

    def lookup(self, name: str) -> Answer | Refused:
        self.looked_up.append(name)
        self.looking.set()
        if name.startswith("hang"):
            self.let_go.wait(DEADLINE_SECONDS)
        if name.startswith("fail"):
            raise ZeroDivisionError
        if name.startswith("none"):
            return Refused(Refusal.UNREACHABLE, f"{name} has no address")
        return (ADDRESS,)

    def resolve(self, name: str, key: str = "alice") -> Resolution:
        return self.resolver.resolve(name, key, lambda answer: self.told.append((name, answer)))

    def names(self) -> list[str]:
        return [name for name, _ in self.told]


class Resolved(ResolverTestCase):
    async def test_the_answer_comes_later_and_in_the_reactors_thread(self) -> None:
        threads: list[int] = []
        self.resolver.resolve("a.example", "alice", lambda _: threads.append(threading.get_ident()))
        self.assertEqual(threads, [])
        await until(lambda: threads)
        self.assertEqual(threads, [threading.get_ident()])

    async def test_the_answer_is_the_functions(self) -> None:
        self.resolve("a.example")
        await until(lambda: self.told)
        self.assertEqual(self.told, [("a.example", (ADDRESS,))])

    async def test_of_hundreds_of_addresses_the_first_count(self) -> None:
        many = tuple(ipaddress.ip_address(n) for n in range(0x7F000001, 0x7F000001 + 500))
        self.resolver = Resolver(real_reactor, lambda _: many)
        self.resolve("a.example")
        await until(lambda: self.told)
        self.assertEqual(self.told, [("a.example", many[:MOST_ADDRESSES])])

    async def test_so_is_a_refusal(self) -> None:
        self.resolve("none.example")
        await until(lambda: self.told)
        ((_, answer),) = self.told
        assert isinstance(answer, Refused)
        self.assertEqual(answer.reason, "none.example has no address")

    async def test_a_function_that_fails_is_a_refusal_and_costs_nobody_a_place(self) -> None:
        for number in range(2 * THREADS_PER_KEY):
            self.resolve(f"fail{number}.example")
        self.resolve("a.example")
        await until(lambda: len(self.told) == 2 * THREADS_PER_KEY + 1)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2 * THREADS_PER_KEY)
        for name, answer in self.told:
            self.assertEqual(isinstance(answer, Refused), name.startswith("fail"))

    async def test_an_idle_resolver_has_no_thread(self) -> None:
        self.assertEqual(self.threads(), 0)

    async def test_one_after_the_other_needs_one_thread(self) -> None:
        for number in range(5):
            self.resolve(f"{number}.example")
            await until(lambda wanted=number + 1: len(self.told) == wanted)  # type: ignore[misc]
        self.assertEqual(self.threads(), 1)


class Fair(ResolverTestCase):
    async def test_a_hanging_name_delays_its_own_user_alone(self) -> None:
        for number in range(THREADS_PER_KEY + 2):
            self.resolve(f"hang{number}.example")
        self.resolve("a.example", key="alice")
        self.resolve("b.example", key="bob")
        await until(lambda: self.told and len(self.looked_up) > THREADS_PER_KEY)  # each thread begins in its own time
        self.assertEqual(self.names(), ["b.example"])
        self.assertEqual(sum(name.startswith("hang") for name in self.looked_up), THREADS_PER_KEY)

    async def test_when_it_answers_those_that_waited_have_their_turn(self) -> None:
        wanted = [f"hang{number}.example" for number in range(THREADS_PER_KEY + 2)] + ["a.example"]
        for name in wanted:
            self.resolve(name)
        await until(lambda: len(self.looked_up) == THREADS_PER_KEY)
        self.let_go.set()
        await until(lambda: len(self.told) == len(wanted))
        self.assertEqual(sorted(self.names()), sorted(wanted))

    async def test_there_are_no_more_threads_than_so_many(self) -> None:
        for number in range(2 * THREADS):
            self.resolve(f"hang{number}.example", key=str(number))
        await until(lambda: len(self.looked_up) == THREADS)
        self.assertEqual(self.threads(), THREADS)
        self.let_go.set()
        await until(lambda: len(self.told) == 2 * THREADS)
        self.assertEqual(self.threads(), THREADS)

    async def test_a_user_for_whom_too_many_wait_already_is_told_busy_and_later(self) -> None:
        self.resolver = Resolver(real_reactor, self.lookup, Limits(waiting_per_uid=3))
        for number in range(THREADS_PER_KEY + 3):
            self.resolve(f"hang{number}.example")
        self.resolve("a.example")
        self.assertEqual(self.told, [])
        await until(lambda: self.told)
        ((name, answer),) = self.told
        assert isinstance(answer, Refused)
        self.assertEqual((name, answer.word), ("a.example", Refusal.BUSY))
        self.assertIn("waiting_per_uid=3", answer.reason)

    async def test_it_tells_whether_one_has_its_turn(self) -> None:
        first = [self.resolve(f"hang{number}.example") for number in range(THREADS_PER_KEY)]
        last = self.resolve("a.example")
        self.assertEqual(([one.begun for one in first], last.begun), ([True] * THREADS_PER_KEY, False))
        self.let_go.set()
        await until(lambda: "a.example" in self.names())
        self.assertTrue(last.begun)


class Changed(ResolverTestCase):
    """Other limits, at a reload."""

    async def test_with_greater_limits_those_that_waited_begin(self) -> None:
        wanted = [f"hang{number}.example" for number in range(THREADS_PER_KEY + 5)]
        for name in wanted:
            self.resolve(name)
        self.resolver.change(Limits(resolving_per_uid=THREADS_PER_KEY + 3))
        await until(lambda: len(self.looked_up) == THREADS_PER_KEY + 3)
        self.assertEqual(self.threads(), THREADS_PER_KEY + 3)
        self.let_go.set()
        await until(lambda: len(self.told) == len(wanted))
        self.assertEqual(sorted(self.names()), sorted(wanted))

    async def test_one_that_was_cancelled_while_it_waited_does_not_take_the_new_place(self) -> None:
        for number in range(THREADS_PER_KEY):
            self.resolve(f"hang{number}.example")
        self.resolve("cancelled.example").cancel()
        self.resolve("a.example")
        self.resolver.change(Limits(resolving_per_uid=THREADS_PER_KEY + 1))
        await until(lambda: self.told)
        self.assertEqual(self.names(), ["a.example"])
        self.assertNotIn("cancelled.example", self.looked_up)

    async def test_with_smaller_limits_what_is_under_way_goes_on_and_later_ones_wait(self) -> None:
        for number in range(THREADS_PER_KEY):
            self.resolve(f"hang{number}.example")
        self.resolver.change(Limits(resolving_per_uid=1, resolving=1, waiting_per_uid=1))
        waiting = self.resolve("a.example", key="bob")
        self.assertFalse(waiting.begun)
        self.let_go.set()
        await until(lambda: len(self.told) == THREADS_PER_KEY + 1)
        self.assertEqual(self.names()[-1], "a.example")

    async def test_smaller_ones_may_grow_again_while_the_first_hang(self) -> None:
        for number in range(THREADS_PER_KEY):
            self.resolve(f"hang{number}.example")
        self.resolver.change(Limits(resolving=1))
        self.resolve("a.example", key="bob")
        self.resolver.change(Limits())
        await until(lambda: self.told)
        self.assertEqual(self.names(), ["a.example"])


class Cancelled(ResolverTestCase):
    async def test_nothing_is_told(self) -> None:
        self.resolve("hang.example").cancel()
        self.let_go.set()
        self.resolve("a.example")
        await until(lambda: self.told)
        await until(lambda: len(self.looked_up) == 2)
        self.assertEqual(self.names(), ["a.example"])

    async def test_who_waits_is_not_looked_up_any_more(self) -> None:
        for number in range(THREADS_PER_KEY):
            self.resolve(f"hang{number}.example")
        waiting = [self.resolve(f"w{number}.example") for number in range(3)]
        self.resolve("last.example")
        for one in waiting:
            one.cancel()
        self.let_go.set()
        await until(lambda: "last.example" in self.names())
        self.assertEqual([name for name in self.looked_up if name.startswith("w")], [])

    async def test_who_was_told_busy_may_cancel_before(self) -> None:
        self.resolver = Resolver(real_reactor, self.lookup, Limits(waiting_per_uid=1))
        for number in range(THREADS_PER_KEY):
            self.resolve(f"hang{number}.example")
        self.resolve("waits.example")
        self.resolve("a.example").cancel()
        self.resolve("b.example")
        await until(lambda: self.told)
        self.assertEqual(self.names(), ["b.example"])


class Closed(ResolverTestCase):
    async def test_the_threads_end(self) -> None:
        for number in range(3):
            self.resolve(f"{number}.example", key=str(number))
        await until(lambda: len(self.told) == 3)
        self.resolver.close()
        await until(lambda: not self.threads())

    async def test_an_answer_that_comes_afterwards_is_told_to_nobody(self) -> None:
        self.resolve("hang.example")
        await until(lambda: self.looked_up)
        self.resolver.close()
        self.let_go.set()
        await until(lambda: not self.threads())
        await in_thread(lambda: None)
        self.assertEqual(self.told, [])

    async def test_an_answer_that_is_under_way_already_is_told_to_nobody(self) -> None:
        self.resolve("a.example")
        self.looking.wait(DEADLINE_SECONDS)  # without a turn of the reactor's
        self.resolver.close()
        await until(lambda: not self.threads())
        await in_thread(lambda: None)
        self.assertEqual(self.told, [])


class HostsFile(CleanTestCase):
    """A table of lines; one method a row. DNS is not asked: the test stands in its place."""

    def setUp(self) -> None:
        super().setUp()
        self.hosts = os.path.join(self.folder(), "hosts")
        self.asked: list[str] = []

        def nothing(name: str, *args: Any, **kwargs: Any) -> Any:
            self.asked.append(name)
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        self.patch(socket, "getaddrinfo", nothing)

    def look_up(self, line: str, name: str = "db.example") -> Answer | Refused:
        with open(self.hosts, "w", encoding="utf-8") as file:
            file.write(f"127.0.0.1 localhost\n{line}\n")
        return look_up(name, hosts=self.hosts)

    def found(self, line: str, *wanted: str) -> None:
        self.assertEqual(self.look_up(line), tuple(ipaddress.ip_address(a) for a in wanted))
        self.assertEqual(self.asked, [])

    def not_found(self, line: str) -> None:
        answer = self.look_up(line)
        assert isinstance(answer, Refused)
        self.assertEqual((answer.word, self.asked), (Refusal.UNREACHABLE, ["db.example."]))

    def test_an_address(self) -> None:
        self.found("192.0.2.1 db.example", "192.0.2.1")

    def test_an_alias(self) -> None:
        self.found("192.0.2.1\tother.example\t db.example # db", "192.0.2.1")

    def test_several_lines(self) -> None:
        self.found("192.0.2.2 db.example\n2001:db8::1 db.example", "192.0.2.2", "2001:db8::1")

    def test_the_same_address_twice_counts_once(self) -> None:
        self.found("192.0.2.2 db.example\n192.0.2.2 db.example", "192.0.2.2")

    def test_upper_case(self) -> None:
        self.found("192.0.2.1 DB.Example", "192.0.2.1")

    def test_a_mapped_address_is_unwrapped(self) -> None:
        self.found("::ffff:192.0.2.1 db.example", "192.0.2.1")

    def test_a_mapped_address_and_its_own_are_one(self) -> None:
        self.found("::ffff:192.0.2.1 db.example\n192.0.2.1 db.example", "192.0.2.1")

    def test_an_address_with_a_zone_id_is_passed_over(self) -> None:
        self.found("fe80::1%eth0 db.example\n192.0.2.1 db.example", "192.0.2.1")

    def test_with_zone_ids_alone_there_is_no_usable_address(self) -> None:
        answer = self.look_up("fe80::1%eth0 db.example")
        assert isinstance(answer, Refused)
        self.assertEqual((answer.reason, self.asked), ("db.example has no usable address", []))

    def test_a_longer_name_is_another(self) -> None:
        self.not_found("192.0.2.1 db.example.com mydb.example")

    def test_a_comment_does_not_count(self) -> None:
        self.not_found("# 192.0.2.1 db.example")

    def test_what_is_no_address_does_not_count(self) -> None:
        self.not_found("999.0.2.1 db.example")

    def test_what_is_not_ascii_harms_nobody(self) -> None:
        self.found("ünsinn db.example\n192.0.2.1 bücher.example db.example", "192.0.2.1")

    def test_no_file_is_an_empty_one(self) -> None:
        answer = look_up("db.example", hosts=self.hosts + "-missing")
        assert isinstance(answer, Refused)
        self.assertEqual(self.asked, ["db.example."])


class Dns(CleanTestCase):
    """What getaddrinfo is asked, and what becomes of its answers."""

    def look_up(self, *texts: str, name: str = "db.example") -> Answer | Refused:
        self.asked: list[tuple[Any, ...]] = []

        def answer(*args: Any, **kwargs: Any) -> Any:
            self.asked.append((args, kwargs))
            return [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", (text, 0, 0, 0)) for text in texts]

        self.patch(socket, "getaddrinfo", answer)
        return look_up(name, hosts="/dev/null")

    def test_the_name_is_asked_for_absolutely_so_that_no_search_domain_counts(self) -> None:
        self.look_up("192.0.2.1")
        self.assertEqual(self.asked, [(("db.example.", None), {"type": socket.SOCK_STREAM})])

    def test_a_name_of_one_label_too(self) -> None:
        self.look_up("192.0.2.1", name="db")
        self.assertEqual(self.asked[0][0][0], "db.")

    def test_the_order_of_preference_is_kept(self) -> None:
        self.assertEqual(
            self.look_up("2001:db8::1", "192.0.2.1", "2001:db8::1"),
            (ipaddress.ip_address("2001:db8::1"), ipaddress.ip_address("192.0.2.1")),
        )

    def test_mapped_addresses_are_unwrapped(self) -> None:
        self.assertEqual(self.look_up("::ffff:192.0.2.1"), (ipaddress.ip_address("192.0.2.1"),))

    def test_addresses_with_a_zone_id_are_passed_over(self) -> None:
        answer = self.look_up("fe80::1%2")
        assert isinstance(answer, Refused)
        self.assertEqual(answer.reason, "db.example has no usable address")

    def test_an_error_is_unreachable_and_says_why(self) -> None:
        def fail(*args: Any, **kwargs: Any) -> Any:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

        self.patch(socket, "getaddrinfo", fail)
        answer = look_up("db.example", hosts="/dev/null")
        assert isinstance(answer, Refused)
        self.assertEqual(answer.word, Refusal.UNREACHABLE)
        self.assertEqual(answer.reason, "db.example has no address: Temporary failure in name resolution")

    def test_a_name_that_getaddrinfo_cannot_even_encode_is_unreachable(self) -> None:
        answer = look_up("a" * 64 + ".example", hosts="/dev/null")
        assert isinstance(answer, Refused)
        self.assertEqual(answer.word, Refusal.UNREACHABLE)
