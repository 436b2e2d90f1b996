"""The reward of `tts rl` as a reward function for verl, which calls `compute_score` once per response.

    custom_reward_function.path=/…/tts/train/verl.py
    custom_reward_function.name=compute_score
    +custom_reward_function.reward_kwargs.scorer=Gen-Verse/ReasonFlux-PRM-7B
    +custom_reward_function.reward_kwargs.beta=0.5

Newer versions of verl call these options `reward.custom_reward_function.…`. To print the path of this file:
`python -c "import tts.train.verl as v; print(v.__file__)"`. The interface follows verl's source; the tests run without verl.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Mapping
from functools import cache
from typing import Any

from tts.delimiters import DEFAULT, delimiter
from tts.errors import InputError
from tts.grading.rules import get_grader
from tts.scorers import load_scorer
from tts.train.policy.rewards import Rewards, mix
from tts.trajectory import tags_in
from tts.types import Aggregate, Candidate, Problem, Step, counts_final

PROBLEM = ("problem", "question")
"""Keys of `extra_info` that may hold the problem's text; the first one present is used."""
_LOADING = threading.Lock()


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str | None,
    extra_info: Mapping[str, Any] | None = None,
    *,
    beta: float = 0.5,
    scorer: str = "arith-prm",
    scorer_args: Mapping[str, Any] | None = None,
    alpha: float = 1.0,
    aggregate: Aggregate = "mean",
    grader: str = "math",
    step_delimiter: str = DEFAULT,
    **_: Any,
) -> dict[str, float]:
    """Return the reward of a response, (1 - beta) * outcome + beta * prm, and its two parts.

    The first four arguments are those that verl passes; further ones that it passes are ignored. The keyword arguments come
    from verl's `reward_kwargs`.

    Args:
        data_source: Name of the data set, for error messages.
        solution_str: The response.
        ground_truth: The reference answer; may be None with beta 1.
        extra_info: Holds the text of the problem under "problem" or "question", unless beta is 0.
        beta: Weight of the reward model, from 0 to 1. Default: 0.5. With 0 it is not loaded, and `prm` is 0.
        scorer: The reward model, as in `tts rl`, loaded once per process. Default: "arith-prm".
        scorer_args: Arguments of the scorer.
        alpha: Weight of the final reward in r_hat. Default: 1.0.
        aggregate: How step rewards become one number in r_hat. Default: "mean".
        grader: How the answer is compared with the reference. Default: "math".
        step_delimiter: What ends a step, as --step-delimiter names it. Default: "blank-line".

    Returns:
        `score`, `outcome`, `prm`, and `acc`, which equals `outcome` and which verl reports as accuracy. A part that is not
        known is 0 here, as in `score`, since verl takes numbers only.

    Raises:
        InputError: An argument cannot be used, or the reference answer or the problem is missing.
    """
    if not 0 <= beta <= 1:
        raise InputError(f"beta is {beta}; it must be between 0 and 1")
    if beta < 1 and ground_truth is None:
        raise InputError(f"a row of {data_source} has no ground_truth, which the outcome reward needs; add it, or use beta 1")
    prompt = next((str(extra_info[key]) for key in PROBLEM if extra_info and extra_info.get(key)), None)
    if prompt is None and beta:
        raise InputError(
            f"a row of {data_source} has no problem for the reward model; add it as extra_info['problem'], or use beta 0"
        )
    get_grader(grader)  # raises InputError for an unknown one
    answer = None if ground_truth is None else str(ground_truth)
    problem = Problem(data_source, prompt or "", answer, grader, step_delimiter=delimiter(step_delimiter).name)
    with _LOADING:
        rewards = _rewards(scorer if beta else None, json.dumps(dict(scorer_args or {}), sort_keys=True), alpha, aggregate)
        loop = _loop()
    # a chat template that opens the thinking in the prompt leaves only the closing tag in the response
    tags = tags_in(solution_str)
    text = f"{tags.open}\n{solution_str}" if tags is not None and tags.open not in solution_str else solution_str
    candidate = Candidate(problem, (Step(text, (), "stop"),))
    [parts] = asyncio.run_coroutine_threadsafe(rewards([candidate]), loop).result()
    outcome, prm = parts.outcome or 0.0, parts.prm or 0.0
    return {"score": mix(parts, beta), "outcome": outcome, "prm": prm, "acc": outcome}


@cache
def _rewards(scorer: str | None, arguments: str, alpha: float, aggregate: Aggregate) -> Rewards:
    loaded = None
    if scorer is not None:
        loaded = load_scorer(scorer, final=counts_final(alpha, aggregate), options=json.loads(arguments))
    return Rewards(loaded, alpha=alpha, aggregate=aggregate)


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """Return an event loop that runs in its own thread: verl may call from several threads, or from inside a loop."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="tts-reward", daemon=True).start()
    return loop
