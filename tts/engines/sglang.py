"""SGLang: its engine in this process, or its native server (`/generate`), with token ids in and out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from tts.engines.http import JsonClient
from tts.errors import InputError
from tts.models import checkpoints
from tts.models.prompts import Prompter
from tts.types import Engine, Finish, Generation, Sampling, Step


class SGLangEngine(Prompter, Engine):
    """With `url`, a running server; else an sglang.Engine, whose keyword arguments these then are (`tp_size`, `dtype`, …).

    SGLang's radix cache keeps what was computed of a prefix. It takes no seed for each sample (its deterministic mode, which
    would, does not run on every backend): results of two runs differ.
    """

    requires, address = "sglang", "optional"

    def __init__(
        self, model: str, *, url: str | None = None, system: str | None = None, adapter: str | None = None, **arguments: Any
    ) -> None:
        config = checkpoints.load_policy_config(model)
        super().__init__(model, system)
        context = arguments.get("context_length") or checkpoints.context_length(config) or self.tokenizer.model_max_length
        self.context: int = int(context) - 1  # SGLang keeps one position free
        self.client: JsonClient | None = None
        self.engine: Any = None
        self.lora: dict[str, str] = {}
        if url is not None:
            self.client = JsonClient(url, key=os.environ.get("TTS_API_KEY"), **arguments)
            return
        import sglang

        settings: dict[str, Any] = {"log_level": "warning"}
        if adapter is not None:
            settings |= {"enable_lora": True, "lora_paths": {"adapter": checkpoints.locate_adapter(adapter)}}
            self.lora = {"lora_path": "adapter"}
        try:
            self.engine = sglang.Engine(model_path=checkpoints.locate(model), **(settings | arguments))
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"SGLang does not start: {checkpoints.first_line(error)}") from error

    async def generate(self, prefix: Sequence[int], n: int, sampling: Sampling) -> Generation:
        room = checkpoints.room(self.context, len(prefix))
        self.check_stops(sampling.stop)
        parameters = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_new_tokens": min(sampling.max_tokens, room),
            "stop": list(sampling.stop),
            "no_stop_trim": True,
            "skip_special_tokens": True,
        }
        request = {"sampling_params": parameters, "return_logprob": sampling.logprobs, **self.lora}
        if n == 1:
            outputs = [first := await self._ask({"input_ids": list(prefix), **request})]
        else:  # as SGLang does for its own `n`, but so that the prefix's one pass is seen and billed
            nothing = parameters | {"max_new_tokens": 0}
            first = await self._ask({"input_ids": list(prefix), **request, "sampling_params": nothing})
            outputs = await self._ask({"input_ids": [list(prefix)] * n, **request})
        cached = first["meta_info"].get("cached_tokens", 0)
        return Generation(tuple(self._step(output) for output in outputs), len(prefix), min(cached, len(prefix)))

    async def _ask(self, request: dict[str, Any]) -> Any:
        return await (self.client.post("/generate", request) if self.client else self.engine.async_generate(**request))

    def _step(self, output: dict[str, Any]) -> Step:
        tokens, meta = tuple(output["output_ids"]), output["meta_info"]
        logprobs = None
        if "output_token_logprobs" in meta:
            logprobs = tuple(float(entry[0]) for entry in meta["output_token_logprobs"])
        return Step(self.decode(tokens), tokens, _finish(meta["finish_reason"]), logprobs)

    async def close(self) -> None:
        if self.client is not None:
            await self.client.close()
        if self.engine is not None:
            self.engine.shutdown()


def _finish(reason: dict[str, Any]) -> Finish:
    match reason:
        case {"type": "length"}:
            return "length"
        case {"type": "stop", "matched": str()}:
            return "step"
        case {"type": "stop"}:
            return "stop"
    raise RuntimeError(f"SGLang gave a sample up: {reason.get('message', reason)}")
