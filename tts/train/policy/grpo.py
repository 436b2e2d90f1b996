"""TRL's GRPOTrainer, with the prompts, rollouts and rewards of tts."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any

from trl.trainer.grpo_trainer import GRPOTrainer

from tts.train.policy.rewards import Rewards
from tts.train.policy.rollouts import Rollouts
from tts.train.policy.shared import PolicyPrompts
from tts.types import Candidate, Problem, Step


class TTSGRPOTrainer(GRPOTrainer):
    """A GRPOTrainer that encodes prompts as inference does, so that no text of a problem can forge a control token.

    Args:
        model: The policy.
        prompts: Encodes problems and decodes completions.
        problems: All problems. In the data set, `prompt` is a problem's full prompt and `problem` its index in this sequence.
        rewards: Computes r_out and r_hat.
        rollouts: Draws the completions; None leaves that to TRL.
        options: Further arguments of GRPOTrainer.
    """

    def __init__(
        self,
        model: Any,
        *,
        prompts: PolicyPrompts,
        problems: Sequence[Problem],
        rewards: Rewards,
        rollouts: Rollouts | None,
        **options: Any,
    ) -> None:
        self.prompts, self.problems, self.rewards, self.rollouts = prompts, problems, rewards, rollouts
        self._by_prompt = {problem.full_prompt: problem for problem in problems}
        reward_functions: list[Any] = [self.outcome, self.prm] if rewards.scorer is not None else [self.outcome]
        super().__init__(model, reward_funcs=reward_functions, processing_class=prompts.tokenizer, **options)

    async def outcome(self, completion_ids: list[list[int]], problem: list[int], **_: Any) -> list[float | None]:
        """Return r_out of each completion. The signature is that of TRL's reward functions."""
        return await self.rewards.outcome(self._candidates(completion_ids, problem))

    async def prm(self, completion_ids: list[list[int]], problem: list[int], **context: Any) -> list[float | None]:
        """Return r_hat of each completion, and log how many the reward model could not read."""
        before = self.rewards.unread
        totals = await self.rewards.prm(self._candidates(completion_ids, problem))
        context["log_metric"]("rewards/prm/unread", float(self.rewards.unread - before))
        return totals

    def _candidates(self, completion_ids: list[list[int]], problem: list[int]) -> list[Candidate]:
        return [
            Candidate(
                self.problems[i],
                (Step(self.prompts.completion(ids), tuple(ids), "stop" if ids[-1] in self.eos_token_ids else "length"),),
            )
            for ids, i in zip(completion_ids, problem, strict=True)
        ]

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        """Return TRL's sampler, with the order of an epoch derived from the seed and its number: the same after --resume."""
        sampler: Any = super()._get_train_sampler(dataset)
        sampler.set_epoch = lambda epoch: sampler.generator.manual_seed(sampler.seed + epoch)
        return sampler

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [list(self.prompts.encode(self._by_prompt[prompt])) for prompt in prompts], None, {}

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **options: Any) -> tuple[list[list[int]], Any]:
        if self.rollouts is None:
            parent: Any = super()
            drawn: tuple[list[list[int]], Any] = parent._generate_single_turn(prompt_ids, *args, **options)
            return drawn
        model: Any = self.accelerator.unwrap_model(self.model)
        self.rollouts.load_weights(model)
        # every evaluation draws with the same random numbers, so that only the policy differs
        draw = ("step", self.state.global_step) if model.training else ("held out",)
        return self.rollouts.draw(prompt_ids, self.args.seed, *draw, os.environ.get("RANK", "0")), None

    def _send_telemetry(self) -> None:
        """Send nothing."""

    def close(self) -> None:
        """Stop the grader's processes and the engine's thread."""
        asyncio.run_coroutine_threadsafe(self.rewards.close(), self.async_loop).result()
        if self.rollouts is not None:
            self.rollouts.close()
