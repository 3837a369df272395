"""TLS with programs that nobody here wrote: openssl, stunnel, HAProxy, nginx, Redis and curl, both ways."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

from plumberd import client
from tests.issued import DAY, NOW, Issued, root, rsa_key, self_signed
from tests.ports import free_port
from tests.process.running import DEADLINE_SECONDS, ProcessTestCase, Program
from tests.support import read_all
from tests.tables import each

KEY = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
PSK = f"laptop:{KEY}\n"
NGINX_MODULE = "/usr/lib/nginx/modules/ngx_stream_module.so"


class InteropTestCase(ProcessTestCase):
    timeout = 90.0

    def setUp(self) -> None:
        self.dir = Path(self.folder())
        self.ca = root()
        self.file("ca.pem", self.ca.pem)
        self.server = self.keep("server", self.ca.issue("localhost", addresses=("127.0.0.1",)))
        self.keep("client", self.ca.issue("b.example", uris=("spiffe://example.org/b",)))
        self.file("psk", PSK.encode())

    def file(self, name: str, data: bytes) -> str:
        """Write a file that its owner alone can read."""
        path = self.dir / name
        path.write_bytes(data)
        path.chmod(0o600)
        return str(path)

    def keep(self, name: str, issued: Issued) -> Issued:
        self.file(f"{name}.pem", issued.chain)
        self.file(f"{name}.key", issued.key_pem)
        self.file(f"{name}.both", issued.chain + issued.key_pem)
        return issued

    def path(self, name: str) -> str:
        return str(self.dir / name)

    def accepts(self, port: int) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def listens(self, program: Program, port: int) -> None:
        """Wait until *program* accepts, or say what it said."""
        self.until(lambda: program.process.poll() is not None or self.accepts(port), "it listens")
        self.assertIsNone(program.process.poll(), program.output)

    # -- plumberd goes out

    def outward(self, more: str = "", trust: str = "ca.pem") -> str:
        """Start a broker that trusts the test's authority; return its run directory."""
        rundir = self.folder() + "/near"
        config = self.file("near.toml", f'[tls]\ntrust = ["{self.path(trust)}"]\n{more}'.encode())
        self.broker(rundir, "--config", config, "--allow", "out", "any", "tls:any")
        return rundir

    def talk(self, rundir: str, uri: str, data: bytes) -> bytes:
        """Send *data* and read until as much has come back."""
        with client.connect(uri=uri, rundir=rundir) as sock:
            sock.settimeout(DEADLINE_SECONDS)
            sock.sendall(data)
            got = b""
            while len(got) < len(data) and (part := sock.recv(65536)):
                got += part
            return got

    def refused(self, rundir: str, uri: str) -> str:
        with self.assertRaises(client.Refused) as caught:
            client.connect(uri=uri, rundir=rundir).close()
        return str(caught.exception.reason)

    def peer(self, port: int, text: str) -> str:
        return f'[peer."127.0.0.1:{port}"]\n{text}\n'

    def client_certificate(self, port: int) -> str:
        return self.peer(port, f'certificate = "{self.path("client.pem")}"\nprivate_key = "{self.path("client.key")}"')

    def echo(self) -> int:
        """Run a TCP server that sends everything back; return its port."""
        port = free_port()
        self.listens(self.program("socat", f"TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork", "EXEC:cat"), port)
        return port

    # -- plumberd is called

    def inward(
        self, tls: str, *rules: str, listen: str = "publish_tls = { echo = ['tcp:0:interface=127.0.0.1'] }"
    ) -> int:
        """Start a broker that publishes a local service inside TLS; return the port."""
        rundir = self.folder() + "/far"
        rows = ", ".join(f"'{rule}'" for rule in rules)
        own = f'certificate = "{self.path("server.pem")}"\nprivate_key = "{self.path("server.key")}"\n'
        text = f"rules = [{rows}]\n[listen]\n{listen}\n[tls]\n{own}{tls}"
        broker = self.broker(rundir, "--config", self.file("far.toml", text.encode()))
        self.program("socat", f"UNIX-LISTEN:{rundir}/echo,fork", "EXEC:cat")
        self.wait_for_socket(f"{rundir}/echo")
        return int(broker.wait_for(r"(?:publishes echo inside TLS|tlsd) on 127\.0\.0\.1:(\d+)").group(1))

    def s_client(
        self, port: int, *options: str, data: bytes = b"hello\n", wanted: bytes = b"hello\n"
    ) -> tuple[bytes, str]:
        """Run ``openssl s_client``; return as much of the stream as was *wanted*, and all that it said."""
        argv = ["openssl", "s_client", "-quiet", "-no_ign_eof", "-connect", f"127.0.0.1:{port}", *options]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdin is not None and process.stdout is not None
            try:
                process.stdin.write(data)
                process.stdin.flush()
                got = process.stdout.read(len(wanted))
            except BrokenPipeError:
                got = b""
            process.kill()
            _, said = process.communicate(timeout=DEADLINE_SECONDS)
        return got, said.decode(errors="replace")


