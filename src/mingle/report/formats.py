"""Numbers as people write them. None is an em dash."""

DASH = "—"
_WORDS = [
    "No",
    "One",
    "Two",
    "Three",
    "Four",
    "Five",
    "Six",
    "Seven",
    "Eight",
    "Nine",
    "Ten",
    "Eleven",
    "Twelve",
]


def percent(value: float | None) -> str:
    """A share as per cent with one decimal, without the sign: ``84.1``."""
    return DASH if value is None else f"{100 * value:.1f}"


def points(value: float | None) -> str:
    """A difference of shares in percentage points, with its sign: ``−1.2``."""
    if value is None:
        return DASH
    rounded = round(100 * value, 1)
    return f"{rounded:+.1f}".replace("-", "−") if rounded else "0.0"


def seconds(value: float | None) -> str:
    """Seconds, with a decimal where it matters."""
    return DASH if value is None else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def megabytes(value: float | None) -> str:
    """MB (10^6 bytes)."""
    return DASH if value is None else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def count(value: float | None) -> str:
    """A large number in thousands or millions: ``83.0 k``, ``173.1 M``."""
    if value is None:
        return DASH
    if abs(value) < 1000:
        return f"{value:.0f}"
    return f"{value / 1e3:.1f} k" if abs(value) < 1e6 else f"{value / 1e6:.2f} M"


def rate(value: float | None) -> str:
    """A speed, without decimals."""
    return DASH if value is None else f"{value:.0f}"


def ratio(value: float | None) -> str:
    """A ratio with two decimals."""
    return DASH if value is None else f"{value:.2f}"


def plain(value: float | None) -> str:
    """Any number, with four digits."""
    return DASH if value is None else f"{value:.4g}".replace("-", "−")


def counted(number: int, noun: str) -> str:
    """``Eight checkpoints``: a number word up to twelve, figures beyond."""
    word = _WORDS[number] if number < len(_WORDS) else str(number)
    return f"{word} {noun}{'' if number == 1 else 's'}"


def span(numbers: list[int]) -> str:
    """``42–51`` for consecutive numbers, else ``42, 45``."""
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return f"{numbers[0]}–{numbers[-1]}"
    return ", ".join(map(str, numbers))
