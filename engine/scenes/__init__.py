"""Scenes: a designer's regression tests. What an NPC must do, and must not, in a state that is set up.

    schema.py   scene files: reading and writing
    runner.py   playing them in sessions of their own
    report.py   the table, and the difference to the last run

    python -m engine.scenes [--npc ID …] [--scenes DIR] [--json] [--last FILE] [FILE …]

A scene is played with the program's own parts and a session store that is thrown away, so that no
player's session is touched. Knows nothing of the page.
"""

from engine.scenes.report import difference, table
from engine.scenes.runner import Outcome, Run, record, run_scenes
from engine.scenes.schema import SceneFile, SceneFileError, read_scenes, save_scene

__all__ = [
    "Outcome",
    "Run",
    "SceneFile",
    "SceneFileError",
    "difference",
    "read_scenes",
    "record",
    "run_scenes",
    "save_scene",
    "table",
]
