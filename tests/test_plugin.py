"""plumberd.wiring.plugin: the names that Twisted's ServiceMaker looks for, and the plugin that names it."""

from __future__ import annotations

from twisted.application.service import IServiceMaker
from zope.interface.verify import verifyObject

from plumberd.wiring import plugin, service
from plumberd.wiring.config import options
from tests.children import ChildTestCase


class Names(ChildTestCase):
    def test_options_and_make_service_are_there(self) -> None:
        self.assertIs(plugin.Options, options.Options)
        self.assertIs(plugin.makeService, service.makeService)

    def test_they_make_a_service_that_has_not_begun(self) -> None:
        parsed = plugin.Options()
        parsed.parseOptions(["--rundir", "/nowhere/r"])
        made = plugin.makeService(parsed)
        assert isinstance(made, service.PlumberdService)
        self.assertEqual((made.settings, made.running), (parsed.settings, 0))


class Plugin(ChildTestCase):
    def test_it_is_twistds_word_plumberd(self) -> None:
        from twisted.plugins.plumberd_plugin import plumberd

        verifyObject(IServiceMaker, plumberd)
        self.assertEqual((plumberd.tapname, plumberd.module), ("plumberd", "plumberd.wiring.plugin"))
        self.assertIs(plumberd.options, options.Options)
        self.assertIs(plumberd.makeService, service.makeService)

    async def test_looking_at_it_chooses_no_reactor_and_loads_no_broker(self) -> None:
        # twistd looks at every plugin, whichever program it starts.
        out = await self.run_child(
            "import sys, twisted.plugins.plumberd_plugin\n"
            "print('twisted.internet.reactor' in sys.modules, 'plumberd.wiring.clients.broker' in sys.modules)"
        )
        self.assertEqual(out, "False False\n")
