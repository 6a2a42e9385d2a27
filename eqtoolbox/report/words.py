"""Words: record names and numbers as a reader would say them."""

import math
import re

CAUSES = {
    "symmetry": "broken symmetry",
    "implicit_bias": "implicit bias",
    "decay": "weight decay",
    "optimizer": "optimizer",
    "finite_step": "finite step",
    "learning_rates": "learning rates that differ",
    "act": "acts on the parameters",
    "unmeasured": "unmeasured",
}

_TURNS = {2: "half turns", 3: "third turns", 4: "quarter turns", 6: "sixth turns"}
_SYMMETRIES = {
    "flip": "flips",
    "translation": "translations",
    "permutation": "permutations",
    "so2": "rotations",
    "so3": "rotations in space",
}


_HIDDEN = re.compile(  # controls, marks of direction, line separators, halves of surrogate pairs
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)


def printable(text: str) -> str:
    r"""A text in which what would steer a terminal, or turn letters around, is spelled out.

    Example:
        >>> print(printable("a\x1b[31mred"))
        a\x1b[31mred
    """
    return _HIDDEN.sub(lambda match: repr(match[0])[1:-1], text)


def number(x: float, digits: int = 3) -> str:
    """A number with few significant digits, as short as it can be written.

    Example:
        >>> [number(x) for x in (0.41234, 2.1e-7, 12345.6, -0.095, 0.0, float("nan"))]
        ['0.412', '2.1e-7', '12300', '-0.095', '0', 'NaN']
        >>> number(2.0634e-7, 2)
        '2.1e-7'
    """
    if not math.isfinite(x):
        return "NaN" if math.isnan(x) else f"{x:+}".replace("+", "")
    if x == 0:
        return "0"
    if 1e-3 <= abs(x) < 1e5:
        rounded = float(f"{x:.{digits - 1}e}")
        return f"{rounded:.0f}" if abs(rounded) >= 100 else f"{rounded:g}"
    mantissa, exponent = f"{x:.{digits - 1}e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def percent(fraction: float) -> str:
    """A fraction as per cent with two or three significant digits: 3.1 %, 92 %, 0.04 %.

    Example:
        >>> percent(0.0312), percent(0.917), percent(0.0004)
        ('3.1 %', '92 %', '0.04 %')
    """
    x = 100 * fraction
    if not math.isfinite(x) or x == 0 or not 0.01 <= abs(x) < 1e4:
        return f"{number(x)} %"
    return f"{x:.0f} %" if abs(x) >= 10 else f"{float(f'{x:.2g}'):g} %"


def symmetry(name: str) -> str:
    """A data symmetry in words; a name that is not known stands for itself.

    Example:
        >>> symmetry("cyclic4"), symmetry("dihedral8"), symmetry("gauge")
        ('quarter turns', 'turns by 45 degrees and flips', 'gauge')
    """
    match = re.fullmatch(r"(cyclic|dihedral)_?(\d+)", name)
    if not match or int(match[2]) < 2:
        return _SYMMETRIES.get(name, name)
    order = int(match[2])
    turns = _TURNS.get(order, f"turns by {360 / order:.3g} degrees")
    return turns if match[1] == "cyclic" else f"{turns} and flips"


def typeset(text: str) -> str:
    """A sentence as it is printed: minus and times signs, powers of ten, unbroken per cents.

    Example:
        >>> typeset("floor 2.1e-7, grew 6x to -0.5")
        'floor 2.1·10⁻⁷, grew 6× to −0.5'
    """
    text = re.sub(r"(?<![\w.])(-?\d+(?:\.\d+)?)e(-?\d+)\b", _power, text)
    text = re.sub(r"(?<![\w.)\]-])-(?=\d)", "−", text)
    text = re.sub(r"(?<=\d)x(?=\W)", "×", text)
    return re.sub(r"(?<=\d) %", "\u202f%", text)


def raised(power: int) -> str:
    """An exponent in superscript digits."""
    return str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _power(match: re.Match[str]) -> str:
    power = f"10{raised(int(match[2]))}"
    return power if match[1] == "1" else f"{match[1]}·{power}"


def listing(items: list[str]) -> str:
    """Items joined as in a sentence: a, b and c."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def plural(count: int, noun: str) -> str:
    """A count with its noun: 1 step, 3 steps."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def words(name: str) -> str:
    """A name in an identifier's spelling, as words."""
    return name.replace("_", " ")
