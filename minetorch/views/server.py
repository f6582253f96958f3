"""A page of the runs of a storage that follows them. It only reads, and answers nobody but those it was opened for.

A page elsewhere in the browser could have its own host name point here (DNS rebinding), and read the answers as its
own. So a request whose Host header is not the address that was opened is refused.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from werkzeug.exceptions import HTTPException, NotFound, SecurityError
from werkzeug.routing import Map, Rule
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response

from minetorch.checkpoint.run import MODELS, Run, find_runs
from minetorch.errors import ConfigurationError, MinetorchError, StorageError
from minetorch.views.facts import best_of, rule_of
from minetorch.views.output import bytes_text
from minetorch.views.page import policy, render
from minetorch.views.record import Drawn, Record, newest_drawn
from minetorch.views.report import render_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from minetorch.checkpoint.store import Store

LOCAL_S = 2.0
"""Seconds from one look at a local folder to the next, and from one question of a page to the next."""
REMOTE_S = 10.0
"""The same of an object store, which charges for each request."""

PATIENCE_S = 20.0
"""Seconds for which a page waits for the curves of its run."""

_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Watched:
    """The runs of a storage, looked at no more often than is fair to it, however many pages ask."""

    def __init__(
        self, store: Store, depth: int, *, clock: Callable[[], float] = time.time, patience_s: float = PATIENCE_S
    ) -> None:
        self.place = store.url
        self.every_s = LOCAL_S if store.is_local else REMOTE_S
        self._store = store
        self._depth = depth
        self._clock = clock
        self._patience_s = patience_s
        self._looking = threading.Lock()
        self._opening = threading.Lock()
        self._looked = -float("inf")
        self._runs: list[Record] = []
        self._problems: list[str] = []
        self._drawn: dict[tuple[str, str], Future[Drawn]] = {}

    def look(self) -> tuple[list[Record], list[str]]:
        """The runs, and what could not be read; a lost storage leaves what was there, and says so."""
        with self._looking:
            now = self._clock()
            if not 0 <= now - self._looked < self.every_s:
                failures: list[StorageError] = []
                try:
                    found = find_runs(self._place_of_runs(), self._depth, failures.append)
                except MinetorchError as err:
                    self._problems = [str(err)]
                else:
                    self._runs = [Record(run, now) for run in found]
                    self._problems = [str(failure) for failure in failures]
                self._looked = self._clock()
            return self._runs, self._problems

    def record(self, name: str) -> Record | None:
        """The run of this name, with its curves, which are read once for each checkpoint.

        No page waits for the curves of another run.

        Raises:
            StorageError: the curves cannot be read, or not within `patience_s`; reading continues then.
        """
        record = next((record for record in self.look()[0] if record.name == name), None)
        if record is None:
            return None
        newest = record.newest
        key = (record.url, newest.name if newest is not None else "")
        with self._opening:
            reading = self._drawn.get(key)
            if reading is None or (reading.done() and reading.exception() is not None):
                self._drawn = {known: drawn for known, drawn in self._drawn.items() if known[0] != record.url}
                # Not `record.drawn`: until Python 3.12, one lock keeps a cached property of all records.
                reading = self._drawn[key] = _in_background(lambda: newest_drawn(record.run))
        try:
            drawn = reading.result(self._patience_s)
        except FutureTimeoutError:
            raise StorageError(
                f"{record.url}: the newest checkpoint is not read after {self._patience_s:.0f} s; reading continues, "
                "so reload the page later"
            ) from None
        record.__dict__["drawn"] = drawn  # where cached_property keeps it
        return record

    def _place_of_runs(self) -> Store:
        parent = self._store.parent() if self._store.name == MODELS else None
        return parent if parent is not None else self._store


def _in_background(read: Callable[[], Drawn]) -> Future[Drawn]:
    """The outcome of `read`, on a thread that does not keep the server from ending."""
    future: Future[Drawn] = Future()

    def run() -> None:
        try:
            future.set_result(read())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="minetorch-watch-read", daemon=True).start()
    return future


class Application:
    """The pages, as WSGI."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._hosts: frozenset[str] | None = None
        methods = ["GET"]  # and with it HEAD
        self._routes = Map(
            [
                Rule("/", endpoint="runs", methods=methods),
                Rule("/run/<path:name>", endpoint="run", methods=methods),
            ],
            merge_slashes=False,
        )

    def allow(self, hosts: Iterable[str]) -> None:
        """From now on, answer only requests with one of these as their Host header."""
        self._hosts = frozenset(hosts)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        request = Request(environ)
        try:
            if self._hosts is not None and environ.get("HTTP_HOST", "").lower() not in self._hosts:
                raise SecurityError("This page is only for the address at which it was opened.")
            endpoint, values = self._routes.bind_to_environ(environ).match()
            response = Response(getattr(self, f"_{endpoint}")(**values), mimetype="text/html")
            response.add_etag()
            response.make_conditional(request)
        except HTTPException as err:
            response = Response(err.get_body(environ), err.code, err.get_headers(environ))
        except MinetorchError as err:
            response = Response(self._page("runs.html", runs=[], problems=[str(err)]), 503, mimetype="text/html")
        response.headers.update(
            {
                "Cache-Control": "no-cache",
                "Content-Security-Policy": f"{policy(self._watched.every_s)}; frame-ancestors 'none'",
                "Cross-Origin-Resource-Policy": "same-origin",
                "Referrer-Policy": "no-referrer",
                "X-Content-Type-Options": "nosniff",
            }
        )
        return response(environ, start_response)

    def _runs(self) -> str:
        records, problems = self._watched.look()
        rows = [_row(record) for record in records]
        return self._page("runs.html", runs=rows, problems=problems)

    def _run(self, name: str) -> str:
        record = self._watched.record(name)
        if record is None:
            raise NotFound(f"There is no run {name!r}.")
        return render_run(record, back="/", live_s=self._watched.every_s)

    def _page(self, template: str, **values: Any) -> str:
        return render(template, place=self._watched.place, live_s=self._watched.every_s, **values)


