"""`tts rl`: train a policy by GRPO (arXiv 2402.03300) on r = (1 - beta) * r_out + beta * r_hat (arXiv 2506.18896)."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from tts.data.identity import content_of_problems
from tts.errors import Exit, InputError
from tts.evals.benchmarks import BENCHMARKS, load_benchmark
from tts.models import checkpoints
from tts.show.console import Output
from tts.train.policy import shared
from tts.train.policy.guard import Guard, evaluations
from tts.train.policy.rewards import Rewards
from tts.train.policy.shared import PolicyPrompts
from tts.train.settings import RLSettings
from tts.train.trainer import arguments, fit, is_first, note, open_folder, optimizers, resumable
from tts.types import Problem, Sampling, Scorer

LARGE_BETA = 0.8
"""Above this beta, policies are known to learn to please the reward model at the cost of correct answers."""


def rl(settings: RLSettings, output: Output | None = None, *, scorer: Scorer | None = None) -> int:
    """Train a policy, as `tts rl` does: write it to `settings.out`, and report.

    Args:
        settings: The options of `tts rl`.
        output: How to report. Default: a summary on standard output.
        scorer: A loaded reward model to use instead of the one that `settings` names.

    Returns:
        An exit code: 1 if the guard stopped the training, else 0.

    Raises:
        InputError: Settings, data or models cannot be used (raised before training starts), the loss is not finite, or the
            memory does not suffice.
    """
    with resumable(settings):
        return _rl(settings, output or Output(), scorer)


def _rl(settings: RLSettings, output: Output, scorer: Scorer | None) -> int:
    shared.require_trl()
    check_batch(settings)
    prompts = PolicyPrompts(settings.model, **settings.prompting)
    problems, held_out = load_problems(settings, prompts)
    if settings.beta > LARGE_BETA:
        shared.say(f"--beta is {settings.beta:g}: above {LARGE_BETA}, policies tend to trade correct answers for a high r_hat")
    if settings.beta and scorer is None:
        scorer = _load_scorer(settings)
    content = {"benchmark": content_of_problems(problems), "eval-benchmark": content_of_problems(held_out)}
    guard = Guard(settings.window, len(held_out))
    with open_folder(settings, **content):
        rewards = Rewards(scorer if settings.beta else None, alpha=settings.alpha, aggregate=settings.aggregate)
        trainer = make_grpo_trainer(settings, prompts, problems, held_out, rewards)
        if settings.window and held_out and settings.beta:
            trainer.add_callback(guard)
        try:
            fit(trainer, settings)
            shared.save_policy(trainer, settings, settings.model)
        finally:
            trainer.close()
        if guard.verdict is not None and is_first():
            note(settings.out, stopped=guard.verdict)
    if is_first():
        output.result(
            table=lambda: _summary(settings, trainer, len(problems), len(held_out)),
            data=lambda: shared.summary(settings.out, trainer, problems=len(problems), stopped=guard.verdict),
            brief=settings.out,
        )
    if guard.verdict is not None:
        shared.say(f"stopped for {guard.verdict}; try a smaller --beta, more --kl or a smaller --lr")
        return Exit.FAILURES
    return Exit.OK


def check_batch(settings: RLSettings) -> None:
    """Raise InputError unless the completions of an optimizer step make up whole groups."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    each = settings.accumulate * processes
    if settings.batch_size * each % settings.group:
        multiple = settings.group // math.gcd(settings.group, each)
        below = settings.batch_size // multiple * multiple
        fits = " or ".join(str(size) for size in (below, below + multiple) if size)
        raise InputError(
            f"--batch-size {settings.batch_size} x --accumulate {settings.accumulate} x {processes}"
            f" {'process' if processes == 1 else 'processes'} = {settings.batch_size * each} completions per step, which is"
            f" not a multiple of --group {settings.group}; use --batch-size {fits}"
        )


def load_problems(settings: RLSettings, prompts: PolicyPrompts) -> tuple[list[Problem], list[Problem]]:
    """Return the problems to train on and the held-out problems, without those whose prompts are too long.

    Raises:
        InputError: A benchmark cannot be loaded, a problem lacks an answer that is needed, or too few problems are left.
    """
    problems = settings.load_benchmark(instruction=settings.instruction, step_delimiter=settings.step_delimiter).problems
    problems = _with_short_prompts(settings, prompts, problems)
    if settings.beta < 1:
        _check_answers(settings.benchmark, problems, "which the outcome reward needs")
    held_out: list[Problem] = []
    if settings.eval_benchmark is not None:
        own = settings.eval_benchmark in BENCHMARKS  # its fields have fixed names
        fields: dict[str, Any] = {
            "question_field": settings.question_field, "answer_field": settings.answer_field, "id_field": settings.id_field,
        }  # fmt: skip
        held_out = load_benchmark(
            settings.eval_benchmark, settings.eval_limit, split=settings.eval_split, grader=settings.grader,
            instruction=settings.instruction, step_delimiter=settings.step_delimiter, **({} if own else fields),
        ).problems  # fmt: skip
        held_out = _with_short_prompts(settings, prompts, held_out)
        _check_answers(settings.eval_benchmark, held_out, "which held-out accuracy needs")
    each = settings.accumulate * int(os.environ.get("WORLD_SIZE", "1"))
    per_step = settings.batch_size * each // settings.group
    if len(problems) < per_step:
        multiple = settings.group // math.gcd(settings.group, each)
        largest = len(problems) * settings.group // each // multiple * multiple
        fix = f"use --batch-size {largest}" if largest else "add problems, or use a smaller --accumulate"
        raise InputError(
            f"{settings.benchmark} has {len(problems)} problems, but a step needs {per_step} (completions per step / --group);"
            f" {fix}"
        )
    return problems, held_out


