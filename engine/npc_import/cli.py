"""The command line of the import: reads one list, writes NPC files, shows what to look at."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.errors import NPCFileError
from engine.npc_import.files import import_file, write_npcs


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 1 where nothing was written."""
    parser = argparse.ArgumentParser(
        prog="python -m engine.npc_import", description="Import the older list of NPC documents."
    )
    parser.add_argument("source", type=Path, help="a JSON file: one list of documents")
    parser.add_argument("--out", type=Path, default=Path("npc_configs"), help="folder to write to")
    parser.add_argument("--force", action="store_true", help="overwrite files that are there")
    options = parser.parse_args(arguments)
    try:
        result = import_file(options.source)
        paths = write_npcs(result.npcs, options.out, force=options.force)
    except NPCFileError as fault:
        sys.stderr.write(f"error: {fault}\n")
        return 1
    for warning in result.warnings:
        sys.stderr.write(f"warning: {warning}\n")
    for path in paths:
        sys.stdout.write(f"wrote {path}\n")
    return 0
