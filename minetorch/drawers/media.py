"""What hooks may show beside curves: pictures, figures and the values of histograms, made into arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from minetorch.errors import ConfigurationError

Pixels = npt.NDArray[np.uint8]

_CHANNELS = (1, 3, 4)


def image_pixels(value: object, name: str) -> Pixels:
    """A picture as RGB of shape (height, width, 3).

    Args:
        value: a tensor, array or Pillow image of shape (height, width), (height, width, channels) or (channels,
            height, width); integers from 0 to 255, or floats from 0 to 1 (others are clipped, NaN is 0). What is
            transparent becomes white.
        name: the picture's, for the error.

    Raises:
        ConfigurationError: it is none of these.
    """
    array = _to_numpy(value)
    if array.ndim == 2:
        array = array[:, :, None]
    elif array.ndim == 3 and array.shape[2] not in _CHANNELS and array.shape[0] in _CHANNELS:
        array = np.moveaxis(array, 0, 2)
    if array.ndim != 3 or array.shape[2] not in _CHANNELS or array.size == 0 or array.dtype.kind not in "buif":
        raise ConfigurationError(
            f"image {name!r} must be a tensor or an array of shape (height, width), (height, width, channels) or "
            f"(channels, height, width) with 1, 3 or 4 channels, not {_describe(array)}"
        )
    unit = np.clip(np.nan_to_num(array.astype(np.float32) / (1 if array.dtype.kind in "bf" else 255)), 0, 1)
    if unit.shape[2] == 4:
        unit = unit[:, :, :3] * unit[:, :, 3:] + (1 - unit[:, :, 3:])
    pixels = np.rint(unit * 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def figure_pixels(figure: Any, name: str) -> Pixels:
    """A Matplotlib figure as RGB, drawn with its own size and resolution.

    Raises:
        ConfigurationError: it is no figure.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not isinstance(figure, Figure):
        raise ConfigurationError(f"figure {name!r} must be a matplotlib.figure.Figure, not {type(figure).__name__}")
    before = figure.canvas
    try:
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return image_pixels(np.asarray(canvas.buffer_rgba()), name)
    finally:
        figure.set_canvas(before)  # what shows the figure on a screen or in a notebook


def histogram_values(values: object, name: str) -> npt.NDArray[np.float64]:
    """The finite ones of some values, of shape (values,).

    Raises:
        ConfigurationError: they are no numbers.
    """
    array = _to_numpy(values).ravel()
    if array.dtype.kind not in "buif":
        raise ConfigurationError(f"histogram {name!r} must be of numbers, not {_describe(array)}")
    numbers = array.astype(np.float64)
    return numbers[np.isfinite(numbers)]


def _to_numpy(value: object) -> npt.NDArray[Any]:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return np.asarray((value.float() if value.is_floating_point() else value).numpy())
    try:
        return np.asarray(value)
    except ValueError as error:  # a list of lists of several lengths
        raise ConfigurationError(f"these are no numbers of one shape: {error}") from None


def _describe(array: npt.NDArray[Any]) -> str:
    return f"shape {array.shape} and type {array.dtype}"
