# SPDX-License-Identifier: Apache-2.0
"""The bytes behind an image URL of a request: data URLs always, http and https only where the operator allows them.

A remote URL is text by a stranger that makes the server connect somewhere. So: names are resolved here, every address is
checked, and the connection goes to the checked address, with no second lookup in between; redirects start over; size and
time are bounded; nothing of the server's own (proxies, cookies, credentials) is used.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final, NoReturn
from urllib.parse import SplitResult, urljoin, urlsplit

from ascend_dsv4.errors import ConfigError, RequestError
from ascend_dsv4.vision.addresses import Address, Network, refusal

MAX_REDIRECTS: Final = 3
MAX_URL_LENGTH: Final = 8192
"""Of http and https URLs."""
MEDIA_TYPES: Final = ("image/png", "image/jpeg", "image/jpg", "image/webp", "image/gif", "image/bmp")

_DATA_URL = re.compile(r"data:([a-z0-9.+/-]*);base64,", re.IGNORECASE)
_PRINTABLE = re.compile(r"[!-~]+")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_CHUNK_BYTES: Final = 1 << 16

Resolver = Callable[[str, int], Sequence[str]]
"""(host, port) → addresses as text. Raises OSError."""


def system_resolver(host: str, port: int) -> Sequence[str]:
    """What the operating system resolves a name to."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


@dataclass(frozen=True, slots=True)
class ImageSource:
    """Where images may come from, and how large and slow they may be. Raises ConfigError for values that make no sense."""

    allow_remote: bool = False
    """Fetch http and https URLs."""
    allowed_hosts: tuple[str, ...] = ()
    """Only these host names; any if empty."""
    max_bytes: int = 20_000_000
    timeout_s: float = 10.0
    """For one image, redirects included, unless `load` is given a deadline."""
    allowed_networks: tuple[str, ...] = ()
    """Networks to connect to although they are not public: "10.0.0.0/8". Loopback too is reached only if listed."""
    allowed_ports: tuple[int, ...] = (80, 443)
    resolver: Resolver = system_resolver
    networks: tuple[Network, ...] = field(init=False, repr=False)
    """`allowed_networks`, parsed."""

    def __post_init__(self) -> None:
        try:
            networks = tuple(ipaddress.ip_network(network) for network in self.allowed_networks)
        except ValueError as error:
            raise ConfigError(
                f"allowed_networks={self.allowed_networks!r}: {error}; expected networks such as 10.0.0.0/8, because images "
                "are fetched from addresses inside them. Correct the list."
            ) from None
        object.__setattr__(self, "networks", networks)
        if self.max_bytes < 1 or not 0 < self.timeout_s <= threading.TIMEOUT_MAX:
            raise ConfigError(
                f"max_bytes={self.max_bytes}, timeout_s={self.timeout_s}: expected positive numbers, because no image arrives "
                "in no bytes or no time. Correct them."
            )

    def load(self, url: str, deadline: float | None = None) -> bytes:
        """The bytes behind a URL, undecoded.

        deadline   when a remote one must have arrived, on `time.monotonic`, if that is not in `timeout_s` from now
        raises  RequestError for a URL that is malformed, not allowed, unreachable, too large or too slow
        """
        if url[:5].lower() == "data:":
            return self._data(url)
        if not self.allow_remote:
            _refuse(
                f"got {_shown(url)}", "a data URL (data:image/png;base64,...)", "this server does not fetch images",
                "Send the image itself, or start the server with remote images allowed",
            )  # fmt: skip
        return _Fetch(self, time.monotonic() + self.timeout_s if deadline is None else deadline).follow(url)

    def _data(self, url: str) -> bytes:
        match = _DATA_URL.match(url)
        if match is None or match[1].lower() not in MEDIA_TYPES:
            _refuse(
                f"got {_shown(url)}", f"data:<type>;base64,<data> with a type out of {', '.join(MEDIA_TYPES)}",
                "other data URLs hold no image this server reads", "Send the image in one of these formats",
            )  # fmt: skip
        num_bytes = (len(url) - match.end()) // 4 * 3
        if num_bytes - 2 > self.max_bytes:  # up to two of them are padding
            self.refuse_size(f"about {num_bytes:,} bytes")
        try:
            if (len(url) - match.end()) % 4:  # some versions of the decoder let surplus padding pass
                raise binascii.Error("the length is not a multiple of 4")
            data = base64.b64decode(url[match.end() :].encode("ascii"), validate=True)
        except (binascii.Error, UnicodeEncodeError) as error:
            _refuse(
                f"got {_shown(url)}, whose data is not base64 ({str(error)[:80]})", "letters, digits, + and /, padded with =",
                "anything else would be guesswork", "Encode the file again, without line breaks or percent signs",
            )  # fmt: skip
        if len(data) > self.max_bytes:
            self.refuse_size(f"{len(data):,} bytes")
        return data

    def refuse_size(self, got: str) -> NoReturn:
        """Raise what an image above `max_bytes` is answered with."""
        _refuse(f"got {got}", f"at most {self.max_bytes:,}", "of this server's limit", "Send a smaller file")


