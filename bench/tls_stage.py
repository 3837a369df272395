"""What the benchmark of TLS measures: two hops of each contender, plain to TLS and TLS to plain."""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from stage import ADDRESSES, SERVICE, SPREAD, Contender, Stage, found, free_port, with_children

SUITE = "TLS_AES_128_GCM_SHA256"
GROUP = "X25519"

PLUMBERDS = "two plumberds"
HAPROXIES = "two HAProxies"
STUNNELS = "two stunnels"
NGINXES = "two nginx"
HITCH = "HAProxy, hitch"

HAPROXY = """\
global
    nbthread 1
    maxconn 8000
    ssl-default-bind-ciphersuites {suite}
    ssl-default-bind-curves {group}
    ssl-default-server-ciphersuites {suite}
defaults
    mode tcp
    timeout connect 5s
    timeout client 600s
    timeout server 600s
frontend hop
{binds}
    default_backend next
backend next
    balance roundrobin
{servers}
"""

STUNNEL = """\
foreground = yes
pid =
debug = err
sslVersion = TLSv1.3
ciphersuites = {suite}
curves = {group}
sessionResume = no
options = NO_TICKET
socket = l:TCP_NODELAY=1
socket = r:TCP_NODELAY=1
{services}
"""

NGINX = """\
load_module {module};
daemon off;
worker_processes 1;
worker_rlimit_nofile 20000;
pid {pid};
error_log {log} error;
events {{ worker_connections 8000; }}
stream {{
    upstream next {{ {servers} }}
    server {{
{listens}
        proxy_pass next;
        proxy_timeout 600s;
{tls}
    }}
}}
"""
NGINX_MODULE = "/usr/lib/nginx/modules/ngx_stream_module.so"
NGINX_SERVER = """\
        ssl_certificate {chain};
        ssl_certificate_key {key};
        ssl_protocols TLSv1.3;
        ssl_conf_command Ciphersuites {suite};
        ssl_ecdh_curve {group};
        ssl_session_tickets off;
"""
NGINX_CLIENT = """\
        proxy_ssl on;
        proxy_ssl_protocols TLSv1.3;
        proxy_ssl_conf_command Ciphersuites {suite};
        proxy_ssl_session_reuse off;
        proxy_ssl_verify on;
        proxy_ssl_name localhost;
        proxy_ssl_trusted_certificate {trust};
"""

HITCH_CONFIG = """\
{frontends}
backend = "[127.0.0.1]:{to_port}"
pem-file = "{both}"
tls-protos = TLSv1.3
ciphersuites = "{suite}"
ecdh-curve = "{group}"
workers = 1
daemon = off
user = "{user}"
"""


@dataclass(frozen=True)
class TlsContender(Contender):
    """One way through TLS.

    :ivar pids: the processes of both hops, whose memory counts.
    """

    pids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Files:
    """Where the certificates are.

    :ivar both: the chain and its key in one file.
    """

    trust: Path
    chain: Path
    key: Path
    both: Path