def _row(record: Record) -> dict[str, Any]:
    run: Run = record.run
    newest, best = record.newest, best_of(run)
    value = None if best is None else best.metrics.get(best.monitor)
    return {
        "name": record.name,
        "href": f"/run/{quote(record.name)}",
        "state": record.state,
        "step": "-" if newest is None else f"{newest.step:,}",
        "epoch": "-" if newest is None else newest.epoch,
        "best": "-" if best is None or value is None else f"{rule_of(best)} {value:.5g} (epoch {best.epoch})",
        "starts": run.catalogue.generation,
        "checkpoints": len(run.catalogue.manifests),
        "size": bytes_text(sum(file.size for file in run.files.values() if not (file.is_link or file.is_folder))),
        "modified": run.modified,
    }


class _Quiet(WSGIRequestHandler):
    """Logs nothing: a page asks every few seconds."""

    timeout = 30.0
    """Seconds after which a connection that says nothing is closed."""

    def log(self, type: str, message: str, *args: Any) -> None:
        """Nothing."""


def serve(store: Store, host: str, port: int, *, depth: int, report: Callable[[str], object]) -> None:
    """Serve the pages until interrupted.

    Args:
        store: where runs are looked for.
        host: the address to listen on.
        port: 0 for any that is free.
        depth: how many folders down runs are looked for.
        report: told the page's URL, once it can be opened.

    Raises:
        ConfigurationError: it cannot listen there.
    """
    watched = Watched(store, depth)
    application = Application(watched)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(64)
        except (OSError, UnicodeError) as err:
            raise ConfigurationError(f"cannot listen at {host}, port {port}: {err}") from None
        # The server prints what is wrong with an address and exits; it never sees one that is.
        server = make_server(host, port, application, threaded=True, request_handler=_Quiet, fd=listener.fileno())
    try:
        shown = f"[{host}]" if ":" in host else host
        if is_loopback(host):
            names = {*_LOOPBACK, shown}
            application.allow([*(f"{name}:{server.port}" for name in names), *(names if server.port == 80 else ())])
        with suppress(KeyboardInterrupt):  # the server ends at one, but this may come before it runs
            report(f"http://{shown}:{server.port}/")
            server.serve_forever()
    finally:
        server.server_close()
