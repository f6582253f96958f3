"""Text in pictures: the fonts for the user's own names, and what stands for letters that none has."""

from __future__ import annotations

from functools import cache

_SANS = "DejaVu Sans"  # comes with Matplotlib, and has no Chinese, Japanese or Korean letters
_FALLBACKS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "Source Han Sans CN",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Microsoft YaHei",
    "PingFang SC",
    "Apple SD Gothic Neo",
    "Noto Sans Arabic",
)


@cache
def families() -> tuple[str, ...]:
    """The fonts to set text in, best first; only such as are installed, as Matplotlib warns of others."""
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return (_SANS, *(name for name in _FALLBACKS if name in installed))


def printable(text: str, most: int = 50) -> str:
    """The text, its middle left out beyond `most` letters, with a box for each letter that no font has.

    Matplotlib would warn of such letters, and of texts that leave no room for the curves, at each drawing.
    """
    if len(text) > most:
        head = most * 2 // 3
        text = f"{text[:head]}…{text[len(text) - (most - head - 1) :]}"
    if text.isascii():
        return text
    return "".join(letter if _has_glyph(letter) else "\N{WHITE SQUARE}" for letter in text)


@cache
def _has_glyph(letter: str) -> bool:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return any(get_font(findfont(FontProperties(family=[name]))).get_char_index(ord(letter)) for name in families())
