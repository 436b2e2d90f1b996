"""`tts rl`: a policy improved by GRPO (arXiv 2402.03300) on r = (1 - beta) * r_out + beta * r_hat (arXiv 2506.18896)."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from tts.errors import InputError
from tts.evals.benchmarks import ARITH, PUBLISHED, load_benchmark
from tts.models import checkpoints
from tts.scorers import load_scorer
from tts.show.console import key_values
from tts.train.policy import shared
from tts.train.policy.guard import Guard, readings
from tts.train.policy.rewards import Rewards
from tts.train.policy.shared import Prompts
from tts.train.settings import RL
from tts.train.trainer import arguments, fit, is_first, note, open_folder, optimizers, resumable
from tts.types import Problem, Sampling, Scorer, counts_final

LARGE_BETA = 0.8
"""From here on a policy is known to learn to please the reward model instead of being right."""


def rl(settings: RL, scorer: Scorer | None = None) -> int:
    """Train, write the policy into `settings.out`, and print what came of it. Returns exit code 1 where the guard ended it.

    `scorer` takes the place of what `settings` names. Raises InputError.
    """
    with resumable(settings):
        return _rl(settings, scorer)


def _rl(settings: RL, scorer: Scorer | None) -> int:
    shared.require_trl()
    check_batch(settings)
    prompts = Prompts(settings.model, settings.system)
    problems, held_out = load_problems(settings, prompts)
    if settings.beta > LARGE_BETA:
        shared.say(f"--beta is {settings.beta:g}: above {LARGE_BETA} a policy tends to please the reward model and be wrong")
    if settings.beta and scorer is None:
        scorer = _load_scorer(settings)
    open_folder(settings)
    rewards = Rewards(scorer if settings.beta else None, alpha=settings.alpha, aggregate=settings.aggregate)
    trainer = build(settings, prompts, problems, held_out, rewards)
    guard = Guard(settings.window, len(held_out))
    if settings.window and held_out and settings.beta:
        trainer.add_callback(guard)
    try:
        fit(trainer, settings)
        shared.save(trainer, settings, settings.model)
    finally:
        trainer.close()
    if is_first():
        print(_summary(settings, trainer, len(problems), len(held_out)))
    if guard.verdict is not None:
        if is_first():
            note(settings.out, stopped=guard.verdict)
        shared.say(f"stopped for {guard.verdict}; try a smaller --beta, more --kl or a smaller --lr")
        return 1
    return 0


def check_batch(settings: RL) -> None:
    """Raise InputError where the completions of a step are no whole number of groups."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    each = settings.accumulate * processes
    if settings.batch_size * each % settings.group:
        step = settings.group // math.gcd(settings.group, each)
        below = settings.batch_size // step * step
        fits = " or ".join(str(size) for size in (below, below + step) if size)
        raise InputError(
            f"--batch-size {settings.batch_size} x --accumulate {settings.accumulate} x {processes}"
            f" {'process' if processes == 1 else 'processes'} = {settings.batch_size * each} completions a step, which is no"
            f" multiple of --group {settings.group}; --batch-size {fits} would do"
        )


def load_problems(settings: RL, prompts: Prompts) -> tuple[list[Problem], list[Problem]]:
    """What is learnt on, without prompts that are too long, and what is held out. Raises InputError."""
    fields: dict[str, Any] = {
        "question_field": settings.question_field, "answer_field": settings.answer_field, "id_field": settings.id_field,
    }  # fmt: skip
    data_dir = str(settings.data_dir) if settings.data_dir is not None else None
    problems = load_benchmark(
        settings.benchmark, settings.limit, split=settings.split, data_dir=data_dir, grader=settings.grader, **fields
    ).problems
    problems = _with_short_prompts(settings, prompts, problems)
    if settings.beta < 1:
        _check_answers(settings.benchmark, problems, "the outcome reward compares with it")
    held_out: list[Problem] = []
    if settings.eval_benchmark is not None:
        own = settings.eval_benchmark in ARITH or settings.eval_benchmark in PUBLISHED  # their fields have names already
        held_out = load_benchmark(
            settings.eval_benchmark, settings.eval_limit, split=settings.eval_split, grader=settings.grader,
            **({} if own else fields),
        ).problems  # fmt: skip
        held_out = _with_short_prompts(settings, prompts, held_out)
        _check_answers(settings.eval_benchmark, held_out, "held-out accuracy needs it")
    per_step = settings.batch_size * settings.accumulate * int(os.environ.get("WORLD_SIZE", "1")) // settings.group
    if len(problems) < per_step:
        raise InputError(
            f"{settings.benchmark} has {len(problems)} problems, but a step takes {per_step} (--batch-size / --group);"
            f" --batch-size {max(1, len(problems)) * settings.group} would do"
        )
    return problems, held_out


