"""The paper's reward design: what a PRM is to say of a step, in equations (arXiv 2506.18896, section 3).

Vectors are embeddings of steps, of length 1, so that a dot product is a cosine. What the paper leaves open is an argument.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

Match = Literal["max", "matched"]
Normalize = Literal["unit", "clip", "none"]


def alignment(steps: Array, response: Array, match: Match = "max") -> Array:
    """r_align [T]: how close each thinking step [T, h] is to the response's steps [K, h].

    `max` takes the closest response step; `matched` the one at the same share of the way, where the paper writes a_t as if
    trajectory and response were equally long.
    """
    cosines = steps @ response.T
    if match == "max":
        return np.asarray(cosines.max(1))
    place = (np.arange(len(steps)) * len(response)) // len(steps)
    return np.asarray(cosines[np.arange(len(steps)), place])


def coherence(previous: Array, step: Array, negatives: Array, tau: float = 0.1, positive: bool = True) -> float:
    """r_coh: how much likelier a step [h] is to follow the one before it [h] than steps of other problems [N, h] are.

    `positive` puts the step itself into the sum that it is compared with, as InfoNCE does: r_coh is then at most 0.
    """
    own = float(previous @ step) / tau
    others = (negatives @ previous) / tau
    return own - float(np.logaddexp.reduce([own, *others] if positive else others))


def combine(terms: Array) -> float:
    """r_step: the terms [k], each weighted by its share in their softmax."""
    weights = np.exp(terms - terms.max())
    return float((weights / weights.sum()) @ terms)


def unit(align: float, quality: float, coh: float, negatives: int) -> Array:
    """The three terms on [0, 1], which is where a PRM's heads answer: the range is open in the paper.

    A cosine is moved from [-1, 1]. exp(r_coh) is a probability among N + 1 steps; N + 1 equal ones give 1 / (N + 1), and the
    power takes that to 1/2 as a cosine of 0 goes there.
    """
    probability = min(1.0, float(np.exp(coh)))
    return np.array([(1 + align) / 2, quality, probability ** (np.log(2) / np.log(negatives + 1))])


def step_target(align: float, quality: float, coh: float, negatives: int, normalize: Normalize = "unit") -> float:
    """r_step of one thinking step: of the terms moved to [0, 1], or as they are, and then `clip` cuts what is not in [0, 1]."""
    if normalize == "unit":
        return combine(unit(align, quality, coh, negatives))
    combined = combine(np.array([align, quality, coh]))
    return min(1.0, max(0.0, combined)) if normalize == "clip" else combined
