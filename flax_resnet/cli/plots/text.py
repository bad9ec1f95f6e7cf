"""Text of users in pictures, such as class names: one line, drawn as it is, in fonts that have its characters."""

import contextlib
import logging
import pathlib
import re
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

log = logging.getLogger("flax_resnet")

LONGEST = 40  # characters of a text
# For bytes that are not UTF-8, and for control characters.
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
FONT = "DejaVu Sans"  # comes with matplotlib
# Beginnings of the names of fonts that are searched first for other characters.
PREFERRED = (
    *("Noto Sans CJK", "Source Han Sans", "WenQuanYi", "IPA", "Droid Sans Fallback", "Noto Sans"),
    *("Arial Unicode", "Symbola", "Noto Emoji"),
)
SHOWN = 8  # characters without a font that are printed
# Packages of Debian and Ubuntu: for Chinese, Japanese and Korean, for pictographs, and for other scripts.
CJK, EMOJI, OTHERS = "fonts-noto-cjk", "fonts-symbola", "fonts-noto-core"


def plain(text: str, longest: int = LONGEST) -> str:
    r"""Return a text in one line that matplotlib draws as it is, not as a formula. Shorten it in the middle.

    >>> plain("US$ and A$\n" + "x" * 50, 20)
    'US\\$ and A\\$ …xxxxxxxx'
    """
    text = " ".join(text.split())
    drawn = "".join(
        REPLACEMENT if _category(c) in ("Cc", "Cs") else c for c in text if _is_drawn(c)
    )
    if len(drawn) > longest:
        end = (longest - 1) // 2
        drawn = f"{drawn[: longest - 1 - end]}…{drawn[-end:]}"
    return drawn.replace("$", r"\$")


@contextlib.contextmanager
def drawing(texts: Iterable[str]) -> Iterator[None]:
    """Draw figures inside this block with fonts for the characters of `texts`; log one line if there are none.

    The user's matplotlibrc is not used for text: with TeX, a name such as ``a_b`` would be an error.
    """
    import matplotlib as mpl

    wanted = {c for text in texts for c in plain(text, len(text) or 1)}
    fonts, missing = _fonts(wanted)
    if missing:
        packages = sorted({_package(c) for c in missing})
        shown = " ".join(missing[:SHOWN]) + (" ..." if len(missing) > SHOWN else "")
        log.warning(
            "no installed font has %s: boxes are drawn instead; install a font for them, such as %s",
            shown,
            " and ".join(packages),
        )
    settings: Any = {"font.family": fonts, "text.usetex": False, "text.parse_math": True}
    with mpl.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def _category(character: str) -> str:
    return unicodedata.category(character)


def _is_drawn(character: str) -> bool:
    """Return whether a character has a form of its own: not a direction mark, joiner or variation selector."""
    return _category(character) != "Cf" and not re.match("[\ufe00-\ufe0f]", character)


def _fonts(wanted: set[str]) -> tuple[list[str], list[str]]:
    """Return the names of fonts to try in this order, and the sorted characters that no font has."""
    from matplotlib import font_manager

    fonts = [FONT]
    missing = wanted - _characters(font_manager.findfont(FONT))
    if missing:
        for name, file in _installed():
            if found := missing & _characters(file):
                fonts.append(name)
                missing -= found
            if not missing:
                break
    return fonts, sorted(missing)


def _installed() -> list[tuple[str, str]]:
    """Return (name, file) of the installed fonts, the preferred ones first."""
    import matplotlib as mpl
    from matplotlib import font_manager

    manager = font_manager.fontManager
    known = {entry.fname for entry in manager.ttflist}
    # Matplotlib's list of fonts is a file that may be older than a font.
    for file in font_manager.findSystemFonts():
        if file not in known:
            with contextlib.suppress(Exception):  # a bitmap font, or a broken file
                manager.addfont(file)
    own = pathlib.Path(mpl.get_data_path())  # formulas, and a font of boxes for all characters
    entries = [e for e in manager.ttflist if own not in pathlib.Path(e.fname).parents]

    def order(entry: Any) -> tuple:
        rank = next((n for n, one in enumerate(PREFERRED) if entry.name.startswith(one)), 99)
        return rank, entry.style != "normal", entry.weight not in (400, "normal"), entry.name

    return [(entry.name, entry.fname) for entry in sorted(entries, key=order)]


def _characters(file: str) -> set[str]:
    """Return the characters that a font has."""
    from matplotlib.ft2font import FT2Font

    try:
        return set(map(chr, FT2Font(file).get_charmap()))
    except (OSError, RuntimeError, ValueError):
        return set()


def _package(character: str) -> str:
    name = unicodedata.name(character, "")
    if re.match("CJK|HIRAGANA|KATAKANA|HANGUL|FULLWIDTH|IDEOGRAPHIC|BOPOMOFO", name):
        return CJK
    return EMOJI if ord(character) >= 0x1F000 or _category(character) == "So" else OTHERS