class OpenSslServer(InteropTestCase):
    """plumberd calls ``openssl s_server``."""

    def s_server(self, *options: str, name: str = "server") -> int:
        port = free_port()
        own = (
            "-cert",
            self.path(f"{name}.pem"),
            "-key",
            self.path(f"{name}.key"),
            "-cert_chain",
            self.path(f"{name}.pem"),
        )
        where = ("-accept", f"127.0.0.1:{port}", "-rev", "-quiet")
        self.listens(self.program("openssl", "s_server", *where, *(own if name else ()), *options), port)
        return port

    @each(("1.3", "-tls1_3"), ("1.2", "-tls1_2"))
    def test_a_certificate(self, _: str, version: str) -> None:
        port = self.s_server(version)
        self.assertEqual(self.talk(self.outward(), f"tls://127.0.0.1:{port}", b"hello\n"), b"olleh\n")

    @each(("1.3", "-tls1_3"), ("1.2", "-tls1_2"))
    def test_mutual(self, _: str, version: str) -> None:
        port = self.s_server(version, "-Verify", "3", "-CAfile", self.path("ca.pem"), "-verify_return_error")
        rundir = self.outward(self.client_certificate(port))
        self.assertEqual(self.talk(rundir, f"tls://127.0.0.1:{port}", b"hello\n"), b"olleh\n")

    @each(("1.3", "-tls1_3"), ("1.2", "-tls1_2"))
    def test_a_pre_shared_key(self, _: str, version: str) -> None:
        port = self.s_server(version, "-nocert", "-psk", KEY, "-psk_identity", "laptop", name="")
        rundir = self.outward(f'psk_file = "{self.path("psk")}"\n' + self.peer(port, 'psk = "laptop"'))
        self.assertEqual(self.talk(rundir, f"tls://127.0.0.1:{port}", b"hello\n"), b"olleh\n")

    @each(
        ("self_signed", lambda ca: self_signed("localhost"), "self-signed"),
        (
            "expired",
            lambda ca: ca.issue("localhost", addresses=("127.0.0.1",), ends=NOW - DAY, begins=NOW - 9 * DAY),
            "expired",
        ),
        ("another_name", lambda ca: ca.issue("b.example"), "b.example"),
        ("weak", lambda ca: ca.issue("localhost", addresses=("127.0.0.1",), key=rsa_key(1024)), "weak key"),
        ("unknown", lambda ca: root("another").issue("localhost", addresses=("127.0.0.1",)), "authority"),
    )
    def test_each_wrong_certificate_has_its_own_refusal(self, _: str, make: Any, word: str) -> None:
        self.keep("wrong", make(self.ca))
        port = self.s_server("-cipher", "ALL:@SECLEVEL=0", name="wrong")
        self.assertIn(word, self.refused(self.outward(), f"tls://127.0.0.1:{port}"))

    def test_a_revoked_certificate_is_refused_and_others_are_not(self) -> None:
        revoked = self.keep("revoked", self.ca.issue("localhost", addresses=("127.0.0.1",)))
        self.file("crl.pem", self.ca.revoke(revoked))
        rundir = self.outward(f'crl = ["{self.path("crl.pem")}"]\n')
        self.assertIn("revoked", self.refused(rundir, f"tls://127.0.0.1:{self.s_server(name='revoked')}"))
        self.assertEqual(self.talk(rundir, f"tls://127.0.0.1:{self.s_server()}", b"hello\n"), b"olleh\n")


