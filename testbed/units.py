"""Figures for people: three digits and the unit that fits, so that nothing small is shown as 0."""


def size(count: float) -> str:
    """Bytes, as "640 KiB"."""
    units = ["B", "KiB", "MiB", "GiB"]
    while count >= 1024 and len(units) > 1:
        count /= 1024
        units.pop(0)
    return f"{_digits(count)} {units[0]}"


def seconds(value: float) -> str:
    """As "12.5 ms" or "61.2 s"."""
    return f"{_digits(value)} s" if value >= 1 or value == 0 else f"{_digits(1e3 * value)} ms"


def _digits(value: float) -> str:
    """Three of them, and whole numbers whole."""
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 1 else f"{value:#.3g}"
