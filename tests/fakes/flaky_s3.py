"""A proxy before an S3 server, which spoils requests as it is told."""

from __future__ import annotations

import re
import socket
import socketserver
import struct
import threading
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Rule:
    """Which requests to spoil, and how."""

    fault: str
    """503, reset, lose (its answer), truncate (its body), short, corrupt (its answer's body) or slow."""
    match: str
    """A regular expression for the request's first line."""
    count: int = 1
    """How many of them."""
    seconds: float = 0.3
    """Of latency, where it is slow."""


class Proxy(socketserver.ThreadingTCPServer):
    """One request a connection, so that what spoils one spoils no other."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, upstream: str, address: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        super().__init__(address, Handler)
        parts = urlsplit(upstream)
        self.upstream = (parts.hostname or "", parts.port or 80)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.rules: list[Rule] = []
        self.requests: list[str] = []
        self.fetched = 0
        self.spoiled = 0
        self.dark_until = 0.0
        self.lock = threading.Lock()

    def fault_of(self, line: str) -> Rule | None:
        with self.lock:
            self.requests.append(line)
            for rule in self.rules:
                if rule.count > 0 and re.search(rule.match, line):
                    rule.count -= 1
                    self.spoiled += 1
                    return rule
        return None

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is no news here."""


class Handler(socketserver.StreamRequestHandler):
    server: Proxy

    def handle(self) -> None:
        if time.monotonic() < self.server.dark_until:
            self.reset()
            return
        head = self.head(self.rfile)
        if not head:
            return
        rule = self.server.fault_of(head[0])
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
        if "expect" in headers:
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = self.rfile.read(int(headers.get("content-length", 0)))
        fault = rule.fault if rule is not None else ""
        if fault == "503":
            text = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
            self.wfile.write(b"HTTP/1.1 503 Slow Down\r\nConnection: close\r\nContent-Type: application/xml\r\n")
            self.wfile.write(b"Content-Length: %d\r\n\r\n" % len(text) + text)
            return
        if fault == "reset":
            self.reset()
            return
        if fault == "slow" and rule is not None:
            time.sleep(rule.seconds)
        answer_head, answer = self.forward(head, body[: len(body) // 2] if fault == "truncate" else body)
        if fault == "lose":
            self.reset()
            return
        if head[0].startswith("GET"):
            with self.server.lock:
                self.server.fetched += len(answer)
        if fault == "corrupt":
            answer = answer[:-9] + bytes([answer[-9] ^ 1]) + answer[-8:]
        self.wfile.write(answer_head + (answer[: len(answer) // 2] if fault == "short" else answer))

    def head(self, file: Any) -> list[str]:
        lines = []
        while (line := file.readline().decode("latin-1").rstrip("\r\n")) != "":
            lines.append(line)
        return lines

    def forward(self, head: list[str], body: bytes) -> tuple[bytes, bytes]:
        kept = [line for line in head if not line.lower().startswith(("connection:", "expect:", "content-length:"))]
        kept += ["Connection: close", f"Content-Length: {len(body)}"]
        with socket.create_connection(self.server.upstream, timeout=60) as upstream:
            upstream.sendall("\r\n".join(kept).encode("latin-1") + b"\r\n\r\n" + body)
            file = upstream.makefile("rb")
            answer_head = "\r\n".join(self.head(file)).encode("latin-1") + b"\r\n\r\n"
            return answer_head, b"" if head[0].startswith("HEAD") else file.read()

    def reset(self) -> None:
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.request.close()
