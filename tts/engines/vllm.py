"""vLLM in this process, through its async engine, with its continuous batching and prefix caching."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import Any

from tts.engines.counting import bias_of, check_counts, cut_at_stop
from tts.errors import InputError
from tts.models import checkpoints
from tts.models.prompts import Prompter
from tts.solving.confidence import confidence_of
from tts.types import Engine, Finish, Generation, Sampling, Step

os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_V1_OUTPUT_PROC_CHUNK_SIZE", "1024")  # vLLM yields to other tasks after each chunk


RAW = "raw_logprobs"
"""vLLM's mode, and its default, in which log-probabilities are those before penalties, temperature and truncation."""


class VLLMEngine(Prompter, Engine):
    """An engine on vLLM's AsyncLLM, to be used in a single event loop.

    The n samples of a request are one vLLM request. vLLM seeds its i-th sample with seed + i, as the embedded engine does.

    Args:
        model: A bundled model's name, a folder or a hub id.
        system: The system prompt, if any.
        prompt_template: The whole prompt in place of a chat template, as `Prompter` takes it.
        chat_template_args: Arguments of the chat template.
        adapter: A LoRA adapter, a folder or a hub id.
        **arguments: Arguments of vLLM's AsyncEngineArgs, such as `tensor_parallel_size` or `dtype`.

    Raises:
        InputError: vLLM refuses the model or an argument. `generate` raises it for penalties that vLLM would count otherwise
            (`tts.engines.counting`), and for a prefix that fills the context.
    """

    requires = "vllm"

    def __init__(
        self,
        model: str,
        *,
        system: str | None = None,
        prompt_template: str | None = None,
        chat_template_args: dict[str, Any] | None = None,
        adapter: str | None = None,
        **arguments: Any,
    ) -> None:
        if (mode := arguments.get("logprobs_mode", RAW)) != RAW:
            raise InputError(f"--engine-arg logprobs_mode is {mode}; tts needs {RAW}, which is the default, so omit it")
        checkpoints.load_policy_config(model)
        super().__init__(model, system, prompt_template, chat_template_args)
        from vllm.lora.request import LoRARequest
        from vllm.platforms import current_platform

        settings: dict[str, Any] = {"enable_prefix_caching": True, "disable_log_stats": True}
        if current_platform.is_cpu():  # vLLM's CPU build crashes on seeded samples with chunked prefill
            settings["enable_chunked_prefill"] = False
        if adapter is not None:
            settings |= {"enable_lora": True, "max_lora_rank": checkpoints.adapter_rank(adapter)}
        self.llm: Any = start(model, **(settings | arguments))
        self.lora = LoRARequest("adapter", 1, checkpoints.locate_adapter(adapter)) if adapter else None
        self.context: int = self.llm.model_config.max_model_len
        self._number = count()

    def check_sampling(self, sampling: Sampling) -> None:
        check_counts(sampling, "vLLM", repeats_prompt=True)

    async def generate(self, prefix: Sequence[int], n: int, sampling: Sampling) -> Generation:
        if sampling.temperature == 0 and n > 1:  # greedy samples are all equal, and vLLM refuses n > 1
            one = await self.generate(prefix, 1, sampling)
            return replace(one, steps=one.steps * n, generated_tokens=len(one.steps[0].token_ids))
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        self.check_sampling(sampling)
        self.check_stops(sampling.stop)
        most = min(sampling.max_tokens, checkpoints.room(self.context, len(prefix)))
        parameters = SamplingParams(
            n=n,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            logit_bias=bias_of(sampling, prefix) or None,
            min_tokens=min(sampling.min_tokens, most),
            max_tokens=most,
            stop=list(sampling.stop),
            include_stop_str_in_output=True,
            seed=sampling.seed,
            logprobs=sampling.likeliest if sampling.logprobs or sampling.likeliest else None,
            output_kind=RequestOutputKind.FINAL_ONLY,
            detokenize=bool(sampling.stop),
            skip_special_tokens=self.skips_special,
        )
        stream = self.llm.generate(
            TokensPrompt(prompt_token_ids=list(prefix)), parameters, f"tts-{next(self._number)}", lora_request=self.lora
        )
        outputs: dict[int, Any] = {}
        cached = 0
        async for output in stream:  # vLLM may return the samples together or one by one
            outputs |= {completion.index: completion for completion in output.outputs}
            cached = max(cached, output.num_cached_tokens or 0)
        steps = tuple(self._step(outputs[i], sampling) for i in range(n))
        generated = sum(len(output.token_ids) for output in outputs.values())
        return Generation(steps, len(prefix), cached, generated)

    def _step(self, completion: Any, sampling: Sampling) -> Step:
        tokens, finish = tuple(completion.token_ids), _finish(completion.finish_reason, completion.stop_reason)
        logprobs = top = confidence = None
        if completion.logprobs:
            places = completion.logprobs
            logprobs = tuple(at[token].logprob for token, at in zip(tokens, places, strict=True))
            if sampling.top:
                top = tuple(self.spelled((token, one.logprob) for token, one in at.items()) for at in places)
            if count := sampling.confidence:  # vLLM adds the drawn token
                confidence = tuple(confidence_of((one.logprob for one in at.values()), count) for at in places)
        step = Step(self.decode(tokens), tokens, finish, logprobs, top, confidence)
        return cut_at_stop(step, sampling, self.decode)

    async def close(self) -> None:
        self.llm.shutdown()
        self.llm = None  # else it shuts down again at interpreter exit, with an error message


def start(model: str, **arguments: Any) -> Any:
    """Start an AsyncLLM with arguments of AsyncEngineArgs. Raises InputError if vLLM refuses the model or an argument."""
    from vllm import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    try:
        # LLM_CLASS gives vLLM's batch sizes for offline work; the default, for a server, has half of that or less
        return AsyncLLM.from_engine_args(
            AsyncEngineArgs(model=checkpoints.locate(model), **arguments), usage_context=UsageContext.LLM_CLASS
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"vLLM failed to start: {checkpoints.first_line(error)}") from error


def _finish(reason: str, stop: int | str | None) -> Finish:
    """Convert vLLM's finish reason: "stop" is a step boundary if a stop string was matched, else the end of the text."""
    if reason == "length":
        return "length"
    if reason == "stop":
        return "step" if isinstance(stop, str) else "stop"
    raise RuntimeError(f"vLLM aborted a sample: {reason}")
