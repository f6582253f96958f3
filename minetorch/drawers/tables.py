"""The tables of the SQL drawer, for SQLAlchemy. What each column means is in docs/drawers.md."""

from __future__ import annotations

import hashlib
import math

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
)

LONGEST_NAME = 200
"""Letters of a name in the database; longer ones are cut, and end in a digest of the whole."""

METADATA = MetaData()

RUNS = Table(
    "minetorch_runs",
    METADATA,
    Column("run_id", String(32), primary_key=True),
    Column("code", String(LONGEST_NAME), nullable=False, index=True),
    Column("place", String(2000), nullable=False),
    Column("generation", Integer, nullable=False),
    Column("started_at", DateTime(timezone=True), nullable=False),
    Column("updated_at", DateTime(timezone=True), nullable=False),
)

_OF_A_RUN = "minetorch_runs.run_id"

GRAPHS = Table(
    "minetorch_graphs",
    METADATA,
    Column("run_id", ForeignKey(_OF_A_RUN, ondelete="CASCADE"), primary_key=True),
    Column("graph", String(LONGEST_NAME), primary_key=True),
    Column("x_name", String(20), nullable=False),
)

POINTS = Table(
    "minetorch_points",
    METADATA,
    Column("run_id", ForeignKey(_OF_A_RUN, ondelete="CASCADE"), primary_key=True),
    Column("graph", String(LONGEST_NAME), primary_key=True),
    Column("curve", String(LONGEST_NAME), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("x", Double, nullable=False),
    Column("y", Double, nullable=True),
    Column("special", String(4), nullable=True),
    Column("drawn_at", DateTime(timezone=True), nullable=False),
)

MARKS = Table(
    "minetorch_marks",
    METADATA,
    Column("run_id", ForeignKey(_OF_A_RUN, ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("kind", String(20), nullable=False),
    Column("epoch", Double, nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("marked_at", DateTime(timezone=True), nullable=False),
)


def fit(name: str) -> str:
    """A name as every database takes it."""
    text = name.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()
    if len(text) <= LONGEST_NAME:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f"{text[: LONGEST_NAME - 17]} {digest}"


def split(y: float) -> tuple[float | None, str | None]:
    """The columns y and special of a value: not every database can hold NaN and infinity."""
    if math.isfinite(y):
        return y, None
    return None, "nan" if math.isnan(y) else "inf" if y > 0 else "-inf"