class OpenSslClient(InteropTestCase):
    """``openssl s_client`` calls plumberd."""

    @each(("1.3", "-tls1_3"), ("1.2", "-tls1_2"))
    def test_a_published_service(self, _: str, version: str) -> None:
        port = self.inward("", "allow in echo any")
        got, said = self.s_client(port, version, "-CAfile", self.path("ca.pem"), "-verify_return_error")
        self.assertEqual(got, b"hello\n", said)

    @each(("512",), ("1024",), ("2048",), ("4096",))
    def test_a_client_that_reads_short_records_alone(self, length: str) -> None:
        port = self.inward("", "allow in echo any")
        sent = b"x" * 9000 + b"\n"
        got, said = self.s_client(port, "-tls1_3", "-maxfraglen", length, data=sent, wanted=sent)
        self.assertEqual(got, sent, said)

    @each(("1.3", "-tls1_3"), ("1.2", "-tls1_2"))
    def test_a_client_certificate_is_asked_for_and_counts(self, _: str, version: str) -> None:
        asks = f'trust = ["{self.path("ca.pem")}"]\nclient_certificates = "optional"\n'
        port = self.inward(asks, "allow in echo tls:b.example for spiffe://example.org/b")
        own = ("-cert", self.path("client.pem"), "-key", self.path("client.key"))
        self.assertEqual(self.s_client(port, version, *own)[0], b"hello\n")
        self.assertEqual(self.s_client(port, version)[0], b"")

    @each(("1.3", "-tls1_3"), ("1.2", "-tls1_2"))
    def test_a_pre_shared_key_beside_certificates(self, _: str, version: str) -> None:
        port = self.inward(f'psk_file = "{self.path("psk")}"\n', "allow in echo any for psk:laptop")
        key = ("-psk", KEY, "-psk_identity", "laptop")
        self.assertEqual(self.s_client(port, version, *key)[0], b"hello\n")
        self.assertEqual(self.s_client(port, version)[0], b"")

    @each(("1.0", "-tls1"), ("1.1", "-tls1_1"))
    def test_older_versions_are_refused(self, _: str, version: str) -> None:
        port = self.inward("", "allow in echo any")
        self.assertEqual(self.s_client(port, version, "-cipher", "ALL:@SECLEVEL=0")[0], b"")

    def test_the_handshake_within_by_hand(self) -> None:
        port = self.inward("", "allow in echo any", listen="tlsd = ['tcp:0:interface=127.0.0.1']")
        wanted = b"ok\nhello\n"
        got, said = self.s_client(port, "-alpn", "plumb/1", data=b"echo\n\nhello\n", wanted=wanted)
        self.assertEqual(got, wanted, said)


class Stunnel(InteropTestCase):
    def stunnel(self, text: str, port: int) -> None:
        config = self.file(f"stunnel{port}.conf", f"foreground = yes\npid =\n[one]\n{text}".encode())
        self.listens(self.program("stunnel4", config), port)

    @each(
        ("certificate", "cert = {dir}/server.both\n", ""),
        ("psk", "ciphers = PSK\nPSKsecrets = {dir}/psk\n", "psk"),
    )
    def test_as_a_server(self, _: str, proof: str, kind: str) -> None:
        port, behind = free_port(), self.echo()
        self.stunnel(f"accept = 127.0.0.1:{port}\nconnect = 127.0.0.1:{behind}\n{proof.format(dir=self.dir)}", port)
        more = f'psk_file = "{self.path("psk")}"\n' + self.peer(port, 'psk = "laptop"') if kind else ""
        self.assertEqual(self.talk(self.outward(more), f"tls://127.0.0.1:{port}", b"hello"), b"hello")

    @each(
        ("certificate", "cert = {dir}/client.both\nCAfile = {dir}/ca.pem\nverifyChain = yes\n", "cert:b.example"),
        ("psk", "ciphers = PSK\nPSKsecrets = {dir}/psk\nPSKidentity = laptop\n", "psk:laptop"),
    )
    def test_as_a_client(self, _: str, proof: str, who: str) -> None:
        asks = f'trust = ["{self.path("ca.pem")}"]\nclient_certificates = "optional"\npsk_file = "{self.path("psk")}"\n'
        far, port = self.inward(asks, f"allow in echo any for {who}"), free_port()
        text = f"client = yes\naccept = 127.0.0.1:{port}\nconnect = 127.0.0.1:{far}\n{proof.format(dir=self.dir)}"
        self.stunnel(text, port)
        with socket.create_connection(("127.0.0.1", port), DEADLINE_SECONDS) as sock:
            sock.sendall(b"hello")
            self.assertEqual(sock.recv(100), b"hello")


