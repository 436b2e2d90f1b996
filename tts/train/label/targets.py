"""The equations of the paper's step reward, r_step (arXiv 2506.18896, section 3).

Vectors are embeddings of steps, scaled to length 1, so that a dot product is a cosine similarity. T is the number of thinking
steps, K of response steps, N of negatives, h the size of an embedding. Choices that the paper leaves open are arguments.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

Match = Literal["max", "matched"]
Normalize = Literal["unit", "clip", "none"]


def alignment(steps: Array, response: Array, match: Match = "max") -> Array:
    """Return r_align [T], the cosine similarity of each thinking step to a step of the response.

    Args:
        steps: Embeddings of the thinking steps [T, h].
        response: Embeddings of the response steps [K, h].
        match: "max" (default) compares with the most similar response step. "matched" compares step t with response step
            floor(t K / T): the paper writes a_t, as if thinking and response had equally many steps.
    """
    cosines = steps @ response.T
    if match == "max":
        return np.asarray(cosines.max(1))
    place = (np.arange(len(steps)) * len(response)) // len(steps)
    return np.asarray(cosines[np.arange(len(steps)), place])


def coherence(previous: Array, step: Array, negatives: Array, tau: float = 0.1, positive: bool = True) -> float:
    """Return r_coh, the log-probability under a softmax that `step` follows `previous`, rather than one of the negatives.

    Args:
        previous: Embedding of the step before [h].
        step: Embedding of the step [h].
        negatives: Embeddings of steps of other problems [N, h].
        tau: Temperature of the softmax. Default: 0.1.
        positive: Whether the denominator includes the step itself (default), as InfoNCE does; r_coh is then at most 0.
    """
    own = float(previous @ step) / tau
    others = (negatives @ previous) / tau
    return own - float(np.logaddexp.reduce([own, *others] if positive else others))


def combine(terms: Array) -> float:
    """Return r_step, the sum of the terms [k] weighted by their softmax."""
    weights = np.exp(terms - terms.max())
    return float((weights / weights.sum()) @ terms)


def unit(align: float, quality: float, coh: float, negatives: int) -> Array:
    """Map alignment, quality and coherence to [0, 1], the range of a PRM's heads, and return them [3].

    The paper leaves the range open. Alignment, a cosine, is mapped linearly from [-1, 1]. exp(r_coh) is a probability among
    N + 1 steps: where all are equally similar it is 1 / (N + 1), and the exponent log 2 / log (N + 1) maps that to 1/2, just as
    a cosine of 0 becomes 1/2.
    """
    probability = min(1.0, float(np.exp(coh)))
    return np.array([(1 + align) / 2, quality, probability ** (np.log(2) / np.log(negatives + 1))])


def step_target(align: float, quality: float, coh: float, negatives: int, normalize: Normalize = "unit") -> float:
    """Return the target of one thinking step, r_step of its three terms.

    Args:
        align: r_align, in [-1, 1].
        quality: r_qual, in [0, 1].
        coh: r_coh.
        negatives: N, the number of negatives that r_coh was computed with.
        normalize: "unit" (default) maps every term to [0, 1] first. "clip" combines the raw terms and clips the result to
            [0, 1]. "none" combines the raw terms and leaves the result as it is.
    """
    if normalize == "unit":
        return combine(unit(align, quality, coh, negatives))
    combined = combine(np.array([align, quality, coh]))
    return min(1.0, max(0.0, combined)) if normalize == "clip" else combined
