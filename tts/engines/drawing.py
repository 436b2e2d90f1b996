"""Draw tokens from logits, with random numbers that depend only on (seed, position)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


def uniform(seeds: Sequence[int], positions: Sequence[int]) -> NDArray[np.float64]:
    """Return a random number in [0, 1) for each (seed, position), by splitmix64's output function on a counter.

    See Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
    """

    def mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))

    start = mix(np.array(seeds, dtype=np.uint64))
    counter = (np.array(positions, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    return (mix(start + counter) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draw(logits: Tensor, temperature: Sequence[float], top_p: Sequence[float], u: NDArray[np.float64]) -> Tensor:
    """Draw a token from each row's distribution after temperature and top-p, by inverting its cumulative distribution at `u`.

    Args:
        logits: [rows, vocabulary].
        temperature: One for each row; 0 takes the most likely token.
        top_p: One for each row: tokens outside the smallest set that has this probability are not drawn.
        u: A number in [0, 1) for each row.

    Returns:
        Token ids [rows].
    """
    if not any(temperature):
        return logits.argmax(-1)
    scale = torch.tensor([t or 1.0 for t in temperature], device=logits.device)
    probabilities = (logits / scale[:, None]).softmax(-1)
    if min(top_p) < 1:
        ordered, order = probabilities.sort(-1, descending=True)
        before = ordered.cumsum(-1) - ordered
        ordered[before >= torch.tensor(top_p, device=logits.device)[:, None]] = 0
        probabilities = torch.zeros_like(probabilities).scatter_(-1, order, ordered)
    cumulative = probabilities.double().cumsum(-1)
    point = torch.from_numpy(u).to(logits.device)[:, None] * cumulative[:, -1:]
    sampled = torch.searchsorted(cumulative, point, right=True)[:, 0].clamp_(max=logits.shape[-1] - 1)
    if all(temperature):
        return sampled
    return torch.where(torch.tensor(temperature, device=logits.device) > 0, sampled, logits.argmax(-1))
