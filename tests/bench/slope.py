"""`python -m tests.bench.slope`: does the process grow while it serves?

So many players take turns with prompts that were never asked before, on the engine's own host, and the
resident memory is read every hundredth turn. Told is the slope of the second half, when everything that
is kept has been filled, in MB a thousand turns.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from engine.compute import in_passing
from engine.memory import settle_allocator
from tests.bench.drive import Turn
from tests.bench.memory import held_bytes
from tests.bench.models import load_served, prompt_encoder
from tests.bench.ours import Ours, make_ours
from tests.bench.workload import Lengths, Workload, make_workload

_EVERY = 100


def slope_mb(samples: Sequence[tuple[int, int]]) -> float:
    """Return the growth over the second half of (turns, bytes), in MB a thousand turns."""
    late = samples[len(samples) // 2 :]
    if len(late) < 2:
        return 0.0
    turns, held = np.array(late, dtype=np.float64).T
    return float(np.polyfit(turns / 1000.0, held / 2**20, 1)[0])


def watch(contestant: Ours, workload: Workload, turns: int, players: int) -> list[tuple[int, int]]:
    """Play `turns` turns by `players` at once; return (turns, resident bytes) along the way."""
    samples = []
    with ThreadPoolExecutor(players) as pool:
        for start in range(0, turns, _EVERY):
            some = range(start, min(start + _EVERY, turns))
            # Another number each: no prompt twice, so that what is kept must make room.
            asked = [
                Turn(at % players, at, workload.ids(at % players, at // players)) for at in some
            ]
            list(pool.map(contestant.take, asked))
            samples.append((some[-1] + 1, held_bytes()))
            sys.stderr.write(f"{samples[-1][0]} turns: {samples[-1][1] / 2**20:.0f} MB\n")
    return samples


def main(arguments: list[str] | None = None) -> int:
    """Run it and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=2000)
    parser.add_argument("--players", type=int, default=16)
    parser.add_argument("--reply", type=int, default=8, help="tokens of a line")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args(arguments)
    settle_allocator()
    rounds = -(-given.turns // given.players)
    workload = make_workload(
        in_passing(prompt_encoder), given.players, rounds, Lengths(reply=given.reply)
    )
    contestant = in_passing(lambda: make_ours(load_served(given.threads), workload, given.players))
    try:
        samples = watch(contestant, workload, given.turns, given.players)
    finally:
        contestant.close()
    figures = {
        "turns": given.turns,
        "players": given.players,
        "slope_mb_per_1000_turns": round(slope_mb(samples), 2),
        "held_mb": [round(held / 2**20) for _, held in samples],
    }
    sys.stdout.write(json.dumps(figures) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
