"""A database by its URL: how it is opened, and how its errors are told without its password."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus

import sqlalchemy
from sqlalchemy.engine import URL, make_url
from sqlalchemy.pool import NullPool

from minetorch.errors import ConfigurationError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, MetaData

PATIENCE_S = 10
"""Seconds for a server to accept a connection, or for another writer of an SQLite file to be done."""

_SECRET = re.compile(r"pass|pwd|secret|token|key|credential|odbc_connect", re.IGNORECASE)
_TIMEOUTS = {
    "sqlite": "timeout",
    "psycopg": "connect_timeout",
    "psycopg2": "connect_timeout",
    "pymysql": "connect_timeout",
    "mysqldb": "connect_timeout",
}
_HIDDEN = "***"


class Database:
    """One database. Nothing is opened before the first transaction, and no connection outlives its own."""

    def __init__(self, url: str | URL) -> None:
        """Take a URL as SQLAlchemy does.

        Raises:
            ConfigurationError: it is none, or there is no driver for it.
        """
        try:
            self._url = make_url(url)
        except (sqlalchemy.exc.ArgumentError, ValueError):
            # Without the URL itself, which may hold a password.
            raise ConfigurationError(
                "the database must be given by a URL of SQLAlchemy, such as 'sqlite:////data/curves.db' or "
                "'postgresql+psycopg://user@host/database'"
            ) from None
        self._secrets = _secrets(self._url)
        self.shown = self.hide(self._url.render_as_string(hide_password=True))
        try:
            self._engine = sqlalchemy.create_engine(
                self._url,
                hide_parameters=True,
                # A connection that DataLoader workers inherit would be closed by the first of them that ends.
                poolclass=NullPool,
                connect_args=self._connect_args(),
            )
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"{self.shown} needs the package {error.name!r}. For PostgreSQL: pip install 'psycopg[binary]', and "
                "a URL that begins with postgresql+psycopg://"
            ) from None
        except sqlalchemy.exc.SQLAlchemyError as error:
            raise ConfigurationError(f"{self.shown} is no database that SQLAlchemy knows: {self.hide(error)}") from None

    def __repr__(self) -> str:
        return f"Database({self.shown!r})"

    def create(self, tables: MetaData) -> None:
        """Create the tables that are not there.

        Raises:
            StorageError: they could not be created.
        """
        try:
            with self.transaction() as connection:
                tables.create_all(connection)
        except StorageError:
            # Another run may have created them at the same time.
            with self.transaction() as connection:
                tables.create_all(connection)

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A connection whose changes are all made at the end, or none.

        Raises:
            StorageError: the database failed; in its own words, without what is secret in the URL.
        """
        try:
            with self._engine.begin() as connection:
                yield connection
        except (sqlalchemy.exc.SQLAlchemyError, OSError) as error:
            told = error.orig if isinstance(error, sqlalchemy.exc.DBAPIError) and error.orig is not None else error
            raise StorageError(f"{self.shown}: {self.hide(told)}") from None

    def hide(self, text: object) -> str:
        """The text without what is secret in the URL."""
        hidden = str(text).strip()
        for secret in self._secrets:
            hidden = hidden.replace(secret, _HIDDEN)
        return hidden

    def _connect_args(self) -> dict[str, Any]:
        name = _TIMEOUTS.get(self._url.get_driver_name())
        name = "timeout" if self._url.get_backend_name() == "sqlite" else name
        return {} if name is None or name in self._url.query else {name: PATIENCE_S}


def _secrets(url: URL) -> list[str]:
    """What must not be shown, as it is and as URLs spell it; the longest first."""
    values = [str(url.password)] if url.password else []
    for name, value in url.query.items():
        if _SECRET.search(name):
            values += [value] if isinstance(value, str) else list(value)
    spelt = {spelling(value) for value in values if value for spelling in (str, quote, quote_plus, _quote_all)}
    return sorted(spelt, key=len, reverse=True)


def _quote_all(value: str) -> str:
    return quote(value, safe="")
