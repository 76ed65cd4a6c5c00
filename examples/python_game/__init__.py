"""A text adventure of three rooms and three NPCs, to show how a game uses the engine.

world.py    the rooms, what lies in them, what can be done there
game.py     the player's state and what a turn of talk does to it; save and load
link.py     the engine behind an address: one turn, streamed, retried without harm

python -m examples.python_game [--url URL] [--script FILE] [--save FILE]
"""
