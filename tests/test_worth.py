"""What guesses over acts are worth: means of places, and the way back to units."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from scipy.stats import rankdata

from heads.bundle import BundleError, load_bundle, save_bundle
from heads.modules import StateHeads
from heads.spec import HeadSpec
from heads.worth import mean_worth, places_of, rises
from tests.fakes import tiny_bundle, tiny_model
from training.rubric import ACTS, WORTH_A2

WORTH = torch.tensor(WORTH_A2, dtype=torch.float64)
COUNTS = torch.tensor([7, 0, 40, 9, 3, 20, 300, 90, 70, 8, 12, 5, 31, 44, 2, 1])
PLACES = places_of(COUNTS, WORTH)

guesses = st.lists(st.floats(0.0, 30.0), min_size=len(ACTS), max_size=len(ACTS)).map(
    lambda logits: torch.tensor([logits], dtype=torch.float64).softmax(dim=-1)
)


def test_a_sure_act_is_worth_what_the_rubric_says():
    assert torch.allclose(mean_worth(torch.eye(len(ACTS)).double(), PLACES, WORTH), WORTH)


@given(guesses)
def test_with_places_equal_to_worths_it_is_the_plain_mean(act_1A):
    assert torch.allclose(mean_worth(act_1A, WORTH, WORTH), act_1A @ WORTH)


@given(guesses, guesses)
def test_guesses_stand_in_the_order_of_their_mean_places(one, other):
    places_22 = torch.cat([one, other]) @ PLACES
    worth_22 = mean_worth(torch.cat([one, other]), PLACES, WORTH)
    for column in range(2):
        gap = float(places_22[0, column] - places_22[1, column])
        if abs(gap) > 1e-6:
            assert gap * float(worth_22[0, column] - worth_22[1, column]) > 0
    assert bool((worth_22 <= WORTH.amax(dim=0)).all() and (worth_22 >= WORTH.amin(dim=0)).all())


def test_places_are_ranks_among_the_turns_with_nothing_at_zero():
    # One more of each act, as `places_of` counts.
    turns = torch.cat([WORTH[a : a + 1].expand(int(n) + 1, 2) for a, n in enumerate(COUNTS)])
    for column in range(2):
        ranks = torch.from_numpy(rankdata(turns[:, column])) / len(turns)
        for act in range(len(ACTS)):
            alike = turns[:, column] == WORTH[act, column]
            nothing = ranks[turns[:, column] == 0][0]
            assert float(PLACES[act, column]) == pytest.approx(float(ranks[alike][0] - nothing))
    assert rises(PLACES, WORTH)
    assert not rises(-PLACES, WORTH)
    assert not rises(torch.zeros_like(PLACES), WORTH)


def test_a_rare_extreme_draws_a_mean_of_places_less_far():
    act_1A = torch.zeros(1, len(ACTS)).double()
    names = list(ACTS)
    act_1A[0, names.index("threat")] = 0.2
    act_1A[0, names.index("courtesy")] = 0.8
    plain, placed = act_1A @ WORTH, mean_worth(act_1A, PLACES, WORTH)
    assert float(plain[0, 0]) < 0 < float(placed[0, 0])


def _with_acts(places: torch.Tensor | None):
    bundle = tiny_bundle(*tiny_model("qwen2"))
    spec = replace(bundle.info.spec, acts=tuple(ACTS))
    heads = StateHeads(HeadSpec(spec.flags, spec.hidden_size, spec.layer, acts=spec.acts))
    heads.set_worth(WORTH, places)
    return replace(bundle, info=replace(bundle.info, spec=spec), heads=heads)


def test_places_are_kept_in_a_bundle_and_one_without_takes_plain_means(tmp_path):
    save_bundle(_with_acts(PLACES), tmp_path / "b")
    assert torch.equal(load_bundle(tmp_path / "b").heads.place_A2, PLACES.float())
    file = tmp_path / "b" / "heads.safetensors"
    tensors = load_file(file)
    del tensors["place_A2"]
    save_file(tensors, file)
    older = load_bundle(tmp_path / "b").heads
    assert torch.equal(older.place_A2, older.worth_A2)


def test_places_that_do_not_rise_with_the_worth_are_refused(tmp_path):
    with pytest.raises(BundleError, match="places do not rise"):
        save_bundle(_with_acts(-PLACES), tmp_path / "b")
