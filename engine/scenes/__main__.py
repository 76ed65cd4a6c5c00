"""`python -m engine.scenes`: run all scenes; 0: all pass, 1: some fail, 2: they could not be run."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from engine.errors import EngineError
from engine.scenes.report import as_json, difference, keep, read_last, table
from engine.scenes.runner import Run, run_scenes
from engine.scenes.schema import SceneFile, SceneFileError, read_scenes
from engine.service import EngineService
from engine.settings import load_settings

PASSED, FAILED, NOT_RUN = 0, 1, 2


def main(
    arguments: list[str] | None = None, make: Callable[[], EngineService] | None = None
) -> int:
    """Run the command line; `make` gives the service, for tests."""
    parser = argparse.ArgumentParser(prog="python -m engine.scenes", description=__doc__)
    parser.add_argument("files", type=Path, nargs="*", help="default: NPC_DIR/scenes/*.json")
    parser.add_argument("--npc", action="append", help="only this NPC's; may be given again")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--last", type=Path, help="the last run; default: DATA_DIR/scenes-last.json"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    settings = load_settings()
    last = options.last or settings.data_dir / "scenes-last.json"
    with tempfile.TemporaryDirectory(prefix="scenes-") as folder:
        # A store of its own: the program may be running on the other one.
        apart = settings.model_copy(update={"data_dir": Path(folder), "database_url": ""})
        service = make() if make else EngineService(apart)
        return _run_all(service, options, last)


def _run_all(service: EngineService, options: argparse.Namespace, last: Path) -> int:
    paths = options.files or sorted((service.settings.npc_dir / "scenes").glob("*.json"))
    try:
        files = _chosen(paths, options.npc)
        service.load()
        run = _run(service, files)
    except EngineError as exc:
        sys.stderr.write(f"{exc.message}\n")
        return NOT_RUN
    finally:
        service.close()
    if options.json:
        sys.stdout.write(json.dumps(as_json(run), ensure_ascii=False, indent=1) + "\n")
    else:
        sys.stdout.write(table(run) + "\n")
        changes = difference(run, read_last(last))
        if changes and last.is_file():
            sys.stdout.write("since the last run:\n" + "".join(f"  {one}\n" for one in changes))
    keep(run, last)
    return PASSED if run.passed else FAILED


def _chosen(paths: list[Path], npcs: list[str] | None) -> list[SceneFile]:
    files = [file for file in read_scenes(paths) if not npcs or file.npc_id in npcs]
    if not files:
        raise SceneFileError(
            "there are no scenes to run: NPC_DIR/scenes/ holds none for these NPCs"
        )
    return files


def _run(service: EngineService, files: list[SceneFile]) -> Run:
    with tqdm(total=sum(len(file.scenes) for file in files), unit="scene") as bar:

        def told(done: int, _all: int, _next: str) -> None:
            bar.update(done - bar.n)

        return run_scenes(service.engine.parts, files, told)


if __name__ == "__main__":
    sys.exit(main())
