"""The reward of `tts rl` for verl, which calls `compute_score` once for every response.

    custom_reward_function.path=/…/tts/train/verl.py
    custom_reward_function.name=compute_score
    +custom_reward_function.reward_kwargs.scorer=Gen-Verse/ReasonFlux-PRM-7B
    +custom_reward_function.reward_kwargs.beta=0.5

(`reward.custom_reward_function.…` in newer versions of verl.) `python -c "import tts.train.verl as v; print(v.__file__)"` says
the path. What is known of verl here is its source; it is not installed where this is tested.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Mapping
from functools import cache
from typing import Any

from tts.errors import InputError
from tts.grading.rules import get_grader
from tts.scorers import load_scorer
from tts.train.policy.rewards import Rewards, mix
from tts.trajectory import CLOSE, OPEN
from tts.types import Aggregate, Candidate, Problem, Step, counts_final

PROBLEM = ("problem", "question")
"""Keys of `extra_info` under which the problem's text is looked for, in this order."""
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
    **_: Any,
) -> dict[str, float]:
    """`score` = (1 - beta) * outcome + beta * prm, the two parts, and `acc`, which verl reports as accuracy.

    Keywords come from verl's `reward_kwargs`: `scorer` is a reward model as in `tts rl` with the arguments `scorer_args`,
    loaded once in a process. It needs the problem: `extra_info["problem"]`, or `["question"]`. With beta 0 it is not
    loaded, and `prm` is 0. What verl passes beyond that is ignored. Raises InputError.
    """
    if not 0 <= beta <= 1:
        raise InputError(f"beta is {beta}; it should be between 0 and 1")
    if beta < 1 and ground_truth is None:
        raise InputError(f"a row of {data_source} has no ground_truth, which the outcome reward compares with; or use beta 1")
    prompt = next((str(extra_info[key]) for key in PROBLEM if extra_info and extra_info.get(key)), None)
    if prompt is None and beta:
        raise InputError(
            f"a row of {data_source} has no problem for the reward model; give it as extra_info['problem'], or use beta 0"
        )
    get_grader(grader)  # says so where there is none
    answer = None if ground_truth is None else str(ground_truth)
    problem = Problem(data_source, prompt or "", answer, grader)
    with _LOADING:
        rewards = _rewards(scorer if beta else None, json.dumps(dict(scorer_args or {}), sort_keys=True), alpha, aggregate)
        loop = _loop()
    # templates that open <think> in the prompt leave only its end in the response
    text = f"{OPEN}\n{solution_str}" if CLOSE in solution_str and OPEN not in solution_str else solution_str
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
    """One event loop in a thread of its own: verl may call from several threads, or from inside a loop."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="tts-reward", daemon=True).start()
    return loop
