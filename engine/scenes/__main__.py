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
    parser.add_argument("--scenes", type=Path, help="folder of scenes; default: NPC_DIR/scenes")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--last", type=Path, help="the last run; default: DATA_DIR/scenes-last.json"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        settings = load_settings()
        last = options.last or settings.data_dir / "scenes-last.json"
        with tempfile.TemporaryDirectory(prefix="scenes-") as folder:
            # A store of its own: the program may be running on the other one.
            apart = settings.model_copy(update={"data_dir": Path(folder), "database_url": ""})
            service = make() if make else EngineService(apart)
            return _run_all(service, options, last)
    except EngineError as exc:
        sys.stderr.write(f"{exc.message}\n")
        return NOT_RUN


def _run_all(service: EngineService, options: argparse.Namespace, last: Path) -> int:
    try:
        files = _chosen(options, service.settings.npc_dir / "scenes")
        service.load()
        run = _run(service, files)
    finally:
        service.close()
    # A file named by hand may hold a few of an NPC's scenes; the others are not gone.
    whole = [] if options.files else options.npc
    before = read_last(last)
    changes = difference(run, before, whole) if before else []
    if options.json:
        told = {**as_json(run), "changes": changes}
        sys.stdout.write(json.dumps(told, ensure_ascii=False, indent=1) + "\n")
    else:
        sys.stdout.write(table(run) + "\n")
        if changes:
            sys.stdout.write("since the last run:\n" + "".join(f"  {one}\n" for one in changes))
    try:
        keep(run, last, whole)
    except OSError as exc:  # the verdict stands, and a build asks for no more
        sys.stderr.write(f"the run could not be kept for the next one: {exc}\n")
    return PASSED if run.passed else FAILED


def _chosen(options: argparse.Namespace, usual: Path) -> list[SceneFile]:
    folder = options.scenes or usual
    files = read_scenes(options.files or sorted(folder.glob("*.json")))
    where = "the files given" if options.files else folder
    if not files:
        raise SceneFileError(f"there are no scenes in {where}")
    missing = sorted(set(options.npc or ()) - {file.npc_id for file in files})
    if missing:
        raise SceneFileError(f"there are no scenes of {', '.join(missing)} in {where}")
    return [file for file in files if not options.npc or file.npc_id in options.npc]


def _run(service: EngineService, files: list[SceneFile]) -> Run:
    with tqdm(total=sum(len(file.scenes) for file in files), unit="scene") as bar:

        def told(done: int, _all: int, _next: str) -> None:
            bar.update(done - bar.n)

        return run_scenes(service.engine.parts, files, told)


if __name__ == "__main__":
    sys.exit(main())
