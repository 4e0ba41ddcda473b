# SPDX-License-Identifier: Apache-2.0
"""Images by URL: what is decoded from data URLs, and where the server lets itself be sent."""

from __future__ import annotations

import base64
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme

from ascend_dsv4.errors import ConfigError, RequestError
from ascend_dsv4.vision.addresses import refusal
from ascend_dsv4.vision.fetch import ImageSource, system_resolver

BODY = bytes(range(256)) * 40
LOOPBACK = ("127.0.0.0/8",)
PUBLIC = "93.184.215.14"


class Site(BaseHTTPRequestHandler):
    """Answers by path; keeps what it was asked."""

    protocol_version = "HTTP/1.1"
    asked: list[tuple[str, dict[str, str]]] = []

    def do_GET(self) -> None:
        Site.asked.append((self.path, dict(self.headers)))
        name, _, argument = self.path.partition("?")[0].strip("/").partition("/")
        getattr(self, f"on_{name}")(argument)

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def on_image(self, _: str) -> None:
        self.answer(200, BODY, Set_Cookie="a=b")

    def on_status(self, status: str) -> None:
        self.answer(int(status), b"no")

    def on_to(self, target: str) -> None:
        self.answer(302, Location=target)

    def on_loop(self, left: str) -> None:
        count = int(left)
        self.answer(307, Location=f"/loop/{count - 1}" if count > 1 else "/image")

    def on_large(self, _: str) -> None:
        self.answer(200, Content_Length="999999999")

    def on_stream(self, _: str) -> None:
        """Never says how much is coming."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for _ in range(1000):
                self.wfile.write(b"1000\r\n" + b"x" * 0x1000 + b"\r\n")
        except OSError:
            self.close_connection = True

    def on_chunks(self, _: str) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n")

    def on_short(self, _: str) -> None:
        self.answer(200, b"abc", Content_Length="10", Connection="close")
        self.close_connection = True

    def on_gzip(self, _: str) -> None:
        self.answer(200, b"packed", Content_Encoding="gzip")

    def on_drip(self, _: str) -> None:
        """A byte at a time, each in good time."""
        self.send_response(200)
        self.send_header("Content-Length", "10000")
        self.end_headers()
        self.drip(b"x")

    def on_headers(self, _: str) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        self.drip(b"y")

    def drip(self, byte: bytes) -> None:
        self.close_connection = True
        try:
            for _ in range(200):
                self.wfile.write(byte)
                time.sleep(0.02)
        except OSError:
            pass

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """Clients hang up on purpose here."""


@pytest.fixture
def serve() -> Iterator[Callable[..., int]]:
    """Starts the site on an address of loopback and returns its port."""
    started = []

    def start(address: str = "127.0.0.1", context: ssl.SSLContext | None = None) -> int:
        server = Server((address, 0), Site)
        server.daemon_threads = True
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        started.append(server)
        return int(server.server_port)

    Site.asked = []
    yield start
    for server in started:
        server.shutdown()
        server.server_close()


@pytest.fixture
def port(serve: Callable[..., int]) -> int:
    return serve()


def resolver(**hosts: str | Sequence[str]) -> Callable[[str, int], Sequence[str]]:
    """Names by keyword, dots as underscores. Anything else is an error, as an unknown name is."""

    def resolve(host: str, port: int) -> Sequence[str]:
        try:
            found = hosts[host.replace(".", "_").replace("-", "_")]
        except KeyError:
            raise socket.gaierror("Name or service not known") from None
        return [found] if isinstance(found, str) else found

    return resolve


def local(port: int, **options: Any) -> ImageSource:
    """A source that may reach the site under the name img.example, and on no other port."""
    given = {
        "allow_remote": True, "allowed_networks": LOOPBACK, "allowed_ports": (port,), "timeout_s": 5.0,
        "resolver": resolver(img_example="127.0.0.1"), **options,
    }  # fmt: skip
    return ImageSource(**given)


class TestDataUrls:
    @pytest.mark.parametrize("kind", ["png", "jpeg", "JPEG", "webp", "gif", "bmp"])
    def test_decoded(self, kind: str) -> None:
        assert ImageSource().load(f"data:image/{kind};base64,{base64.b64encode(BODY).decode()}") == BODY

    def test_scheme_in_any_case(self) -> None:
        assert ImageSource().load("DATA:image/png;BASE64,QUJD") == b"ABC"

    @pytest.mark.parametrize(
        "url",
        [
            "data:", "data:,hello", "data:image/png,QUJD", "data:image/svg+xml;base64,QUJD", "data:text/html;base64,QUJD",
            "data:;base64,QUJD", "data:image/png;charset=utf-8;base64,QUJD", "data:image/png;base64",
            "data: image/png;base64,QUJD",
        ],
    )  # fmt: skip
    def test_other_forms(self, url: str) -> None:
        with pytest.raises(RequestError, match="expected data:<type>;base64,<data> with a type out of image/png, image/jpeg"):
            ImageSource().load(url)

    @pytest.mark.parametrize(
        "data", ["QUJ", "Q", "QUJD=", "QU=D", "QUJD\n", "QU JD", "QUJD%3D", "QUJ_", "QUJ-", "QUJé", "====", "QQ==QQ=="]
    )
    def test_strict_base64(self, data: str) -> None:
        with pytest.raises(RequestError, match="whose data is not base64"):
            ImageSource().load(f"data:image/png;base64,{data}")

    def test_size(self) -> None:
        for count in (10, 11, 12):
            url = f"data:image/png;base64,{base64.b64encode(b'x' * count).decode()}"
            assert ImageSource(max_bytes=count).load(url) == b"x" * count
            with pytest.raises(RequestError, match=rf"bytes, expected at most {count - 1}, because of this server's limit"):
                ImageSource(max_bytes=count - 1).load(url)

    def test_errors_do_not_repeat_the_image(self) -> None:
        with pytest.raises(RequestError) as caught:
            ImageSource().load("data:image/png;base64," + "!" * 100_000)
        assert len(str(caught.value)) < 400


class TestOff:
    @pytest.mark.parametrize("url", ["http://example.com/a.png", "https://example.com/a.png", "file:///etc/passwd", "", "abc"])
    def test_remote_is_off(self, url: str) -> None:
        """No name is looked up."""
        with pytest.raises(RequestError, match="expected a data URL .* because this server does not fetch images"):
            ImageSource(resolver=lambda *_: pytest.fail("looked up")).load(url)


class TestPermitted:
    def test_image(self, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """The name goes into Host, no proxy of the environment is used, no cookie comes back with the next request."""
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        for _ in range(2):
            assert local(port).load(f"http://img.example:{port}/image?size=1&b=%20") == BODY
        path, headers = Site.asked[-1]
        assert path == "/image?size=1&b=%20"
        assert headers["Host"] == f"img.example:{port}"
        assert set(headers) == {"Host", "Accept", "Accept-Encoding", "User-Agent", "Connection"}

    def test_the_systems_resolver(self, port: int) -> None:
        assert "127.0.0.1" in system_resolver("localhost", port)
        source = local(port, resolver=system_resolver, allowed_networks=(*LOOPBACK, "::1/128"))
        assert source.load(f"http://127.0.0.1:{port}/image") == BODY

    def test_second_address(self, serve: Callable[..., int]) -> None:
        """A host with several addresses is reached at the one that answers."""
        port = serve("127.0.0.2")
        assert local(port, resolver=resolver(img_example=["127.0.0.1", "127.0.0.2"])).load(f"http://img.example:{port}/image")

    def test_chunked(self, port: int) -> None:
        assert local(port).load(f"http://img.example:{port}/chunks") == b"hello world"

    def test_redirects(self, port: int) -> None:
        assert local(port).load(f"http://img.example:{port}/loop/3") == BODY
        with pytest.raises(RequestError, match="more than 3 redirects"):
            local(port).load(f"http://img.example:{port}/loop/4")

    def test_listed_hosts(self, port: int) -> None:
        listed = local(port, allowed_hosts=("IMG.example",))
        assert listed.load(f"http://Img.Example:{port}/image") == BODY
        for url in (f"http://127.0.0.1:{port}/image", f"http://a.img.example:{port}/image", f"http://img.example.evil:{port}/"):
            with pytest.raises(RequestError, match="expected a host on this server's list"):
                listed.load(url)

    def test_size_is_inclusive(self, port: int) -> None:
        assert local(port, max_bytes=len(BODY)).load(f"http://img.example:{port}/image") == BODY
        with pytest.raises(RequestError, match=r"got 10,240 bytes, expected at most 10,239"):
            local(port, max_bytes=len(BODY) - 1).load(f"http://img.example:{port}/image")


REFUSED_ADDRESSES = {
    "127.0.0.1": "loopback", "127.8.9.1": "loopback", "0.0.0.0": "unspecified", "0.1.2.3": "private", "10.1.2.3": "private",
    "172.16.0.1": "private", "172.31.255.255": "private", "192.168.1.1": "private", "100.64.0.1": "private",
    "100.100.100.200": "private", "169.254.169.254": "link-local", "192.0.0.192": "special-purpose", "192.0.2.1": "private",
    "198.18.0.1": "private", "224.0.0.1": "multicast", "239.255.255.250": "multicast", "240.0.0.1": "reserved",
    "255.255.255.255": "reserved", "168.63.129.16": "platform service", "192.88.99.1": "relay",
    "::1": "loopback", "::": "unspecified", "fe80::1": "link-local", "fe80::1%1": "link-local", "fc00::1": "private",
    "fd00:ec2::254": "private", "ff02::1": "multicast", "fec0::1": "site-local", "2001:db8::1": "private",
    "::ffff:127.0.0.1": "loopback", "::ffff:169.254.169.254": "link-local", "::ffff:10.0.0.1": "private",
    "::127.0.0.1": "reserved", "64:ff9b::7f00:1": "loopback", "64:ff9b::a9fe:a9fe": "link-local",
    "64:ff9b:1::a00:1": "translated",
    "2002:7f00:1::": "loopback", "2002:a9fe:a9fe::1": "link-local", "2001:0:1::1": "special-purpose",
    "3fff::1": "special-purpose", "5f00::1": "reserved", "4000::1": "reserved",
}  # fmt: skip
PERMITTED_ADDRESSES = (PUBLIC, "8.8.8.8", "172.32.0.1", "2606:4700::1", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1")


class TestAddresses:
    @pytest.mark.parametrize(("text", "kind"), REFUSED_ADDRESSES.items())
    def test_refused(self, text: str, kind: str) -> None:
        why = refusal(ipaddress.ip_address(text.partition("%")[0]), ())
        assert why is not None and kind in why
        source = ImageSource(allow_remote=True, resolver=resolver(img_example=[PUBLIC, text]))
        with pytest.raises(RequestError, match=f"'img.example', which leads to a.*{kind}.*expected a public host"):
            source.load("http://img.example/a.png")

    @pytest.mark.parametrize("text", PERMITTED_ADDRESSES)
    def test_permitted(self, text: str) -> None:
        assert refusal(ipaddress.ip_address(text), ()) is None

    def test_listed_networks(self) -> None:
        networks = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8"))
        for text in ("10.9.8.7", "::ffff:10.9.8.7", "fd00::1"):
            assert refusal(ipaddress.ip_address(text), networks) is None
        for text in ("127.0.0.1", "192.168.0.1", "fe80::1", "::ffff:127.0.0.1"):
            assert refusal(ipaddress.ip_address(text), networks) is not None

    @pytest.mark.parametrize("networks", [("10.0.0.1/8",), ("example.com",), ("10.0.0.0/99",)])
    def test_bad_networks(self, networks: tuple[str, ...]) -> None:
        with pytest.raises(ConfigError, match="expected networks such as 10.0.0.0/8"):
            ImageSource(allowed_networks=networks)

    @pytest.mark.parametrize("options", [{"timeout_s": 0}, {"timeout_s": float("nan")}, {"max_bytes": 0}])
    def test_bad_limits(self, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match="expected positive numbers"):
            ImageSource(**options)


class TestRefused:
    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "[::1]",
                                      "[::ffff:127.0.0.1]", "0"])  # fmt: skip
    def test_loopback_in_every_spelling(self, host: str, port: int) -> None:
        """With the system's resolver, and a server that would answer."""
        with pytest.raises(RequestError, match="leads to an? (loopback|unspecified)|has no address"):
            local(port, allowed_networks=(), resolver=system_resolver).load(f"http://{host}:{port}/image")
        assert not Site.asked

    def test_metadata_services(self) -> None:
        with pytest.raises(RequestError, match="'169.254.169.254', which leads to a link-local address"):
            ImageSource(allow_remote=True).load("http://169.254.169.254/latest/meta-data/")

    def test_names_of_private_hosts(self, port: int) -> None:
        with pytest.raises(RequestError, match="'img.example', which leads to a loopback address"):
            local(port, allowed_networks=("10.0.0.0/8",)).load(f"http://img.example:{port}/image")
        assert not Site.asked

    def test_redirect_to_loopback(self, serve: Callable[..., int]) -> None:
        """The first host is allowed, what it redirects to is checked like a first one."""
        port = serve("127.0.0.2")
        source = local(port, allowed_networks=("127.0.0.2/32",), resolver=resolver(img_example="127.0.0.2", evil="127.0.0.1"))
        with pytest.raises(RequestError, match="'evil', which leads to a loopback address"):
            source.load(f"http://img.example:{port}/to/http://evil:{port}/image")
        assert [path for path, _ in Site.asked] == [f"/to/http://evil:{port}/image"]

    @pytest.mark.parametrize(
        ("target", "message"),
        [
            ("file:///etc/passwd", "expected an http, https or data URL"),
            ("data:image/png;base64,QUJD", "expected an http, https or data URL"),
            ("ftp://img.example/a", "expected an http, https or data URL"),
            ("http://user:pw@img.example/", "without user name"),
            ("http://img.example:22/", "expected port"),
            ("//img.example:22/", "expected port"),
            ("http://unknown.example:{port}/", "which has no address"),
        ],
    )
    def test_redirects_are_checked_anew(self, target: str, message: str, port: int) -> None:
        with pytest.raises(RequestError, match=message):
            local(port).load(f"http://img.example:{port}/to/" + target.format(port=port))
        assert len(Site.asked) == 1

    def test_an_address_is_looked_up_once(self, port: int) -> None:
        """A name that changes its address between check and connection gains nothing: there is one answer, and it is used."""
        answers = iter([["127.0.0.1"], ["127.0.0.3"], ["127.0.0.3"]])
        calls = []

        def rebinding(host: str, port: int) -> Sequence[str]:
            calls.append(host)
            return next(answers)

        assert local(port, allowed_networks=("127.0.0.1/32",), resolver=rebinding).load(f"http://img.example:{port}/image")
        assert calls == ["img.example"]

    @pytest.mark.parametrize(
        "url",
        [
            "http://user@img.example/", "http://user:pw@img.example/", "http://@img.example/", "http://img.example:pw@evil/",
            "gopher://img.example/", "file:///etc/passwd", "javascript:alert(1)", "//img.example/", "/etc/passwd", "http://",
            "http:///a", "http://img.example:99999/", "http://img.example:x/", "http://[::1/", "http://img.example:22/",
            "http://img.example/a b", "http://img.example/\r\nHost: evil", "http://img.example/\x00", "http://bücher.example/",
            "http:\\\\img.example/", "http://img.example\\@evil/", "http://img.example/" + "a" * 9000, " http://img.example/",
        ],
    )  # fmt: skip
    def test_urls(self, url: str) -> None:
        with pytest.raises(RequestError) as caught:
            ImageSource(allow_remote=True, resolver=lambda *_: pytest.fail("looked up")).load(url)
        text = str(caught.value)
        assert text.startswith("image: got ") and "expected" in text and "because" in text and len(text) < 400
        assert "pw" not in text or "x/" in text

    def test_queries_are_not_repeated(self) -> None:
        with pytest.raises(RequestError) as caught:
            ImageSource(allow_remote=True).load("http://127.0.0.1:99/a?token=secret")
        assert "secret" not in str(caught.value)

    @pytest.mark.parametrize("answer", [[], ["not an address"], ["evil.example"]])
    def test_odd_answers_of_a_resolver(self, answer: list[str]) -> None:
        with pytest.raises(RequestError, match="which has no address|expected an IP address"):
            ImageSource(allow_remote=True, resolver=lambda *_: answer).load("http://img.example/")

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("status/404", "got status 404 from 'img.example', expected 200"),
            ("status/304", "got status 304"),
            ("status/206", "got status 206"),
            ("status/302", "got status 302"),
            ("large", "got 999,999,999 bytes, expected at most 100,000"),
            ("stream", "got more than 100,000 bytes, expected at most 100,000"),
            ("short", "got 3 bytes, expected 10"),
            ("gzip", "body in encoding 'gzip'"),
        ],
    )
    def test_answers(self, path: str, message: str, port: int) -> None:
        with pytest.raises(RequestError, match=message):
            local(port, max_bytes=100_000).load(f"http://img.example:{port}/{path}")

    def test_nobody_there(self, port: int) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            closed = unused.getsockname()[1]
        with pytest.raises(RequestError, match="got no image from 'img.example'.*refused"):
            local(closed).load(f"http://img.example:{closed}/image")


