"""Reads `valid` after every epoch, and keeps what served it best.

A small model on a thousand rows is soon over its best; the run's last step is seldom it. What is kept
lies in the run's folder, so that a resumed run knows of the epochs before it. Knows nothing of how a
model is trained.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training.model import MultiHeadModel

logger = logging.getLogger(__name__)

_FIGURES = "valid.json"
_BEST = "best.safetensors"


class ValidWatch(TrainerCallback):
    """Measures the model at each epoch's end and keeps the best weights.

    Args:
        folder: of the run.
        model: what is trained.
        measure: gives figures on `valid`, "worth" among them: the higher the better.
    """

    def __init__(
        self, folder: Path, model: MultiHeadModel, measure: Callable[[], dict[str, float]]
    ) -> None:
        self._folder = folder
        self._model = model
        self._measure = measure

    @property
    def figures(self) -> dict[str, dict[str, float]]:
        """Return the figures so far by step."""
        path = self._folder / _FIGURES
        if not path.is_file():
            return {}
        read: dict[str, dict[str, float]] = json.loads(path.read_text())
        return read

    def clear(self) -> None:
        """Forget an earlier run in the same folder."""
        for name in (_FIGURES, _BEST):
            (self._folder / name).unlink(missing_ok=True)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure; write weights first and figures last, so that a kill leaves a sound pair."""
        if not state.is_world_process_zero:
            return
        was_training = self._model.training
        found = self._measure()
        self._model.train(was_training)
        logger.info("valid after step %d: %s", state.global_step, _told(found))
        earlier = self.figures
        rivals = [one["worth"] for step, one in earlier.items() if step != str(state.global_step)]
        self._folder.mkdir(parents=True, exist_ok=True)
        if not rivals or found["worth"] > max(rivals):
            fresh = self._folder / f"{_BEST}.part"
            save_file(self._model.trained_state(), fresh)
            fresh.replace(self._folder / _BEST)
        earlier[str(state.global_step)] = found
        fresh = self._folder / f"{_FIGURES}.part"
        fresh.write_text(json.dumps(earlier, indent=1))
        fresh.replace(self._folder / _FIGURES)

    def restore_best(self) -> int:
        """Put the best weights into the model; return their step (0: none were kept)."""
        path = self._folder / _BEST
        if not path.is_file():
            return 0
        self._model.load_state_dict(load_file(path), strict=False)
        figures = self.figures
        return int(max(figures, key=lambda step: figures[step]["worth"]))


def _told(found: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in found.items())
