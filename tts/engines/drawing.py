"""Draw tokens from logits, with random numbers that depend only on (seed, position)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from tts.types import Sampling


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


def penalize(logits: Tensor, sampling: Sampling, prefix: Sequence[int], tokens: Sequence[int], ends: Collection[int]) -> None:
    """Apply penalties and the minimum length to the logits of one sample, in place.

    The order is that of transformers and vLLM: the repetition penalty (arXiv 1909.05858) over prefix and tokens, then OpenAI's
    frequency and presence penalties over the candidate's own tokens.

    Args:
        logits: [vocabulary].
        sampling: The penalties, the minimum of new tokens, and how many tokens of the prefix are the candidate's own.
        prefix: What the sample continues.
        tokens: What has been drawn for it.
        ends: Tokens that end a text.
    """
    if (penalty := sampling.repetition_penalty) != 1:
        seen = torch.tensor([*prefix, *tokens], device=logits.device)
        found = logits[seen]
        logits[seen] = torch.where(found < 0, found * penalty, found / penalty)
    if sampling.presence_penalty or sampling.frequency_penalty:
        own, counts = np.unique([*prefix[len(prefix) - sampling.written :], *tokens], return_counts=True)
        off = sampling.presence_penalty + sampling.frequency_penalty * counts
        logits[torch.from_numpy(own.astype(np.int64)).to(logits.device)] -= torch.from_numpy(off).to(logits)
    if len(tokens) < sampling.min_tokens:
        logits[list(ends)] = -torch.inf


def draw(logits: Tensor, samplings: Sequence[Sampling], u: NDArray[np.float64]) -> Tensor:
    """Draw a token from each row's distribution after temperature and truncation, by inverting its cumulative distribution.

    Args:
        logits: [rows, vocabulary].
        samplings: How to draw each row. A temperature of 0 takes the most likely token.
        u: A number in [0, 1) for each row.

    Returns:
        Token ids [rows].
    """
    temperature = [sampling.temperature for sampling in samplings]
    if not any(temperature):
        return logits.argmax(-1)
    scale = torch.tensor([t or 1.0 for t in temperature], device=logits.device)
    probabilities = (logits / scale[:, None]).softmax(-1)
    if any(sampling.top_p < 1 or sampling.top_k or sampling.min_p for sampling in samplings):
        probabilities = truncate(probabilities, samplings)
    cumulative = probabilities.double().cumsum(-1)
    point = torch.from_numpy(u).to(logits.device)[:, None] * cumulative[:, -1:]
    sampled = torch.searchsorted(cumulative, point, right=True)[:, 0].clamp_(max=logits.shape[-1] - 1)
    if all(temperature):
        return sampled
    return torch.where(torch.tensor(temperature, device=logits.device) > 0, sampled, logits.argmax(-1))


def truncate(probabilities: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """Set the probabilities of tokens that are not to be drawn to 0; what is left does not sum to 1.

    Top-k comes first, then top-p (arXiv 1904.09751) of what it left, then min-p (arXiv 2407.01082), as in transformers. Tokens
    as likely as the k-th one are kept.

    Args:
        probabilities: [rows, vocabulary].
        samplings: How to draw each row.
    """

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, device=probabilities.device)[:, None]

    ordered, order = probabilities.sort(-1, descending=True)
    mass: Tensor | float = 1.0
    if any(sampling.top_k for sampling in samplings):
        vocabulary = probabilities.shape[1]
        last = column([min(sampling.top_k or vocabulary, vocabulary) - 1 for sampling in samplings])
        ordered[ordered < ordered.gather(1, last.long())] = 0
        limited = column([sampling.top_k for sampling in samplings]) > 0
        mass = torch.where(limited, ordered.sum(-1, keepdim=True), 1.0)
    before = ordered.cumsum(-1) - ordered
    # a sum of all probabilities may be above 1 by rounding
    ordered[before >= column([sampling.top_p if sampling.top_p < 1 else np.inf for sampling in samplings]) * mass] = 0
    ordered[ordered < column([sampling.min_p for sampling in samplings]) * ordered[:, :1]] = 0
    return torch.zeros_like(probabilities).scatter_(-1, order, ordered)