def _with_short_prompts(settings: RLSettings, prompts: PolicyPrompts, problems: list[Problem]) -> list[Problem]:
    room = prompts.context - settings.max_tokens
    most = min(room, settings.max_prompt or room)
    lengths = [len(prompts.encode(problem)) for problem in problems]
    kept = [problem for problem, length in zip(problems, lengths, strict=True) if length <= most]
    if not kept and most == room:
        fitting = prompts.context - max(lengths)
        fix = f"--max-tokens {fitting} fits all prompts" if fitting > 0 else "use a model with a longer context"
        raise InputError(
            f"the model's context of {prompts.context} tokens has no room for --max-tokens {settings.max_tokens} after a prompt"
            f" of {min(lengths)} tokens; {fix}"
        )
    if not kept:
        raise InputError(f"all prompts are longer than --max-prompt {most}; the shortest has {min(lengths)} tokens")
    if skipped := len(problems) - len(kept):
        shared.say(f"{skipped} of {len(problems)} problems have prompts of more than {most} tokens and are skipped")
    return kept


def _check_answers(name: str, problems: Sequence[Problem], why: str) -> None:
    if lacking := next((problem for problem in problems if problem.answer is None), None):
        raise InputError(
            f"problem {lacking.id!r} of {name} has no answer, {why}; add one, or name its field with --answer-field"
        )


def _load_scorer(settings: RLSettings) -> Scorer:
    return settings.load_scorer(policy=settings)


def make_grpo_trainer(
    settings: RLSettings, prompts: PolicyPrompts, problems: Sequence[Problem], held_out: Sequence[Problem], rewards: Rewards
) -> Any:
    """Return TRL's GRPOTrainer for these problems and rewards.

    Raises:
        InputError: An option or the model cannot be used.
    """
    from datasets import Dataset
    from trl.trainer.grpo_config import GRPOConfig

    from tts.train.policy.grpo import TTSGRPOTrainer
    from tts.train.policy.rollouts import Rollouts

    def dataset(first: int, of: Sequence[Problem]) -> Any:
        return Dataset.from_list([{"prompt": problem.full_prompt, "problem": first + i} for i, problem in enumerate(of)])

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    batches = math.ceil(len(held_out) / (settings.batch_size * processes))
    evaluated = {
        "eval_strategy": "steps", "eval_steps": settings.eval_steps, "eval_on_start": not settings.resume,
        # batches of nearly equal size, since TRL averages their means
        "per_device_eval_batch_size": math.ceil(len(held_out) / max(batches * processes, 1)), "num_generations_eval": 1,
    }  # fmt: skip
    given = arguments(
        settings, GRPOConfig, num_generations=settings.group, max_completion_length=settings.max_tokens, beta=settings.kl,
        temperature=settings.temperature, min_p=0.0,  # not the model's own, from its generation_config.json
        loss_type=settings.loss_type,
        scale_rewards="none" if settings.loss_type == "dr_grpo" else "group",
        reward_weights=[1 - settings.beta, settings.beta] if rewards.scorer is not None else None,
        ddp_find_unused_parameters=False, **_vllm(settings, prompts), **(evaluated if held_out else {}),
    )  # fmt: skip
    model = shared.load_policy(settings.model)
    rollouts = None
    if settings.rollouts == "engine":
        if given.fsdp or given.deepspeed or os.environ.get("ACCELERATE_USE_FSDP") or os.environ.get("ACCELERATE_USE_DEEPSPEED"):
            raise InputError("--rollouts engine needs the whole model on one device; with FSDP or DeepSpeed, use vllm")
        sampling = Sampling(settings.temperature, max_tokens=settings.max_tokens)
        dtype = "bfloat16" if settings.bf16 else "float32"
        rollouts = Rollouts(settings.model, sampling, device=str(checkpoints.find_device(settings.device)), dtype=dtype)
    return TTSGRPOTrainer(
        model, args=given, train_dataset=dataset(0, problems),
        eval_dataset=dataset(len(problems), held_out) if held_out else None,
        optimizers=optimizers(settings, model), peft_config=shared.policy_adapters(settings),
        prompts=prompts, problems=[*problems, *held_out], rewards=rewards, rollouts=rollouts,
    )  # fmt: skip


def _vllm(settings: RLSettings, prompts: PolicyPrompts) -> dict[str, Any]:
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


def _summary(settings: RLSettings, trainer: Any, problems: int, held_out: int) -> str:
    steps = trainer.state.global_step
    lines = [f"{problems} problems, {steps} steps of {settings.group} completions per problem"]
    for name, about in (("reward", "reward"), ("rewards/outcome/mean", "correct"), ("rewards/prm/mean", "r_hat")):
        if values := shared.history(trainer, name):
            lines.append(f"{about} {values[0]:.3f} -> {values[-1]:.3f}")
    found = evaluations(trainer.state.log_history, held_out) if settings.beta else []
    accuracy = [evaluation.accuracy for evaluation in found] or shared.history(trainer, "eval_rewards/outcome/mean")
    after = f"\nheld-out accuracy {accuracy[0]:.1%} -> {accuracy[-1]:.1%} ({held_out} problems)" if accuracy else ""
    return ", ".join(lines) + after + f"\n{settings.out}: try it with tts run --model {settings.out}"
