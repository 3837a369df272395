"""plumberd.pure.places: the run directory, for the broker and for its clients."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.places import broker_rundir, client_rundirs
from tests.tables import each


class Broker(SynchronousTestCase):
    @each(
        ("nothing", {}, 1000, "/run/ipc"),
        ("the_first", {"IPC_RUNDIR": "/a", "RUNDIR": "/b", "XDG_RUNTIME_DIR": "/c"}, 1000, "/a"),
        ("the_current_generation_s", {"RUNDIR": "/b", "XDG_RUNTIME_DIR": "/c"}, 1000, "/b"),
        ("the_user_s", {"XDG_RUNTIME_DIR": "/run/user/1000"}, 1000, "/run/user/1000/ipc"),
        ("root_s_is_the_system_s", {"XDG_RUNTIME_DIR": "/run/user/0"}, 0, "/run/ipc"),
        ("root_told", {"IPC_RUNDIR": "/a"}, 0, "/a"),
        ("empty_is_unset", {"IPC_RUNDIR": "", "RUNDIR": "", "XDG_RUNTIME_DIR": ""}, 1000, "/run/ipc"),
        ("others_do_not_matter", {"TMPDIR": "/t", "HOME": "/h"}, 1000, "/run/ipc"),
    )
    def test_the_first_variable_that_says_something_decides(
        self, _: str, environ: dict[str, str], uid: int, wanted: str
    ) -> None:
        self.assertEqual(broker_rundir(environ, uid), wanted)


class Client(SynchronousTestCase):
    @each(
        ("nothing", {}, ("/run/ipc",)),
        (
            "all_in_their_order",
            {"XDG_RUNTIME_DIR": "/c", "RUNDIR": "/b", "IPC_RUNDIR": "/a"},
            ("/a", "/b", "/c/ipc", "/run/ipc"),
        ),
        ("each_once", {"IPC_RUNDIR": "/run/ipc", "RUNDIR": "/run/ipc", "XDG_RUNTIME_DIR": "/run"}, ("/run/ipc",)),
        ("empty_is_unset", {"IPC_RUNDIR": "", "RUNDIR": "", "XDG_RUNTIME_DIR": ""}, ("/run/ipc",)),
    )
    def test_every_place_is_looked_at_in_its_order(
        self, _: str, environ: dict[str, str], wanted: tuple[str, ...]
    ) -> None:
        self.assertEqual(client_rundirs(environ), wanted)

    @each(
        ({},),
        ({"IPC_RUNDIR": "/a"},),
        ({"RUNDIR": "/b", "XDG_RUNTIME_DIR": "/c"},),
        ({"XDG_RUNTIME_DIR": "/c"},),
    )
    def test_a_user_s_client_looks_first_where_the_same_user_s_broker_serves(self, environ: dict[str, str]) -> None:
        self.assertEqual(client_rundirs(environ)[0], broker_rundir(environ, 1000))

    @each(({},), ({"IPC_RUNDIR": "/a"},), ({"XDG_RUNTIME_DIR": "/c"},))
    def test_a_client_finds_root_s_broker_too(self, environ: dict[str, str]) -> None:
        self.assertIn(broker_rundir(environ, 0), client_rundirs(environ))
