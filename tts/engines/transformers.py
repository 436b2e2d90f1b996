"""The embedded engine: a transformers model, decoded in one continuous batch.

A sample is a function of its prefix and its seed alone: every row's arithmetic is the same whatever runs beside it,
because rows and columns come in fixed multiples (with fewer rows, matrix libraries switch kernels and the last bits of a
row change), and its random numbers are a hash of (seed, position). Keys and values of a prompt are computed once for
all siblings, those of a step once for all its children.

The loop is our own because transformers' continuous batching is slower here and draws by no seed of a request's own. Tokens a
second of the bundled policy on two CPU cores, ours and `generate_batch`: 1,055 and 206 with 1 request under way, 9,284
and 1,432 with 16, 15,778 and 1,198 with 256 (one round of `python benchmarks/embedded.py --continuous`; no GPU was at hand).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import AutoModelForCausalLM

from tts.engines.decoding import DecodeLoop, Row
from tts.errors import InputError
from tts.models import checkpoints
from tts.models.prompts import Prompter
from tts.solving.segment import Segmenter
from tts.types import Engine, Generation, Sampling, Step


class TransformersEngine(Prompter, Engine):
    """Continuous batching over a `transformers` causal language model.

    `device` and `dtype` are those of `tts.models.checkpoints.load_weights`; `adapter` is a LoRA folder or hub id, merged into
    the weights.
    `max_rows` bounds the samples that decode together, `cache_gib` the memory for prefixes that may be continued.
    Raises InputError where the model cannot be used.
    """

    def __init__(
        self,
        model: str,
        *,
        system: str | None = None,
        adapter: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        max_rows: int = 256,
        cache_gib: float = 1.0,
    ) -> None:
        checkpoints.check_number("--engine-arg max_rows", max_rows, 1, whole=True)
        checkpoints.check_number("--engine-arg cache_gib", cache_gib, 0)
        config = checkpoints.load_policy_config(model)
        super().__init__(model, system)
        if not set(config.get("layer_types") or ()) <= {"full_attention", "sliding_attention"}:
            raise InputError(_unfit(model, config))
        # eager: its sums do not depend on the batch size or the padding; those of sdpa's CPU kernel do
        self.model: Any = checkpoints.load_weights(
            AutoModelForCausalLM, model, device=device, dtype=dtype, attn_implementation="eager"
        )
        if adapter is not None:
            self.model = checkpoints.merge_adapter(self.model, adapter)
        context = checkpoints.context_length(self.model.config.to_dict())
        if context is None:
            raise InputError(_unfit(model, config))
        self.context: int = context
        ends = self.model.generation_config.eos_token_id
        stops: set[int] = {self.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        self.loop = DecodeLoop(self.model, ends=stops, max_rows=max_rows, cache_bytes=int(cache_gib * 2**30))
        self._segmenters: dict[tuple[str, ...], Segmenter] = {}

    async def generate(self, prefix: Sequence[int], n: int, sampling: Sampling) -> Generation:
        room = checkpoints.room(self.context, len(prefix))
        if (segmenter := self._segmenters.get(sampling.stop)) is None:
            self.check_stops(sampling.stop)
            segmenter = self._segmenters[sampling.stop] = Segmenter(self.decode, sampling.stop)
        rows = [Row(tuple(prefix), sampling, sampling.seed + i, segmenter, min(sampling.max_tokens, room)) for i in range(n)]
        cached, waited = await self.loop.run(rows)
        steps = tuple(self._step(row) for row in rows)
        return Generation(steps, prompt_tokens=len(prefix), cached_tokens=cached, waited=waited)

    async def close(self) -> None:
        self.loop.close()

    def _step(self, row: Row) -> Step:
        return Step(self.decode(row.tokens), tuple(row.tokens), row.finish, tuple(row.logprobs) or None)


def _unfit(model: str, config: dict[str, Any]) -> str:
    return (
        f"{model!r} ({config.get('model_type')}) is not a plain attention model, which is all that the transformers engine"
        " decodes; use --engine vllm or sglang"
    )
