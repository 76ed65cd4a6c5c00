"""The scene and sampling fields as components: built once, filled from a session, read as values.

What their values mean is `engine.ui.scene`'s to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from engine.schema import GenParams
from engine.ui import scene
from engine.ui.words import label

Updates = dict[Any, Any]


def talk_box(elem_id: str, *, height: int) -> gr.Chatbot:
    """Make a talk's bubbles, in which text stays text; to be called inside a `gr.Blocks`."""
    return gr.Chatbot(
        label=label("conversation"),
        elem_id=elem_id,
        show_label=False,
        height=height,
        render_markdown=False,
        latex_delimiters=[],
        group_consecutive_messages=False,
        feedback_options=None,
        buttons=[],
        layout="bubble",
    )


class SceneFields:
    """The fields of the Scene panel; to be made where they shall stand, inside a `gr.Blocks`."""

    def __init__(self) -> None:
        gr.Markdown(label("scene_info"), elem_classes="pc-hint")
        self.by_name: dict[str, Any] = {}
        with gr.Row(elem_classes="pc-pair"):
            self.preset = gr.Dropdown(
                [],
                value=None,
                label=label("preset"),
                info=label("preset_info"),
                elem_id="pc-preset",
            )
            self.by_name["quest_stage"] = gr.Dropdown(
                [], label=label("quest_stage"), info=label("quest_stage_info"), elem_id="pc-stage"
            )
        with gr.Row(elem_classes="pc-pair"):
            for name in ("trust", "relationship"):
                self.by_name[name] = gr.Slider(
                    -1, 1, value=0, step=0.001, label=label(name), elem_id=f"pc-{name}", buttons=[]
                )
        with gr.Row(elem_classes="pc-pair"):
            for name in ("items", "actions"):
                self.by_name[name] = gr.Dropdown(
                    [],
                    value=[],
                    multiselect=True,
                    allow_custom_value=True,
                    label=label(name),
                    elem_id=f"pc-{name}",
                )
        with gr.Row(elem_classes="pc-pair"):
            self._names()
        self.by_name["game_state"] = gr.Textbox(
            lines=2,
            max_lines=8,
            label=label("game_state"),
            info=label("game_state_info"),
            placeholder="door_open = true",
            elem_id="pc-game-state",
        )
        self.game_state_error = gr.HTML(elem_id="pc-game-state-error", padding=False)
        self.will_send = gr.HTML(elem_id="pc-will-send", padding=False)
        with gr.Accordion(label("sampling"), open=False):
            self.sampling = _sampling_fields()

    def _names(self) -> None:
        self.by_name["location"] = gr.Textbox(
            label=label("location"), max_lines=1, max_length=64, elem_id="pc-location"
        )
        self.by_name["npc_mood"] = gr.Dropdown(
            [], allow_custom_value=True, label=label("npc_mood"), elem_id="pc-mood"
        )
        self.by_name["player_reputation"] = gr.Textbox(
            label=label("player_reputation"), max_lines=1, max_length=64, elem_id="pc-reputation"
        )

    @property
    def inputs(self) -> list[Any]:
        """The components whose values `values` takes, in order."""
        return [*(self.by_name[name] for name in scene.FIELDS), *self.sampling.values()]

    @property
    def outputs(self) -> list[Any]:
        """The components that `filled` speaks of."""
        return [*self.by_name.values(), self.game_state_error, self.will_send]

    @staticmethod
    def values(given: Sequence[Any]) -> tuple[scene.Values, scene.Values]:
        """Split the values of `inputs` into scene fields and sampling, by name."""
        count = len(scene.FIELDS)
        fields = dict(zip(scene.FIELDS, given[:count], strict=True))
        return fields, dict(zip(scene.SAMPLING, given[count:], strict=True))

    def filled(self, values: Mapping[str, Any], choices: scene.Choices) -> Updates:
        """Return the updates that make the fields show `values` and offer `choices`."""
        offered = {
            "quest_stage": list(choices.stages),
            "items": _with(choices.items, values["items"]),
            "actions": _with(choices.actions, values["actions"]),
            "npc_mood": _with(choices.moods, [values["npc_mood"]]),
        }
        updates: Updates = {
            field: (
                gr.update(choices=offered[name], value=values[name])
                if name in offered
                else gr.update(value=values[name])
            )
            for name, field in self.by_name.items()
        }
        return {**updates, self.game_state_error: ""}


def _with(choices: Sequence[str], values: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([*choices, *values]))


def _sampling_fields() -> dict[str, Any]:
    default = GenParams()
    with gr.Row(elem_classes="pc-pair"):
        temperature = gr.Slider(
            0,
            2,
            value=default.temperature,
            step=0.05,
            label=label("temperature"),
            info=label("temperature_info"),
            buttons=[],
        )
        top_p = gr.Slider(
            0.05,
            1,
            value=default.top_p,
            step=0.05,
            label=label("top_p"),
            info=label("top_p_info"),
            buttons=[],
        )
    with gr.Row(elem_classes="pc-pair"):
        longest = gr.Slider(
            1,
            256,
            value=default.max_new_tokens,
            step=1,
            label=label("max_new_tokens"),
            info=label("max_new_tokens_info"),
            buttons=[],
        )
        seed = gr.Number(
            value=None,
            precision=0,
            minimum=0,
            maximum=2**31 - 1,
            label=label("seed"),
            info=label("seed_info"),
        )
    return dict(zip(scene.SAMPLING, (temperature, top_p, longest, seed), strict=True))