class Proxies(InteropTestCase):
    """HAProxy and nginx, with client certificates."""

    def haproxy(self, bind: str, server: str, port: int) -> None:
        text = (
            "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n"
            f"frontend f\n  bind 127.0.0.1:{port} {bind}\n  default_backend b\nbackend b\n  server s {server}\n"
        )
        self.listens(self.program("haproxy", "-db", "-f", self.file(f"haproxy{port}.cfg", text.encode())), port)

    def nginx(self, server: str, port: int) -> None:
        text = (
            f"load_module {NGINX_MODULE};\ndaemon off;\nmaster_process off;\npid {self.dir}/nginx{port}.pid;\n"
            f"error_log stderr;\nuser root;\nevents {{}}\nstream {{ server {{\nlisten 127.0.0.1:{port} {server} }} }}\n"
        )
        config = self.file(f"nginx{port}.conf", text.encode())
        self.listens(self.program("nginx", "-p", str(self.dir), "-e", "stderr", "-c", config), port)

    def test_haproxy_as_a_server_that_wants_a_certificate(self) -> None:
        port = free_port()
        self.haproxy(
            f"ssl crt {self.path('server.both')} ca-file {self.path('ca.pem')} verify required",
            f"127.0.0.1:{self.echo()}",
            port,
        )
        rundir = self.outward(self.client_certificate(port))
        self.assertEqual(self.talk(rundir, f"tls://127.0.0.1:{port}", b"hello"), b"hello")

    def test_haproxy_as_a_client_that_shows_one(self) -> None:
        asks = f'trust = ["{self.path("ca.pem")}"]\nclient_certificates = "required"\n'
        far, port = self.inward(asks, "allow in echo tls:b.example"), free_port()
        own = f"ssl crt {self.path('client.both')} ca-file {self.path('ca.pem')} verify required"
        self.haproxy("", f"127.0.0.1:{far} {own}", port)
        with socket.create_connection(("127.0.0.1", port), DEADLINE_SECONDS) as sock:
            sock.sendall(b"hello")
            self.assertEqual(sock.recv(100), b"hello")

    def test_nginx_as_a_server_that_wants_a_certificate(self) -> None:
        port = free_port()
        own = f"ssl_certificate {self.path('server.pem')}; ssl_certificate_key {self.path('server.key')};"
        wants = f"ssl_client_certificate {self.path('ca.pem')}; ssl_verify_client on;"
        self.nginx(f"ssl; {own} {wants} proxy_pass 127.0.0.1:{self.echo()};", port)
        rundir = self.outward(self.client_certificate(port))
        self.assertEqual(self.talk(rundir, f"tls://127.0.0.1:{port}", b"hello"), b"hello")

    def test_nginx_as_a_client_that_shows_one(self) -> None:
        asks = f'trust = ["{self.path("ca.pem")}"]\nclient_certificates = "required"\n'
        far, port = self.inward(asks, "allow in echo tls:b.example"), free_port()
        pem, key = self.path("client.pem"), self.path("client.key")
        own = f"proxy_ssl on; proxy_ssl_certificate {pem}; proxy_ssl_certificate_key {key};"
        check = f"proxy_ssl_trusted_certificate {self.path('ca.pem')}; proxy_ssl_verify on; proxy_ssl_name localhost;"
        self.nginx(f"; proxy_pass 127.0.0.1:{far}; {own} {check}", port)
        with socket.create_connection(("127.0.0.1", port), DEADLINE_SECONDS) as sock:
            sock.sendall(b"hello")
            self.assertEqual(sock.recv(100), b"hello")

    def test_haproxy_as_a_service_that_reads_who_has_called(self) -> None:
        asks = f'trust = ["{self.path("ca.pem")}"]\nclient_certificates = "optional"\n'
        listen = "publish_tls = { web = ['tcp:0:interface=127.0.0.1'] }"
        more = f'{asks}alpn = ["http/1.1"]\n[services.web]\nproxy = "v2"\n'
        rundir = self.folder() + "/far"
        own = f'certificate = "{self.path("server.pem")}"\nprivate_key = "{self.path("server.key")}"\n'
        config = f"rules = ['allow in web any']\n[listen]\n{listen}\n[tls]\n{own}{more}"
        broker = self.broker(rundir, "--config", self.file("far.toml", config.encode()))
        port = int(broker.wait_for(r"publishes web inside TLS on 127\.0\.0\.1:(\d+)").group(1))
        said = "%[src] %[src_port] %[dst] %[dst_port] %[fc_pp_authority]"
        text = (
            "defaults\n  mode http\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n"
            f"frontend f\n  bind unix@{rundir}/web accept-proxy\n"
            f'  http-request return content-type text/plain lf-string "{said}"\n'
        )
        self.program("haproxy", "-db", "-f", self.file("service.cfg", text.encode()))
        self.wait_for_socket(f"{rundir}/web")
        shows = ("--cert", self.path("client.pem"), "--key", self.path("client.key"))
        tells = ("--write-out", " %{local_port}", f"https://127.0.0.1:{port}/")
        done = subprocess.run(
            ("curl", "--silent", "--show-error", "--cacert", self.path("ca.pem"), *shows, *tells),
            capture_output=True,
            timeout=DEADLINE_SECONDS,
            check=False,
        )
        *told, own_port = done.stdout.decode().split()
        self.assertEqual(told, ["127.0.0.1", own_port, "127.0.0.1", str(port), "web"], done.stderr)