class TestDeadline:
    @pytest.mark.parametrize("path", ["drip", "headers"])
    def test_drips(self, path: str, port: int) -> None:
        """Every byte comes in time, the image does not."""
        self.check(local(port, timeout_s=0.3), f"http://img.example:{port}/{path}")

    def test_silence(self) -> None:
        """A server that accepts and says nothing, over TLS and without."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            for scheme in ("http", "https"):
                self.check(local(port, timeout_s=0.3), f"{scheme}://img.example:{port}/image")

    def test_slow_names(self) -> None:
        def slow(host: str, port: int) -> Sequence[str]:
            time.sleep(2)
            return [PUBLIC]

        self.check(ImageSource(allow_remote=True, timeout_s=0.3, resolver=slow), "http://img.example/")

    def check(self, source: ImageSource, url: str) -> None:
        start = time.monotonic()
        with pytest.raises(RequestError, match="got no whole image in 0.3 s"):
            source.load(url)
        assert 0.25 < time.monotonic() - start < 1.5

    def test_no_timer_stays(self, port: int) -> None:
        """An image that came in time leaves nothing waiting for its deadline."""
        local(port, timeout_s=30).load(f"http://img.example:{port}/image")
        end = time.monotonic() + 5
        while [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]:
            assert time.monotonic() < end
            time.sleep(0.005)


class TestTls:
    @pytest.fixture
    def authority(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> trustme.CA:
        """The one authority this process trusts."""
        authority = trustme.CA()
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        return authority

    def serve_as(self, name: str, authority: trustme.CA, serve: Callable[..., int]) -> int:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name).configure_cert(context)
        return serve(context=context)

    def test_image(self, authority: trustme.CA, serve: Callable[..., int]) -> None:
        port = self.serve_as("img.example", authority, serve)
        assert local(port).load(f"https://img.example:{port}/image") == BODY

    def test_another_name(self, authority: trustme.CA, serve: Callable[..., int]) -> None:
        port = self.serve_as("other.example", authority, serve)
        with pytest.raises(RequestError, match="got no image from 'img.example'.*certificate"):
            local(port).load(f"https://img.example:{port}/image")
        assert not Site.asked

    def test_another_authority(self, authority: trustme.CA, serve: Callable[..., int]) -> None:
        port = self.serve_as("img.example", trustme.CA(), serve)
        with pytest.raises(RequestError, match="got no image from 'img.example'.*certificate"):
            local(port).load(f"https://img.example:{port}/image")

    def test_downgrade(self, authority: trustme.CA, serve: Callable[..., int]) -> None:
        port = self.serve_as("img.example", authority, serve)
        with pytest.raises(RequestError, match="got a redirect to 'http://img.example.*expected https"):
            local(port).load(f"https://img.example:{port}/to/http://img.example:{port}/image")
        assert local(port).load(f"https://img.example:{port}/to/https://img.example:{port}/image") == BODY

    def test_drips(self, authority: trustme.CA, serve: Callable[..., int]) -> None:
        port = self.serve_as("img.example", authority, serve)
        TestDeadline().check(local(port, timeout_s=0.3), f"https://img.example:{port}/drip")