class TlsStage(Stage):
    """Owns the processes and their directory, like :class:`Stage`. Each first hop checks the second's certificate."""

    def start(self) -> tuple[Contender, ...]:
        """Start everything and return the contenders, plumberd first.

        :raises BenchError: where something does not come up.
        """
        os.chmod(self._directory, 0o711)
        self._files = make_certificates(self._make_directory("certificates"))
        far = self._make_directory("far")
        port = self._start_server(far / SERVICE)
        return (
            self._two_plumberds(far),
            self._pair(HAPROXIES, self._haproxy("near", self._haproxy("far", port, server=True), server=False)),
            self._pair(STUNNELS, self._stunnel("near", self._stunnel("far", port, server=True), server=False)),
            self._pair(NGINXES, self._nginx("near", self._nginx("far", port, server=True), server=False)),
            self._pair(HITCH, self._haproxy("to-hitch", self._hitch(port), server=False)),
        )

    def _pair(self, name: str, at: int) -> TlsContender:
        """Return the two hops that were started last."""
        pids = tuple(pid for _, process in self._processes[-2:] for pid in with_children(process.pid))
        return TlsContender(name, ("direct", SPREAD, str(at)), pids=pids)

    def _two_plumberds(self, far: Path) -> TlsContender:
        files, port = self._files, free_port()
        config = self._write("far.toml", f'[tls]\ncertificate = "{files.chain}"\nprivate_key = "{files.key}"\n')
        listening = [word for a in ADDRESSES for word in ("--tlsd", f"tcp:{port}:interface={a}")]
        allowed = ("--allow", "in", SERVICE, "tls:any")
        self._start_plumberd(far, "--config", config, *listening, *allowed)
        trust = self._write("near.toml", f'[tls]\ntrust = "{files.trust}"\n')
        near = self._start_plumberd(self._make_directory("near"), "--config", trust)
        self._wait_for(socket.AF_INET, *((address, port) for address in ADDRESSES))
        pids = tuple(process.pid for _, process in self._processes[-2:])
        return TlsContender(PLUMBERDS, ("broker", near, f"tls://{SPREAD}:{port}/{SERVICE}"), pids=pids)

    def _haproxy(self, name: str, to_port: int, *, server: bool) -> int:
        port, files = free_port(), self._files
        ours = f" ssl crt {files.both} no-tls-tickets" if server else ""
        theirs = "" if server else f" ssl verify required ca-file {files.trust} no-ssl-reuse"
        text = HAPROXY.format(
            suite=SUITE,
            group=GROUP,
            binds="\n".join(f"    bind {a}:{port}{ours}" for a in ADDRESSES),
            servers="\n".join(f"    server s{n} {a}:{to_port}{theirs}" for n, a in enumerate(ADDRESSES)),
        )
        config = self._write(f"{name}.cfg", text)
        return self._run(f"haproxy-{name}", [found("haproxy"), "-db", "-q", "-f", config], port)

    def _stunnel(self, name: str, to_port: int, *, server: bool) -> int:
        port, files = free_port(), self._files
        how = f"cert = {files.both}" if server else f"client = yes\nCAfile = {files.trust}\nverifyChain = yes"
        services = [f"[s{n}]\naccept = {a}:{port}\nconnect = {a}:{to_port}\n{how}" for n, a in enumerate(ADDRESSES)]
        text = STUNNEL.format(suite=SUITE, group=GROUP, services="\n".join(services))
        return self._run(f"stunnel-{name}", [found("stunnel4", "stunnel"), self._write(f"{name}.stunnel", text)], port)

    def _nginx(self, name: str, to_port: int, *, server: bool) -> int:
        port, files = free_port(), self._files
        tls = (NGINX_SERVER if server else NGINX_CLIENT).format(
            chain=files.chain, key=files.key, trust=files.trust, suite=SUITE, group=GROUP
        )
        text = NGINX.format(
            module=NGINX_MODULE,
            pid=self._directory / f"nginx-{name}.pid",
            log=self._directory / f"nginx-{name}.errors",
            servers=" ".join(f"server {a}:{to_port};" for a in ADDRESSES),
            listens="\n".join(f"        listen {a}:{port}{' ssl' if server else ''};" for a in ADDRESSES),
            tls=tls,
        )
        config = self._write(f"{name}.nginx", text)
        return self._run(f"nginx-{name}", [found("nginx"), "-e", "stderr", "-c", config], port)

    def _hitch(self, to_port: int) -> int:
        port = free_port()
        text = HITCH_CONFIG.format(
            frontends="\n".join(f'frontend = "[{a}]:{port}"' for a in ADDRESSES),
            to_port=to_port,
            both=self._files.both,
            suite=SUITE,
            group=GROUP,
            user="_hitch" if os.path.exists("/etc/hitch") else "nobody",
        )
        return self._run("hitch", [found("hitch"), f"--config={self._write('hitch.conf', text)}"], port)

    def _run(self, name: str, command: list[str], port: int) -> int:
        self._spawn(name, command)
        self._wait_for(socket.AF_INET, *((address, port) for address in ADDRESSES))
        return port

    def _write(self, name: str, text: str) -> str:
        path = self._directory / name
        path.write_text(text)
        path.chmod(0o600)
        return str(path)


def make_certificates(directory: Path) -> Files:
    """Write an authority, and a certificate for all of the addresses: ECDSA with P-256."""
    directory.chmod(0o711)
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench")])
    now = datetime.datetime.now(datetime.UTC)

    def build(subject: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=2))
        )

    authority = (
        build(name, authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    hosts = [x509.DNSName("localhost"), *(x509.IPAddress(ipaddress.ip_address(a)) for a in ADDRESSES)]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    leaf = (
        build(subject, key.public_key())
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    chain = leaf.public_bytes(serialization.Encoding.PEM)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    files = Files(*(directory / one for one in ("trust.pem", "chain.pem", "key.pem", "both.pem")))
    trusted = authority.public_bytes(serialization.Encoding.PEM)
    for path, data in ((files.trust, trusted), (files.chain, chain), (files.key, pem), (files.both, chain + pem)):
        path.write_bytes(data)
        path.chmod(0o600)
    return files
