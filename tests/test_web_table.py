"""``[web]`` of a configuration: what it says, and every mistake with its place."""

from __future__ import annotations

from plumberd.pure.tokens import format_line
from plumberd.wiring.config.assemble import read_settings
from plumberd.wiring.config.settings import CommandLine, WebListener
from tests.configured import ConfiguredTestCase
from tests.tables import each

LINE = format_line("phone", "x") + "\n"


class Table(ConfiguredTestCase):
    def test_nothing_said_is_loopback_alone_and_no_page(self) -> None:
        web = self.settings("").web
        self.assertEqual((web.hosts, web.origins, web.proxies, len(web.tokens), web.page), ((), (), (), 0, False))

    def test_all_of_it(self) -> None:
        self.write(LINE, "keys/tokens", 0o600)
        text = (
            "[web]\nhosts = ['ipc.example.com', '[::1]:9080']\norigins = ['https://app.example.com']\n"
            "proxies = ['10.0.0.0/8', 'unix']\ntoken_file = 'keys/tokens'\npage = true\n"
            "[listen]\nwebipcd = ['9080', 'unix:/run/web']\n"
        )
        settings = self.settings(text)
        web = settings.web
        self.assertEqual(list(map(str, web.hosts)), ["ipc.example.com", "[::1]:9080"])
        self.assertEqual(list(map(str, web.origins)), ["https://app.example.com"])
        self.assertEqual(list(map(str, web.proxies)), ["10.0.0.0/8", "unix"])
        self.assertEqual((web.token_file, web.tokens.name_of("x")), (self.path("keys/tokens"), "phone"))
        self.assertTrue(web.page)
        self.assertEqual(settings.webipcd[0], WebListener("tcp:9080:interface=127.0.0.1"))

    @each(
        ("web.hosts = ['http://a']", "web.hosts[0]: 'http://a': wanted HOST or HOST:PORT"),
        ("web.hosts = 'a'", "web.hosts: "),
        ("web.origins = ['a']", "web.origins[0]: 'a': wanted https://HOST"),
        ("web.origins = ['null']", "web.origins[0]: 'null': wanted https://HOST"),
        ("web.proxies = ['localhost']", "web.proxies[0]: 'localhost': wanted an address"),
        ("web.page = 'yes'", "web.page: "),
        ("web.token = 'x'", "web.token: "),
        ("listen.webipcd = ['ssl:1']", "listen.webipcd[0]: "),
        ("listen.webipcd = ['tls:9443']", "listen.webipcd: wants something that a listener can prove"),
    )
    def test_a_mistake_has_its_place(self, text: str, wanted: str) -> None:
        (told,) = self.mistakes(text)
        self.assertIn(wanted, told)

    @each(
        ("readable", LINE, 0o644, "a secret that others can read (mode 0644)"),
        ("broken", "phone:secret\n", 0o600, "tokens:1: wanted NAME:sha256:"),
    )
    def test_a_file_of_tokens_that_cannot_be_used(self, _: str, text: str, mode: int, wanted: str) -> None:
        self.write(text, "tokens", mode)
        (told,) = self.mistakes("web.token_file = 'tokens'")
        self.assertIn("web.token_file", told)
        self.assertIn(wanted, told)
        self.assertNotIn("secret\n", told)

    def test_who_only_asks_a_configuration_needs_no_file(self) -> None:
        path = self.write("web.token_file = '/nowhere'")
        self.assertEqual(len(read_settings(CommandLine(path), reads_keys=False).web.tokens), 0)
