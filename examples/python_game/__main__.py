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

import httpx

from examples.python_game.game import Game, load_game
from examples.python_game.link import Engine, TalkFailed

SCRIPT = Path(__file__).with_name("script.txt")


def main(arguments: list[str] | None = None) -> int:
    """Play; return 0, or 1 where the engine could not be talked to."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.python_game", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--url", default="http://127.0.0.1:7860", help="of the engine")
    parser.add_argument("--script", type=Path, help="file of inputs; 'demo' plays the shipped one")
    parser.add_argument("--save", type=Path, default=Path("save.json"), help="the save file")
    options = parser.parse_args(arguments)
    try:
        engine = Engine(options.url)
    except (OSError, ValueError, httpx.HTTPError) as exc:
        return _stop(f"no engine at {options.url}: {exc}")
    game = Game(f"game-{uuid.uuid4().hex[:12]}")
    script = SCRIPT if options.script and str(options.script) == "demo" else options.script
    say(game.look())
    try:
        for line in inputs(script):
            if line == "quit":
                break
            game = turn(game, engine, line, options.save)
    except TalkFailed as exc:
        return _stop(str(exc))
    say(f"You have: {', '.join(game.items) or 'nothing'}.")
    return 0


def inputs(script: Path | None) -> Iterator[str]:
    """Yield what the player types, or the script's lines, which are shown as if typed."""
    if script is None:
        while True:
            try:
                yield input("> ").strip()
            except EOFError:
                return
    for line in script.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            say(f"> {line}")
            yield line.strip()


def turn(game: Game, engine: Engine, line: str, save: Path) -> Game:
    """Do what one line says; return the game that goes on."""
    word, _, rest = line.partition(" ")
    if word in ("go", "take", "do"):
        say(getattr(game, word)(rest))
    elif line == "look":
        say(game.look())
    elif line == "bag":
        say(", ".join(game.items) or "nothing")
    elif line == "save":
        game.save(save, engine.save(game.player_id))
        say(f"Saved to {save}.")
    elif line == "load":
        try:
            game, minds = load_game(save)
        except ValueError as exc:
            say(str(exc))
            return game
        engine.load(minds)
        say(f"Loaded. {game.look()}")
    elif line:
        talk(game, engine, line)
    return game


def talk(game: Game, engine: Engine, line: str) -> None:
    """Say something to the room's NPC and let what is decided happen."""
    name, written = game.here.npc, 0

    def shown(text: str) -> None:
        nonlocal written
        if len(text) > written:
            sys.stdout.write(text[written:] if written else f"{name}: {text}")
            sys.stdout.flush()
            written = len(text)

    result = engine.talk(game.player_id, game.here.npc_id, line, game.context(), shown)
    shown(result["text"])
    say("")
    for told in game.apply(result):
        say(f"  [{told}]")


def say(text: str) -> None:
    """Print a line."""
    sys.stdout.write(f"{text}\n")


def _stop(why: str) -> int:
    sys.stderr.write(f"{why}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
