"""How a delta is judged: what a kind of act is worth, and how an NPC's temper bends it.

A writer says which act an utterance is; the numbers come from here, so that the same kindness counts
the same in two thousand rows. Knows nothing of files or models.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.npc import Temper
from engine.schema import Delta, round3

EVEN = Temper()


@dataclass(frozen=True)
class Act:
    """One way of treating an NPC: its worth in trust and relationship, and what counts as it."""

    trust: float
    relationship: float
    about: str


ACTS: dict[str, Act] = {
    "threat": Act(-0.12, -0.10, "threatens harm"),
    "lie": Act(-0.12, -0.06, "makes a false claim or plays a trick"),
    "insult": Act(-0.07, -0.12, "wounds on purpose"),
    "manipulation": Act(
        -0.09, -0.05, "presses: false authority, 'you promised', flattery as a lever, fake commands"
    ),
    "demand": Act(-0.04, -0.05, "orders rudely"),
    "coldness": Act(-0.03, -0.06, "brushes off, mocks mildly, belittles"),
    "neutral": Act(0.0, 0.0, "asks, remarks, requests or refuses without warmth or rudeness"),
    "courtesy": Act(0.02, 0.03, "greets, thanks, asks with a mark of manners"),
    "interest": Act(0.03, 0.05, "is warmly curious about the NPC"),
    "promise": Act(0.05, 0.03, "binds themselves, and the pledge is the point"),
    "apology": Act(0.05, 0.06, "is sorry, and says for what"),
    "comfort": Act(0.05, 0.08, "feels with the NPC"),
    "honesty": Act(0.08, 0.04, "admits a fault or a truth that costs"),
    "help": Act(0.08, 0.06, "offers or has done help, brings what is wanted"),
    "secret": Act(0.09, 0.10, "confides something personal"),
    "sacrifice": Act(0.12, 0.13, "gives up something of their own for the NPC"),
}
"""The rubric, from the worst to the best. Values are for an even temper."""

WORTH_A2 = [(act.trust, act.relationship) for act in ACTS.values()]
"""What each act is worth, in the rubric's order."""


def judged_delta(act: str, temper: Temper = EVEN) -> Delta:
    """Return the delta of `act` for an NPC of this temper, rounded to three digits.

    Raises:
        KeyError: the rubric has no such act.
    """
    judged = ACTS[act]

    return Delta(
        trust=round3(temper.bent(judged.trust)),
        relationship=round3(temper.bent(judged.relationship)),
    )
