"""TRL's GRPOTrainer with the prompts, completions and rewards of tts."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any

from trl.trainer.grpo_trainer import GRPOTrainer

from tts.train.policy.rewards import Rewards
from tts.train.policy.rollouts import Rollouts
from tts.train.policy.shared import Prompts
from tts.types import Candidate, Problem, Step


class Grpo(GRPOTrainer):
    """Prompts are encoded as for inference, where nothing in a problem can forge a control token; TRL's own way lets it.

    The data set's `prompt` is a problem's text and its `problem` the place in `problems`.
    """

    def __init__(
        self,
        model: Any,
        *,
        prompts: Prompts,
        problems: Sequence[Problem],
        rewards: Rewards,
        rollouts: Rollouts | None,
        **more: Any,
    ) -> None:
        self.prompts, self.problems, self.rewards, self.rollouts = prompts, problems, rewards, rollouts
        parts: list[Any] = [self.outcome, self.prm] if rewards.scorer is not None else [self.outcome]
        super().__init__(model, reward_funcs=parts, processing_class=prompts.tokenizer, **more)

    async def outcome(self, completion_ids: list[list[int]], problem: list[int], **_: Any) -> list[float | None]:
        """The right answers' part of the reward, as TRL asks for it: one number for each completion."""
        return await self.rewards.outcome(self._candidates(completion_ids, problem))

    async def prm(self, completion_ids: list[list[int]], problem: list[int], **given: Any) -> list[float | None]:
        """The reward model's part."""
        before = self.rewards.unread
        totals = await self.rewards.prm(self._candidates(completion_ids, problem))
        given["log_metric"]("rewards/prm/unread", float(self.rewards.unread - before))
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
        """TRL's, but with the order of an epoch made of the seed and its number, so that it is the same after --resume."""
        sampler: Any = super()._get_train_sampler(dataset)
        sampler.set_epoch = lambda epoch: sampler.generator.manual_seed(sampler.seed + epoch)
        return sampler

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [list(self.prompts.encode(Problem("", prompt))) for prompt in prompts], None, {}

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **more: Any) -> tuple[list[list[int]], Any]:
        if self.rollouts is None:
            parent: Any = super()
            drawn: tuple[list[list[int]], Any] = parent._generate_single_turn(prompt_ids, *args, **more)
            return drawn
        model: Any = self.accelerator.unwrap_model(self.model)
        self.rollouts.follow(model)
        # the same random numbers at every evaluation: what differs between two of them is the policy
        what = ("step", self.state.global_step) if model.training else ("held out",)
        return self.rollouts.draw(prompt_ids, self.args.seed, *what, os.environ.get("RANK", "0")), None

    def _send_telemetry(self) -> None:
        pass  # nobody is told

    def close(self) -> None:
        """Let go of processes and threads."""
        asyncio.run_coroutine_threadsafe(self.rewards.close(), self.async_loop).result()
        if self.rollouts is not None:
            self.rollouts.close()
