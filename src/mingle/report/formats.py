"""Numbers as people write them. None is an em dash."""

DASH = "—"
_WORDS = (
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
)


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
    """Bytes as MB (10^6)."""
    if value is None:
        return DASH
    size = value / 1e6
    return f"{size:.2f}" if size < 10 else f"{size:.1f}"


def counted(number: int, noun: str) -> str:
    """``Eight checkpoints``: a number word up to twelve, figures beyond."""
    word = _WORDS[number] if number < len(_WORDS) else str(number)
    return f"{word} {noun}{'' if number == 1 else 's'}"