class Services(InteropTestCase):
    def test_redis_over_tls_through_a_lookup_that_names_no_service(self) -> None:
        port = free_port()
        tls = ("--tls-port", str(port), "--port", "0", "--bind", "127.0.0.1", "--save", "", "--dir", str(self.dir))
        own = ("--tls-cert-file", self.path("server.pem"), "--tls-key-file", self.path("server.key"))
        wants = ("--tls-ca-cert-file", self.path("ca.pem"), "--tls-auth-clients", "yes")
        self.listens(self.program("redis-server", *tls, *own, *wants), port)
        rundir = self.outward(self.client_certificate(port))
        done = self.plumb(
            "--rundir", rundir, "connect", f"tls://127.0.0.1:{port}", stdin=b"SET a 1\r\nGET a\r\nQUIT\r\n"
        )
        self.assertEqual(done.stdout, b"+OK\r\n$1\r\n1\r\n+OK\r\n", done.stderr)

    def test_curl_to_a_published_web_server(self) -> None:
        listen = "publish_tls = { web = ['tcp:0:interface=127.0.0.1'] }"
        rundir = self.folder() + "/far"
        pem, key = self.path("server.pem"), self.path("server.key")
        own = f'certificate = "{pem}"\nprivate_key = "{key}"\nalpn = ["http/1.1"]\n'
        text = f"rules = ['allow in web any']\n[listen]\n{listen}\n[tls]\n{own}"
        broker = self.broker(rundir, "--config", self.file("web.toml", text.encode()))
        port = broker.wait_for(r"publishes web inside TLS on 127\.0\.0\.1:(\d+)").group(1)
        listener = socket.socket(socket.AF_UNIX)
        self.addCleanup(listener.close)
        listener.bind(f"{rundir}/web")
        listener.listen()
        listener.settimeout(DEADLINE_SECONDS)
        body = os.urandom(200_000)
        argv = [
            "curl",
            "-sS",
            "-v",
            "--cacert",
            self.path("ca.pem"),
            f"https://127.0.0.1:{port}/",
            "-o",
            self.path("body"),
        ]
        with subprocess.Popen(argv, stderr=subprocess.PIPE) as curl:
            sock, _ = listener.accept()
            with sock:
                sock.settimeout(DEADLINE_SECONDS)
                head = b""
                while b"\r\n\r\n" not in head:
                    head += sock.recv(65536)
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
                sock.shutdown(socket.SHUT_WR)
                # curl has all of it by its length: it may close with our close_notify unread, which is a reset.
                with contextlib.suppress(ConnectionResetError):
                    read_all(sock)
            _, said = curl.communicate(timeout=DEADLINE_SECONDS)
        self.assertEqual(curl.returncode, 0, said)
        self.assertIn(b"http/1.1", said)
        self.assertEqual(Path(self.path("body")).read_bytes(), body)
