"""TensorBoard's events: what is in an event file, made and read. TensorBoard is imported by `load_tensorboard` only."""

from __future__ import annotations

import struct
import warnings
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import numpy.typing as npt

    from minetorch.drawers.background import News

PARTS = 1000
"""Steps per unit of x, where x is not whole: TensorBoard's are whole numbers."""


class Media(NamedTuple):
    """A picture or the values of a histogram."""

    number: int
    """Counts them within the run, from 1."""
    kind: str
    """ "image" or "histogram"."""
    name: str
    value: npt.NDArray[Any]
    """RGB of shape (height, width, 3), or values of shape (values,)."""
    x: float


def load_tensorboard() -> None:
    """Import what this module needs.

    For the thread that starts DataLoader workers: one that is forked while another thread is in the middle of an
    import waits for ever at its own import of the same module.
    """
    with warnings.catch_warnings():
        # What TensorBoard and protobuf think of each other's versions is not the user's to mend.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        import tensorboard.backend.event_processing.event_file_loader
        import tensorboard.summary.writer.record_writer  # noqa: F401
        import torch.utils.tensorboard.summary  # noqa: F401
        from PIL import Image

        Image.preinit()


def version() -> bytes:
    """The event that every file begins with."""
    from tensorboard.compat.proto.event_pb2 import Event

    return bytes(Event(file_version="brain.Event:2").SerializeToString())


def forget_all(now: float) -> bytes:
    """The event at which a TensorBoard that looks on forgets what it has read from older files."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    session = SessionLog(status=SessionLog.START)
    return bytes(Event(wall_time=now, step=0, session_log=session).SerializeToString())


def by_step(news: Iterable[News], in_parts: set[str]) -> list[tuple[int, list[tuple[str, float]]]]:
    """Tags and values of all points, gathered by step in ascending order: one event for each step.

    Args:
        news: the points.
        in_parts: the graphs whose x are drawn in `PARTS`.
    """
    values: dict[int, list[tuple[str, float]]] = {}
    for graph, name, _, points in news:
        tag = graph if name == graph else f"{graph}/{name}"
        scale = PARTS if graph in in_parts else 1
        for x, y in zip(*points.tolist(), strict=True):
            values.setdefault(round(x * scale), []).append((tag, y))
    return sorted(values.items())


def of_scalars(step: int, values: Iterable[tuple[str, float]], now: float) -> bytes:
    """The event of all values of a step."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    summary = Summary(value=[Summary.Value(tag=tag, simple_value=_float32(y)) for tag, y in values])
    return bytes(Event(wall_time=now, step=step, summary=summary).SerializeToString())


def of_media(media: Media, step: int, now: float) -> bytes:
    """The event of a picture or a histogram."""
    from PIL import Image
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from torch.utils.tensorboard.summary import histogram

    if media.kind == "image":
        height, width, _ = media.value.shape
        encoded = BytesIO()
        Image.fromarray(media.value).save(encoded, format="png")
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded.getvalue())
        summary = Summary(value=[Summary.Value(tag=media.name, image=image)])
    else:
        summary = histogram(media.name, media.value, bins=64)
    return bytes(Event(wall_time=now, step=step, summary=summary).SerializeToString())


def media_in(path: Path) -> Iterator[bytes]:
    """The events of a file that are a picture or a histogram, up to where it is torn."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    for record in RawEventFileLoader(str(path)).Load():
        values = Event.FromString(record).summary.value
        if any(value.WhichOneof("value") in ("image", "histo") for value in values):
            yield record


def _float32(y: float) -> float:
    """What fits the 32 bits of an event; what is too large for them is infinite."""
    try:
        struct.pack("f", y)
    except OverflowError:
        return float("inf") if y > 0 else float("-inf")
    return y
