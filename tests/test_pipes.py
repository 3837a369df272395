"""plumberd.effects.pipes: empty ones are lent and kept, others are closed."""

from __future__ import annotations

import fcntl
import os

from plumberd.effects import pipes
from plumberd.effects.pipes import KEPT, PIPE_BYTES, Pipe, PipePool
from tests.support import CleanTestCase, no_descriptors, open_descriptors

F_GETPIPE_SZ = 1032


class PipePoolTestCase(CleanTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.pool = PipePool()
        self.addCleanup(self.pool.close)

    def is_open(self, pipe: Pipe) -> tuple[bool, bool]:
        numbers = open_descriptors()
        return pipe.read in numbers, pipe.write in numbers


class Pipes(PipePoolTestCase):
    def test_what_is_written_can_be_read(self) -> None:
        pipe = self.pool.take()
        self.addCleanup(pipe.close)
        os.write(pipe.write, b"bytes")
        self.assertEqual(os.read(pipe.read, 100), b"bytes")

    def test_neither_end_blocks(self) -> None:
        pipe = self.pool.take()
        self.addCleanup(pipe.close)
        self.assertFalse(os.get_blocking(pipe.read) or os.get_blocking(pipe.write))

    def test_neither_end_is_inherited(self) -> None:
        pipe = self.pool.take()
        self.addCleanup(pipe.close)
        self.assertFalse(os.get_inheritable(pipe.read) or os.get_inheritable(pipe.write))

    def test_it_holds_as_much_as_told_where_the_kernel_lets_it(self) -> None:
        pipe = self.pool.take()
        self.addCleanup(pipe.close)
        self.assertEqual(fcntl.fcntl(pipe.write, F_GETPIPE_SZ), PIPE_BYTES)

    def test_a_size_that_the_kernel_refuses_is_no_error(self) -> None:
        self.patch(pipes, "PIPE_BYTES", 2**30 + 1)
        pipe = self.pool.take()
        self.addCleanup(pipe.close)
        self.assertLess(fcntl.fcntl(pipe.write, F_GETPIPE_SZ), 2**30)


class Pool(PipePoolTestCase):
    def test_an_empty_pipe_is_lent_again(self) -> None:
        pipe = self.pool.take()
        self.pool.give_back(pipe)
        self.assertIs(self.pool.take(), pipe)
        self.addCleanup(pipe.close)

    def test_a_pipe_that_holds_bytes_is_closed(self) -> None:
        pipe = self.pool.take()
        pipe.held = os.write(pipe.write, b"somebody's")
        self.pool.give_back(pipe)
        self.assertEqual(self.is_open(pipe), (False, False))

    def test_two_are_never_the_same(self) -> None:
        one, two = self.pool.take(), self.pool.take()
        self.addCleanup(one.close)
        self.addCleanup(two.close)
        self.assertEqual(len({one.read, one.write, two.read, two.write}), 4)

    def test_no_more_than_so_many_are_kept(self) -> None:
        taken = [self.pool.take() for _ in range(KEPT + 2)]
        for pipe in taken:
            self.pool.give_back(pipe)
        self.assertEqual([self.is_open(p) for p in taken], [(True, True)] * KEPT + [(False, False)] * 2)

    def test_closing_closes_those_that_are_free_and_not_those_that_are_lent(self) -> None:
        lent, free = self.pool.take(), self.pool.take()
        self.addCleanup(lent.close)
        self.pool.give_back(free)
        self.pool.close()
        self.assertEqual((self.is_open(lent), self.is_open(free)), ((True, True), (False, False)))

    def test_without_descriptors_there_is_none_and_nothing_is_left_open(self) -> None:
        before = open_descriptors()
        with no_descriptors(), self.assertRaises(OSError):
            self.pool.take()
        self.assertEqual(open_descriptors(), before)
