"""Bars on the terminal that also report to a page."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

Progress = Callable[[float, str], None]
"""Called with a fraction from 0 to 1 and what is being done, in a few words."""


def watched_bar(progress: Progress, message: str) -> type[tqdm]:
    """Return a tqdm class whose bars in bytes also report to `progress`, never going back."""
    best = 0.0

    class WatchedBar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)  # an argument of the hub's own bars
            super().__init__(*args, **kwargs)

        def update(self, n: float | None = 1) -> bool | None:
            nonlocal best
            shown = super().update(n)
            if self.unit == "B" and self.total:
                best = max(best, min(1.0, self.n / self.total))
                progress(best, message)
            return shown

    return WatchedBar


@contextmanager
def reporting(progress: Progress | None) -> Iterator[Progress]:
    """Yield a callback that moves a bar on the terminal and passes its news on to `progress`."""
    layout = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}"
    with tqdm(total=1.0, bar_format=layout, desc="Base model", file=sys.stderr) as bar:

        def report(fraction: float, message: str) -> None:
            changed = not bar.desc.startswith(message)
            bar.set_description_str(message, refresh=False)
            bar.update(fraction - bar.n)
            if changed:  # update alone draws nothing while the fraction stands still
                bar.refresh()
            if progress:
                progress(fraction, message)

        yield report
