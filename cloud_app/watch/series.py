"""Points over time, few enough to draw and to keep for ever: when there are too many, every second one goes."""

from collections.abc import Sequence

MOST = 600  # points of a series
_STEP_S = 5.0  # between two points, at first


class Series:
    """Columns by name, None where there is no value. `now` of `add` is Unix time; where it is set back, later points go."""

    def __init__(self, names: Sequence[str], step_s: float = _STEP_S) -> None:
        self.names, self._step_s = tuple(names), step_s
        self._points: list[tuple[float, tuple[float | None, ...]]] = []
        self._newest: tuple[float, tuple[float | None, ...]] | None = None

    def add(self, now: float, *values: float | None) -> None:
        """`values`: one of each name, without the time."""
        while self._points and self._points[-1][0] > now:
            self._points.pop()
        self._newest = now, values
        if not self._points or now - self._points[-1][0] >= self._step_s:
            self._points.append(self._newest)
            if len(self._points) >= MOST:
                self._points = self._points[::2]
                self._step_s *= 2

    def due(self, now: float) -> bool:
        """Whether a point of `now` is kept beside the last one for a while: at least a second lies between them."""
        return self._newest is None or abs(now - self._newest[0]) >= 1.0

    def columns(self) -> dict[str, list[float | None]]:
        """With `time`."""
        points = list(self._points)
        if self._newest is not None and points and points[-1] != self._newest:
            points.append(self._newest)
        columns: dict[str, list[float | None]] = {"time": [round(at, 3) for at, _ in points]}
        for place, name in enumerate(self.names):
            columns[name] = [values[place] for _, values in points]
        return columns


def thinned(count: int, most: int = MOST) -> list[int]:
    """The places of `most` of `count`, spread evenly, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [place * (count - 1) // (most - 1) for place in range(most)]