def _with_short_prompts(settings: RL, prompts: Prompts, problems: list[Problem]) -> list[Problem]:
    room = prompts.context - settings.max_tokens
    most = min(room, settings.max_prompt or room)
    lengths = [len(prompts.encode(problem)) for problem in problems]
    kept = [problem for problem, length in zip(problems, lengths, strict=True) if length <= most]
    if not kept and most == room:
        raise InputError(
            f"the model's context of {prompts.context} has no room for --max-tokens {settings.max_tokens} behind a prompt of"
            f" {min(lengths)} tokens; --max-tokens {max(1, prompts.context - max(lengths))} would do for all prompts"
        )
    if not kept:
        raise InputError(f"all prompts are longer than --max-prompt {most}; the shortest has {min(lengths)} tokens")
    if left_out := len(problems) - len(kept):
        shared.say(f"{left_out} of {len(problems)} problems have prompts of more than {most} tokens and are left out")
    return kept


def _check_answers(name: str, problems: Sequence[Problem], why: str) -> None:
    if lacking := next((problem for problem in problems if problem.answer is None), None):
        raise InputError(f"problem {lacking.id!r} of {name} has no answer, and {why}; give it one, or see --answer-field")


def _load_scorer(settings: RL) -> Scorer:
    return load_scorer(
        settings.scorer, format=settings.scorer_format, over=settings.score_over,
        final=counts_final(settings.alpha, settings.aggregate), engine=settings.scorer_engine, url=settings.scorer_url,
        policy=settings.model, system=settings.system, options=key_values("--scorer-arg", settings.scorer_arg),
    )  # fmt: skip


def build(settings: RL, prompts: Prompts, problems: Sequence[Problem], held_out: Sequence[Problem], rewards: Rewards) -> Any:
    """TRL's trainer, ready to fit. Raises InputError."""
    from datasets import Dataset
    from trl.trainer.grpo_config import GRPOConfig

    from tts.train.policy.grpo import Grpo
    from tts.train.policy.rollouts import Rollouts

    def dataset(first: int, of: Sequence[Problem]) -> Any:
        return Dataset.from_list([{"prompt": problem.prompt, "problem": first + i} for i, problem in enumerate(of)])

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    batches = math.ceil(len(held_out) / (settings.batch_size * processes))
    evaluated = {
        "eval_strategy": "steps", "eval_steps": settings.eval_steps, "eval_on_start": not settings.resume,
        # batches of about a size: TRL takes the mean of their means
        "per_device_eval_batch_size": math.ceil(len(held_out) / max(batches * processes, 1)), "num_generations_eval": 1,
    }  # fmt: skip
    given = arguments(
        settings, GRPOConfig, num_generations=settings.group, max_completion_length=settings.max_tokens, beta=settings.kl,
        temperature=settings.temperature, loss_type=settings.loss_type,
        scale_rewards="none" if settings.loss_type == "dr_grpo" else "group",
        reward_weights=[1 - settings.beta, settings.beta] if rewards.scorer is not None else None,
        ddp_find_unused_parameters=False, **_vllm(settings, prompts), **(evaluated if held_out else {}),
    )  # fmt: skip
    model = shared.load(settings.model)
    rollouts = None
    if settings.rollouts == "engine":
        if given.fsdp or given.deepspeed or os.environ.get("ACCELERATE_USE_FSDP") or os.environ.get("ACCELERATE_USE_DEEPSPEED"):
            raise InputError("--rollouts engine needs the whole model on a device; with FSDP or DeepSpeed use --rollouts vllm")
        sampling = Sampling(settings.temperature, max_tokens=settings.max_tokens)
        dtype = "bfloat16" if settings.bf16 else "float32"
        rollouts = Rollouts(settings.model, sampling, device=str(checkpoints.find_device(settings.device)), dtype=dtype)
    return Grpo(
        model, args=given, train_dataset=dataset(0, problems),
        eval_dataset=dataset(len(problems), held_out) if held_out else None,
        optimizers=optimizers(settings, model), peft_config=shared.adapters(settings),
        prompts=prompts, problems=[*problems, *held_out], rewards=rewards, rollouts=rollouts,
    )  # fmt: skip


def _vllm(settings: RL, prompts: Prompts) -> dict[str, Any]:
    if not settings.rollouts.startswith("vllm"):
        return {}
    if find_spec("vllm") is None:
        raise InputError(f"--rollouts {settings.rollouts} needs vllm; install it with: pip install 'tts-toolkit[vllm]'")
    if settings.rollouts == "vllm-server":
        return {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": settings.vllm_url}
    return {
        "use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": settings.vllm_memory,
        "vllm_max_model_length": prompts.context,
    }  # fmt: skip


def _summary(settings: RL, trainer: Any, problems: int, held_out: int) -> str:
    steps = trainer.state.global_step
    lines = [f"{problems} problems, {steps} steps of {settings.group} completions a problem"]
    for name, about in (("reward", "reward"), ("rewards/outcome/mean", "right"), ("rewards/prm/mean", "r_hat")):
        if values := shared.history(trainer, name):
            lines.append(f"{about} {values[0]:.3f} -> {values[-1]:.3f}")
    found = readings(trainer.state.log_history, held_out) if settings.beta else []
    accuracy = [reading.accuracy for reading in found] or shared.history(trainer, "eval_rewards/outcome/mean")
    after = f"\nheld-out accuracy {accuracy[0]:.1%} -> {accuracy[-1]:.1%} ({held_out} problems)" if accuracy else ""
    return ", ".join(lines) + after + f"\n{settings.out}: try it with tts run --model {settings.out}"