class _Fetch:
    """One image on its way: the URL now, and the time that is left."""

    def __init__(self, source: ImageSource, deadline: float) -> None:
        self.source = source
        self.deadline = deadline

    def follow(self, url: str) -> bytes:
        redirects = 0
        while not isinstance(answer := self.request(parts := self.check_url(url)), bytes):
            redirects += 1
            if redirects > MAX_REDIRECTS:
                _refuse(f"got more than {MAX_REDIRECTS} redirects", "fewer", "they may never end", "Send the URL they lead to")
            url = self.redirect(parts, answer)
        return answer

    def check_url(self, url: str) -> SplitResult:
        """The parts of a URL that may be looked up."""
        shown = f"got {_shown(url)}"
        if len(url) > MAX_URL_LENGTH or not _PRINTABLE.fullmatch(url) or "\\" in url:
            _refuse(
                shown, f"a URL of at most {MAX_URL_LENGTH} printable ASCII characters without backslashes",
                "readers of URLs disagree about others", "Encode it: %20 for a space, xn-- names for other scripts",
            )  # fmt: skip
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            _refuse(f"{shown} ({error})", "an http or https URL", "this one cannot be read", "Correct the URL")
        if parts.scheme not in _DEFAULT_PORTS or not host:
            _refuse(shown, "an http, https or data URL with a host", "nothing else is fetched", "Send the image itself")
        if "@" in parts.netloc:
            _refuse(
                shown, "a URL without user name or password", "they would be sent to its host", "Remove what is before the @"
            )
        if (port or _DEFAULT_PORTS[parts.scheme]) not in self.source.allowed_ports:
            allowed = ", ".join(map(str, self.source.allowed_ports))
            _refuse(shown, f"port {allowed}", "others may be services that are not for users", "Serve the image there")
        if self.source.allowed_hosts and host not in {name.lower() for name in self.source.allowed_hosts}:
            _refuse(shown, "a host on this server's list", "images are fetched only from there", "Send the image itself")
        return parts

    def redirect(self, parts: SplitResult, location: str) -> str:
        """Where a redirect leads, if it may lead there at all."""
        target = urljoin(parts.geturl(), location)
        if parts.scheme == "https" and urlsplit(target).scheme != "https":
            _refuse(
                f"got a redirect to {_shown(target)}", "https", "the connection was protected before", "Send that URL itself"
            )
        return target

    def request(self, parts: SplitResult) -> bytes | str:
        """The body of an answer, or where it redirects to."""
        host, port = parts.hostname or "", parts.port or _DEFAULT_PORTS[parts.scheme]
        connection = _PinnedConnection(host, port, parts.scheme == "https", self.addresses(host, port), self.remaining)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = {"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "ascend-dsv4", "Connection": "close"}
        timer = threading.Timer(self.remaining(), connection.cut)
        timer.daemon = True
        timer.start()
        try:
            with self.unreachable(host):
                connection.request("GET", path, headers=headers)
                with connection.getresponse() as response:
                    location = response.getheader("Location")
                    if response.status in _REDIRECTS and location is not None:
                        return location
                    return self.body(response, host)
        finally:
            timer.cancel()
            connection.close()

    @contextmanager
    def unreachable(self, host: str) -> Iterator[None]:
        """Whatever goes wrong on the way is one refusal, and a connection that was cut for its time is too slow."""
        try:
            yield
        # ValueError: what ssl raises on a connection that was cut.
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, RequestError):
                raise
            self.remaining()
            what = str(error) or type(error).__name__
            _refuse(
                f"got no image from {host!r} ({what[:100]})", "an answer over HTTP", "this server has to reach the URL",
                "Check the URL, or send the image itself",
            )  # fmt: skip

    def addresses(self, host: str, port: int) -> list[Address]:
        """Where a host is, all of it allowed. A name that also leads elsewhere is refused as a whole."""
        found: list[Address] = []
        for text in self.resolve(host, port):
            try:
                address = ipaddress.ip_address(text.partition("%")[0])
            except ValueError:
                _refuse(
                    f"got {host!r}, which leads to {text!r}", "an IP address", "nothing else is connected to", "Check the URL"
                )
            why = refusal(address, self.source.networks)
            if why is not None:
                _refuse(
                    f"got {host!r}, which leads to {why}", "a public host", "others are not for users of this server",
                    "Send the image itself, or have the network listed in allowed_networks",
                )  # fmt: skip
            found.append(address)
        if not found:
            _refuse(f"got {host!r}, which has no address", "a public host", "there is nothing to connect to", "Check the URL")
        return found

    def resolve(self, host: str, port: int) -> Sequence[str]:
        """The resolver's answer, within the time left: system lookups know no timeout, so one waits on a thread of its own."""
        answers: list[Sequence[str] | OSError | UnicodeError] = []

        def look_up() -> None:
            try:
                answers.append(self.source.resolver(host, port))
            except (OSError, UnicodeError) as error:
                answers.append(error)

        thread = threading.Thread(target=look_up, daemon=True, name="image-host-lookup")
        thread.start()
        thread.join(self.remaining())
        self.remaining()
        if not answers or not isinstance(answers[0], Sequence):
            _refuse(f"got {host!r}, which has no address", "a public host", "there is nothing to connect to", "Check the URL")
        return answers[0]

    def body(self, response: http.client.HTTPResponse, host: str) -> bytes:
        """The whole body of a successful answer, within the limit."""
        if response.status != 200:
            _refuse(
                f"got status {response.status} from {host!r}", "200", "no other answer holds the image",
                "Check the URL, or send the image itself",
            )  # fmt: skip
        encoding = response.getheader("Content-Encoding", "identity")
        if encoding.lower() != "identity":
            _refuse(
                f"got a body in encoding {encoding[:40]!r} from {host!r}", "plain bytes", "packed ones have no bounded size",
                "Serve the image unpacked",
            )  # fmt: skip
        promised = response.length
        if promised is not None and promised > self.source.max_bytes:
            self.source.refuse_size(f"{promised:,} bytes")
        data = bytearray()
        while chunk := response.read(min(_CHUNK_BYTES, self.source.max_bytes + 1 - len(data))):
            data += chunk
            self.remaining()
            if len(data) > self.source.max_bytes:
                self.source.refuse_size(f"more than {self.source.max_bytes:,} bytes")
        self.remaining()
        if promised is not None and len(data) < promised:
            _refuse(f"got {len(data):,} bytes", f"{promised:,}", "the host announced that many", "Try again")
        return bytes(data)

    def remaining(self) -> float:
        """Seconds left. raises RequestError if there are none."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            _refuse(
                f"got no whole image in {self.source.timeout_s:g} s", "a faster answer", "of this server's limit",
                "Send the image itself",
            )  # fmt: skip
        return left


class _PinnedConnection(http.client.HTTPConnection):
    """A connection to addresses that were checked, under the name of the host: for Host, for SNI, and on the certificate."""

    def __init__(
        self, host: str, port: int, secure: bool, addresses: Sequence[Address], remaining: Callable[[], float]
    ) -> None:
        super().__init__(host, port)
        self.default_port = _DEFAULT_PORTS["https" if secure else "http"]
        self._secure = secure
        self._addresses = addresses
        self._remaining = remaining
        self._cut = False
        self._live: socket.socket | None = None  # http.client forgets `sock` as soon as the headers of the answer are read

    def connect(self) -> None:
        """To the first address that answers."""
        self.sock = self._connected()
        if self._secure:
            context = ssl.create_default_context()
            secured = context.wrap_socket(self.sock, server_hostname=self.host, do_handshake_on_connect=False)
            self._live = self.sock = secured
            self._stop_if_cut()
            secured.do_handshake()

    def cut(self) -> None:
        """End whatever the connection is waiting for. Called from another thread."""
        self._cut = True
        if self._live is not None:
            with suppress(OSError):  # closed already
                # Not the method of the TLS socket, which would forget its state in the middle of a read.
                socket.socket.shutdown(self._live, socket.SHUT_RDWR)

    def _connected(self) -> socket.socket:
        error: OSError | None = None
        for address in self._addresses:
            family = socket.AF_INET if address.version == 4 else socket.AF_INET6
            self._live = sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.settimeout(self._remaining())
                sock.connect((str(address), self.port))
                self._stop_if_cut()
            except (OSError, RequestError) as failure:
                sock.close()
                if isinstance(failure, RequestError):
                    raise
                error = failure
            else:
                return sock
        raise error or OSError("no address")

    def _stop_if_cut(self) -> None:
        """For a `cut` that came before there was anything to shut down."""
        if self._cut:
            raise TimeoutError("timed out")


def _shown(url: str) -> str:
    """A URL as errors print it: short, and without what may be secret in it."""
    if url[:5].lower() == "data:":
        return repr(url[:40] + ("..." if len(url) > 40 else ""))
    bare = re.sub(r"//[^/]*@", "//...@", url.partition("?")[0])
    return repr(bare[:100] + ("..." if len(bare) > 100 else ""))


def _refuse(got: str, expected: str, because: str, do: str) -> NoReturn:
    raise RequestError(f"image: {got}, expected {expected}, because {because}. {do}.")
