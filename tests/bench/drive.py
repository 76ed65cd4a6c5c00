"""Players on threads, each taking turns in a row, and the times that they see.

Knows nothing of what answers them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from tests.bench.workload import Workload


@dataclass(frozen=True)
class Times:
    """Seconds from the beginning of a turn to each of what a player waits for.

    `state`: what the NPC decided is known; `first`: the first word; `whole`: line and state are there.
    """

    state: float
    first: float
    whole: float


@dataclass(frozen=True)
class Turn:
    """What a player asks for: who, the prompt, and when nobody waits any longer."""

    player: int
    number: int
    ids: tuple[int, ...]
    give_up_at: float = float("inf")


class Contestant(Protocol):
    """Answers turns; called from many threads at once."""

    every_player_starts_cold: bool
    """Whether each player's first turn differs from the later ones, not only the very first."""

    def take(self, turn: Turn) -> Times | None:
        """Answer a turn; None where its time had come before it began (`give_up_at`)."""

    def notes(self) -> dict[str, object]:
        """Return what else is worth telling about the run."""

    def close(self) -> None:
        """Let go of everything."""


@dataclass(frozen=True)
class Played:
    """What was seen.

    Args:
        cold: first turns, before anything was kept.
        warm: the later ones, which are what counts.
        seconds: that the warm turns took together.
        cut_short: turns were left out because time had come.
    """

    cold: tuple[Times, ...]
    warm: tuple[Times, ...]
    seconds: float
    cut_short: bool


def play(
    contestant: Contestant,
    workload: Workload,
    players: int,
    rounds: int,
    *,
    limit_s: float = float("inf"),
    clock: Callable[[], float] = time.perf_counter,
) -> Played:
    """Let `players` take a cold turn and then `rounds` warm ones each, all at once.

    Args:
        contestant: who answers.
        workload: the prompts.
        players, rounds: how many.
        limit_s: seconds after which no warm turn is begun; one of the first player always is.
        clock: seconds.
    """

    def turns(player: int, first: int, count: int, give_up_at: float) -> list[Times | None]:
        found: list[Times | None] = []
        for number in range(first, first + count):
            if clock() >= give_up_at:
                return [*found, *[None] * (first + count - number)]
            turn = Turn(player, number, workload.ids(player, number), give_up_at)
            found.append(contestant.take(turn))
        return found

    with ThreadPoolExecutor(players) as pool:
        starters = range(players if contestant.every_player_starts_cold else 1)
        cold = list(pool.map(lambda player: turns(player, 0, 1, float("inf")), starters))
        began = clock()
        played = list(
            pool.map(lambda player: turns(player, 1, rounds, began + limit_s), range(players))
        )
        seconds = clock() - began
    warm = [one for player in played for one in player]
    return Played(
        cold=tuple(one for player in cold for one in player if one),
        warm=tuple(one for one in warm if one),
        seconds=seconds,
        cut_short=None in warm,
    )
