"""`python -m examples.python_game`: play in the terminal, or by a script of inputs.

go PLACE    take ITEM    do DEED    look    bag    save    load    quit
anything else is said to whoever stands there
"""

from __future__ import annotations

import argparse
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

from examples.python_game.game import Game, Turn, load_game, save_game, shown
from examples.python_game.link import Engine, Refused, Silent, TalkFailed
from examples.python_game.world import ROOMS

SCRIPT = Path(__file__).with_name("script.txt")


def main(arguments: list[str] | None = None) -> int:
    """Play; return 0, or 1 where the engine was silent."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.python_game", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--url", default="http://127.0.0.1:7860", help="of the engine")
    parser.add_argument("--script", type=Path, help="file of inputs; 'demo' plays the shipped one")
    parser.add_argument("--save", type=Path, default=Path("save.json"), help="the save file")
    options = parser.parse_args(arguments)
    script = SCRIPT if options.script and str(options.script) == "demo" else options.script
    try:
        engine = Engine(options.url)
    except Silent as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    game = Game(f"game-{uuid.uuid4().hex[:12]}")
    tell(game.look())
    for line in inputs(script):
        if line == "quit":
            break
        game = obey(game, engine, line, options.save)
    tell(bag(game))
    return 1 if game.pending else 0


def inputs(script: Path | None) -> Iterator[str]:
    """Yield what the player types, or the script's lines, which are shown as if typed."""
    if script is None:
        while True:
            try:
                yield input("> ").strip()
            except (EOFError, KeyboardInterrupt):
                return
    for line in script.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            tell(f"> {line}")
            yield line.strip()


def obey(game: Game, engine: Engine, line: str, file: Path) -> Game:
    """Do what one line says; return the game that goes on."""
    word, _, rest = line.partition(" ")
    try:
        if word in ("go", "take", "do") and is_command(rest):
            tell(getattr(game, word)(rest))
        elif line == "look":
            tell(game.look())
        elif line == "bag":
            tell(bag(game))
        elif line == "save":
            save_game(file, game, engine.save(game.player_id))
            tell(f"Saved to {file}.")
        elif line == "load":
            loaded, minds = load_game(file)
            engine.load(minds)
            tell(f"Loaded. {loaded.look()}")
            return loaded
        elif line:
            talk(game, engine, line)
    except (TalkFailed, ValueError) as exc:
        tell(f"({exc})")
    return game


def is_command(rest: str) -> bool:
    """Tell "take sword" from "take my hand, Silvia" and "do you remember?"."""
    return 1 <= len(rest.split()) <= 2 and rest[-1] not in ".!?"


def talk(game: Game, engine: Engine, line: str) -> None:
    """Say something to the room's NPC; a turn without an answer is finished first.

    Raises:
        Silent: no answer; the turn stays pending.
    """
    if game.pending:
        play(game, engine, game.pending)
    play(game, engine, game.say(line))


def play(game: Game, engine: Engine, turn: Turn) -> None:
    """Play a turn, the line shown as it grows, and let what is decided happen."""
    name = next(room.npc for room in ROOMS.values() if room.npc_id == turn.npc_id)
    written = 0

    def grown(text: str) -> None:
        nonlocal written
        if len(text) > written:
            sys.stdout.write(text[written:] if written else f"{name}: {text}")
            sys.stdout.flush()
            written = len(text)

    try:
        result = engine.talk(game.player_id, turn, grown)
    except Refused as exc:
        game.drop()
        tell(f"({exc})")
        return
    tell("")
    for told in game.apply(result):
        tell(f"  [{told}]")


def bag(game: Game) -> str:
    """Say what the player has."""
    return f"You have: {', '.join(map(shown, game.items)) or 'nothing'}."


def tell(text: str) -> None:
    """Print a line."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
