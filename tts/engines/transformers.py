"""The embedded engine: a transformers model in this process, with continuous batching.

A sample depends only on its prefix and its seed. The arithmetic of a row is the same whatever else is in the batch, because
rows and columns come in fixed multiples (`tts.engines.kv`), and its random numbers are a hash of (seed, position). The keys and
values of a prompt are computed once for all samples of a request, and those of a step once for all its children.

The loop is not transformers' own continuous batching, which is slower here and takes no seed per request. Tokens per second of
the bundled policy on two CPU cores, this engine and `generate_batch`: 1,055 and 206 with 1 request at a time, 9,284 and 1,432
with 16, 15,778 and 1,198 with 256 (one run of `python benchmarks/embedded.py --continuous`; not measured on a GPU).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from tts.engines.decoding import DecodeLoop, Sample, check_logits
from tts.errors import InputError
from tts.models import adapters, checkpoints, weights
from tts.models.prompts import PROBE, Prompter
from tts.models.untrusted import reading
from tts.solving.segment import Segmenter
from tts.types import Engine, Generation, Problem, Sampling, Step


class TransformersEngine(Prompter, Engine):
    """Continuous batching for a `transformers` causal language model.

    Args:
        model: A bundled model's name, a folder or a hub id.
        system: The system prompt, if any.
        prompt_template: The whole prompt in place of a chat template, as `Prompter` takes it.
        chat_template_args: Arguments of the chat template.
        adapter: A LoRA adapter, a folder or a hub id, to merge into the weights.
        device: auto (CUDA if available, else MPS, else the CPU), cpu, cuda, cuda:1, mps, ….
        dtype: auto (that of the checkpoint), float32, bfloat16 or float16.
        max_rows: Maximum number of samples that are decoded at once.
        cache_gib: Memory for keys and values of prefixes that may be continued, in GiB.

    Raises:
        InputError: The model cannot be used, or an option has a wrong value. `generate` raises it for a prefix that fills the
            context and for a stop string that can never appear, and MemoryError if memory runs out.
    """

    def __init__(
        self,
        model: str,
        *,
        system: str | None = None,
        prompt_template: str | None = None,
        chat_template_args: dict[str, Any] | None = None,
        adapter: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        max_rows: int = 256,
        cache_gib: float = 1.0,
    ) -> None:
        checkpoints.check_number("--engine-arg max_rows", max_rows, 1, whole=True)
        checkpoints.check_number("--engine-arg cache_gib", cache_gib, 0)
        config = checkpoints.load_policy_config(model)
        super().__init__(model, system, prompt_template, chat_template_args)
        if not set(config.get("layer_types") or ()) <= {"full_attention", "sliding_attention"}:
            raise InputError(_unfit(model, config))
        # eager attention, whose sums do not depend on batch size or padding as those of sdpa's CPU kernel do
        self.model: Any = weights.load_weights(
            AutoModelForCausalLM, model, device=device, dtype=dtype, attn_implementation="eager"
        )
        if adapter is not None:
            self.model = adapters.merge_adapter(self.model, adapter)
        self.vocabulary = weights.Vocabulary(model, self.model.get_input_embeddings().weight.shape[0])
        self.vocabulary.check_tokenizer(self.tokenizer)
        self.exact = weights.is_exact(self.model)
        context = checkpoints.context_length(self.model.config.to_dict())
        if context is None:
            raise InputError(_unfit(model, config))
        self.context: int = context
        self._check_runs(model)
        ends = self.model.generation_config.eos_token_id
        ends = [self.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])]
        stops = {end for end in ends if isinstance(end, int)}
        with reading(f"cannot run {model!r}"):
            self.loop = DecodeLoop(self.model, ends=stops, max_rows=max_rows, cache_bytes=int(cache_gib * 2**30))
        self._segmenters: dict[tuple[str, ...], Segmenter] = {}

    @torch.inference_mode()
    def _check_runs(self, model: str) -> None:
        """Raise InputError if the model cannot continue a short prompt with numbers, before a run begins."""
        prompt = self.encode(Problem("", PROBE))
        self.vocabulary.check(prompt)
        with reading(f"cannot run {model!r}"):
            ids = torch.tensor([prompt[: self.context]], device=self.model.device)
            check_logits(self.model(input_ids=ids, use_cache=False).logits)

    async def generate(self, prefix: Sequence[int], n: int, sampling: Sampling) -> Generation:
        room = checkpoints.room(self.context, len(prefix))
        self.vocabulary.check(prefix)
        if (segmenter := self._segmenters.get(sampling.stop)) is None:
            self.check_stops(sampling.stop)
            segmenter = self._segmenters[sampling.stop] = Segmenter(self.decode, sampling.stop)
        most = min(sampling.max_tokens, room)
        samples = [Sample(tuple(prefix), sampling, sampling.seed + i, segmenter, most) for i in range(n)]
        cached, waited = await self.loop.run(samples)
        steps = tuple(self._step(sample) for sample in samples)
        return Generation(steps, prompt_tokens=len(prefix), cached_tokens=cached, waited=waited)

    async def close(self) -> None:
        self.loop.close()

    def _step(self, sample: Sample) -> Step:
        logprobs, confidence = tuple(sample.logprobs) or None, tuple(sample.confidence) or None
        top = tuple(self.spelled(likeliest) for likeliest in sample.top) or None
        return Step(self.decode(sample.tokens), tuple(sample.tokens), sample.finish, logprobs, top, confidence)


def _unfit(model: str, config: dict[str, Any]) -> str:
    return (
        f"{model!r} ({config.get('model_type')}) has layers other than plain attention, which the transformers engine cannot"
        " decode; use --engine vllm or sglang"
    )
