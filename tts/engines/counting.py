"""Penalties and engines that take all of a request's prefix for its prompt.

A search extends a solution in many requests, whose prefixes are the prompt and the solution so far. Penalties are to count the
tokens of that solution (`Sampling.written`), but vLLM, SGLang and servers know only what one request generates:

- The frequency penalty is a sum, so the part of the prefix can be given as a logit bias.
- The presence penalty counts a token once, in prefix and continuation together, which no other parameter can express.
- The repetition penalty counts the whole prefix, prompt and solution alike. SGLang's leaves it out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from tts.errors import UnsupportedError
from tts.solving.segment import Segmenter
from tts.types import Sampling, Step

MOST = 1024
"""Tokens that may have a logit bias in one request of vLLM."""

WAYS_OUT = "use --engine transformers, or a strategy that draws whole solutions, such as bon"


def check_counts(sampling: Sampling, engine: str, *, repeats_prompt: bool) -> None:
    """Raise UnsupportedError for a penalty that an engine would count otherwise than `tts.types.Sampling` defines it.

    Args:
        sampling: What is asked of the engine.
        engine: Its name in messages.
        repeats_prompt: Whether its repetition penalty counts the prefix.
    """
    if sampling.repetition_penalty != 1 and not repeats_prompt:
        raise UnsupportedError(
            f"{engine} applies --repetition-penalty only to tokens that a request generates, not to those of the prompt; omit"
            " it, or use --engine vllm or transformers"
        )
    if sampling.written and sampling.presence_penalty:
        raise UnsupportedError(
            f"{engine} applies --presence-penalty only to tokens that one request generates, not to the earlier steps of a"
            f" solution; use --frequency-penalty instead, {WAYS_OUT}"
        )
    if sampling.written and sampling.frequency_penalty and sampling.repetition_penalty != 1:
        raise UnsupportedError(
            f"{engine} cannot apply --frequency-penalty to earlier steps of a solution together with --repetition-penalty;"
            f" omit one of them, {WAYS_OUT}"
        )


def bias_of(sampling: Sampling, prefix: Sequence[int]) -> dict[int, float]:
    """What the frequency penalty takes off the logits for the candidate's tokens in a prefix, as a logit bias by token.

    Raises:
        ValueError: The candidate has too many different tokens for a request.
    """
    if not (sampling.written and sampling.frequency_penalty):
        return {}
    counts = Counter(prefix[-sampling.written :])
    if len(counts) > MOST:
        raise ValueError(
            f"--frequency-penalty on {len(counts)} different tokens of a solution; a request takes {MOST}. {WAYS_OUT}"
        )
    return {token: -sampling.frequency_penalty * count for token, count in counts.items()}


def cut_at_stop(step: Step, sampling: Sampling, decode: Callable[[Sequence[int]], str]) -> Step:
    """A continuation by vLLM up to its first stop string, which vLLM overlooks among the first `min_tokens` tokens.

    What is left is drawn as without that: tokens do not depend on later ones.
    """
    if not (sampling.min_tokens and sampling.stop and step.token_ids):
        return step
    segmenter = Segmenter(decode, sampling.stop)
    tokens = next(segmenter.split(step.token_ids))
    reported = {name: getattr(step, name) for name in ("logprobs", "top", "confidence")}
    return replace(
        step, text=decode(tokens), token_ids=tokens, finish="step" if segmenter.ends(tokens) else step.finish,
        **{name: values[: len(tokens)] for name, values in reported.items() if values is not None},
    )  # fmt: skip
