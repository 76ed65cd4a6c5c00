"""What a guess over acts is worth: a mean over their places in an order, brought back to units.

    probabilities of acts ─→ mean place in the order of worth ─→ the worth of that place

A mean of worths is drawn far by a small chance of a rare extreme (a threat, a sacrifice), so that
turns which ought to stand apart come out alike. The mean of *places* (how many turns are worth less)
is what ranks best, as a mean of values is what lies nearest in squares; the way back is piecewise
linear and rising, so a sure act is worth exactly what the rubric says. With places equal to the
worths it is the plain mean. Tensors in, tensors out.
"""

from __future__ import annotations

import torch


def mean_worth(
    act_BA: torch.Tensor, place_A2: torch.Tensor, worth_A2: torch.Tensor
) -> torch.Tensor:
    """Return what guesses are worth, shape (B, 2).

    Args:
        act_BA: probabilities of A acts.
        place_A2: each act's place; within a column it rises with the worth (`rises`).
        worth_A2: each act's worth.
    """
    at_B2 = act_BA @ place_A2
    worth_S2, order_S2 = worth_A2.sort(dim=0, stable=True)
    place_S2 = place_A2.gather(0, order_S2)
    steps_S2, gains_S2 = place_S2.diff(dim=0), worth_S2.diff(dim=0)
    # Acts of one worth share a place: a step of no width gains nothing.
    slope_S2 = torch.where(steps_S2 > 0, gains_S2 / steps_S2.clamp_min(1e-12), 0.0)
    walked_BS2 = (at_B2[:, None] - place_S2[:-1]).clamp_min(0.0).minimum(steps_S2)
    return worth_S2[0] + (walked_BS2 * slope_S2).sum(dim=1)


def rises(place_A2: torch.Tensor, worth_A2: torch.Tensor) -> bool:
    """Tell whether places rise with worths: equal where those are equal, higher where they are."""
    worth_S2, order_S2 = worth_A2.sort(dim=0, stable=True)
    steps_S2 = place_A2.gather(0, order_S2).diff(dim=0)
    return bool(((steps_S2 > 0) == (worth_S2.diff(dim=0) > 0)).all())


def places_of(counts_A: torch.Tensor, worth_A2: torch.Tensor) -> torch.Tensor:
    """Return the acts' places in the order of worth among turns of so many of each, shape (A, 2).

    A place is the share of turns that are worth less, and half of those that are worth as much; that of
    a worth of 0 is 0, so signs stay. Every act counts as seen once more than it was: no place is empty.

    Args:
        counts_A: turns of each act.
        worth_A2: each act's worth.
    """
    share_A = (counts_A.double() + 1) / (counts_A.double() + 1).sum()

    def below(worth_K2: torch.Tensor) -> torch.Tensor:
        less_KA2 = (worth_A2 < worth_K2[:, None]).double()
        same_KA2 = (worth_A2 == worth_K2[:, None]).double()
        return ((less_KA2 + 0.5 * same_KA2) * share_A[:, None]).sum(dim=1)

    return below(worth_A2) - below(worth_A2.new_zeros(1, worth_A2.shape[1]))
