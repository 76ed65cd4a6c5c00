"""A text adventure of three rooms and three NPCs, to show how a game uses the engine.

world.py       the rooms, what lies in them, what can be done there
game.py        the player's state and what a turn of talk does to it; the save file
link.py        the engine behind an address: one turn, streamed, retried without harm
__main__.py    the terminal: commands, speech, scripts

python -m examples.python_game [--url URL] [--script FILE] [--save FILE]
"""
