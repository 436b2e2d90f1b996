"""SGLang: its engine in this process, or a server's native endpoint `/generate`, which takes and returns token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tts.engines.counting import bias_of, check_counts
from tts.engines.http import JsonClient, NoSuchPathError, ServerError, key_from_environment
from tts.errors import InputError, UnsupportedError
from tts.models import adapters, checkpoints, weights
from tts.models.prompts import Prompter
from tts.models.untrusted import reading
from tts.solving.confidence import confidence_of
from tts.types import Engine, Finish, Generation, Sampling, Step

PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")


class SGLangEngine(Prompter, Engine):
    """An engine on sglang.Engine, or a client of an SGLang server.

    SGLang caches prefixes in its radix cache. It takes no seed per sample except in its deterministic mode, which not every
    backend supports, so the samples of two runs differ.

    The log-probabilities that SGLang reports of what it draws are those after penalties and temperature. Where these change
    anything, the samples are read again, as prompts, whose log-probabilities are the model's own.

    Args:
        model: A bundled model's name, a folder or a hub id. Its tokenizer and its context are used also with `url`.
        url: The address of a running server. By default the engine runs in this process.
        system: The system prompt, if any.
        prompt_template: The whole prompt in place of a chat template, as `Prompter` takes it.
        chat_template_args: Arguments of the chat template.
        adapter: A LoRA adapter, a folder or a hub id, for the engine in this process.
        enable_custom_logit_processor: Whether tts applies the penalties itself, in the engine in this process, with its batches
            not overlapping. Without it, those that SGLang counts otherwise (`tts.engines.counting`) are refused.
        **arguments: Arguments of sglang.Engine, such as `tp_size` or `dtype`; with `url`, those of
            `tts.engines.http.JsonClient`.

    Raises:
        InputError: SGLang refuses the model or an argument, or the URL is malformed. `generate` raises it for penalties that
            SGLang would count otherwise, and for a prefix that fills the context.
    """

    requires, address = "sglang", "optional"

    def __init__(
        self,
        model: str,
        *,
        url: str | None = None,
        system: str | None = None,
        prompt_template: str | None = None,
        chat_template_args: dict[str, Any] | None = None,
        adapter: str | None = None,
        enable_custom_logit_processor: bool = False,
        **arguments: Any,
    ) -> None:
        config = checkpoints.load_policy_config(model)
        super().__init__(model, system, prompt_template, chat_template_args)
        context = arguments.get("context_length") or checkpoints.context_length(config) or self.tokenizer.model_max_length
        self.context: int = int(context) - 1  # SGLang keeps one position free
        self.client: JsonClient | None = None
        self.engine: Any = None
        self.lora: dict[str, str] = {}
        self.processor: str | None = None
        if url is not None:
            if enable_custom_logit_processor:
                raise InputError("--engine-arg enable_custom_logit_processor is for SGLang in this process; omit it, or --url")
            self.client = JsonClient(url, key=key_from_environment(), **arguments)
            return
        import sglang

        settings: dict[str, Any] = {"log_level": "warning", "trust_remote_code": False}
        if adapter is not None:
            adapters.adapter_config(adapter)
            settings |= {"enable_lora": True, "lora_paths": {"adapter": adapters.locate_adapter(adapter)}}
            self.lora = {"lora_path": "adapter"}
        if enable_custom_logit_processor:
            from tts.engines.sglang_penalties import Penalties

            # with overlap, a batch is drawn before its requests know their last token
            settings |= {"enable_custom_logit_processor": True, "disable_overlap_schedule": True}
            self.processor = Penalties.to_str()
        weights.check_weights(model)
        with reading("SGLang failed to start"):
            self.engine = sglang.Engine(model_path=checkpoints.locate(model), **(settings | arguments))

    async def check(self) -> None:
        """Ask a server for one token. Raises InputError if it cannot be used."""
        if self.client is None:
            return
        try:
            await self._ask({"input_ids": [0], "sampling_params": {"max_new_tokens": 1}})
        except NoSuchPathError as error:
            raise InputError(f"{error}; is it an SGLang server? For others, use --engine server") from error
        except ServerError as error:
            raise InputError(str(error)) from error

    def check_sampling(self, sampling: Sampling) -> None:
        if self.processor is None:
            try:
                check_counts(sampling, "SGLang", repeats_prompt=False)
            except UnsupportedError as error:
                if self.client is not None:
                    raise
                raise UnsupportedError(f"{error}; or add --engine-arg enable_custom_logit_processor=true") from None

    async def generate(self, prefix: Sequence[int], n: int, sampling: Sampling) -> Generation:
        room = checkpoints.room(self.context, len(prefix))
        self.check_sampling(sampling)
        self.check_stops(sampling.stop)
        most = min(sampling.max_tokens, room)
        parameters = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or -1,
            "min_p": sampling.min_p,
            "min_new_tokens": min(sampling.min_tokens, most),
            "max_new_tokens": most,
            "stop": list(sampling.stop),
            "no_stop_trim": True,
            "skip_special_tokens": self.skips_special,
        }
        wanted = sampling.logprobs or sampling.likeliest > 0
        request: dict[str, Any] = {"return_logprob": wanted and sampling.raw, **self.lora}
        penalties = {name: getattr(sampling, name) for name in PENALTIES}
        if self.processor is not None and sampling.penalized:
            request["custom_logit_processor"] = self.processor
            parameters["custom_params"] = {**penalties, "written": sampling.written}
        else:
            parameters |= penalties
            if bias := bias_of(sampling, prefix):
                parameters["logit_bias"] = {str(token): value for token, value in bias.items()}
        if sampling.likeliest:
            request["top_logprobs_num"] = sampling.likeliest
        request["sampling_params"] = parameters
        if n == 1:
            outputs = [first := await self._ask({"input_ids": list(prefix), **request})]
        else:  # as SGLang does for `n` itself; a request of our own shows how much of the prefix was cached
            prefill = parameters | {"min_new_tokens": 0, "max_new_tokens": 0}
            first = await self._ask({"input_ids": list(prefix), **request, "sampling_params": prefill})
            outputs = await self._ask({"input_ids": [list(prefix)] * n, **request})
        cached = first["meta_info"].get("cached_tokens", 0)
        if wanted and not sampling.raw:
            await self._read_again(prefix, outputs, sampling)
        return Generation(tuple(self._step(output, sampling) for output in outputs), len(prefix), min(cached, len(prefix)))

    async def _read_again(self, prefix: Sequence[int], outputs: list[dict[str, Any]], sampling: Sampling) -> None:
        """Put the model's own log-probabilities of samples into their outputs, as SGLang reports those of prompts."""
        drawn = [output for output in outputs if output["output_ids"]]
        request = {
            "input_ids": [[*prefix, *output["output_ids"]] for output in drawn],
            "sampling_params": {"max_new_tokens": 0, "temperature": 1.0},
            "return_logprob": True,
            "logprob_start_len": len(prefix) - 1,  # the first position has none
            **({"top_logprobs_num": sampling.likeliest} if sampling.likeliest else {}),
            **self.lora,
        }
        for output, again in zip(drawn, await self._ask(request) if drawn else (), strict=True):
            for kind in ("token_logprobs", "top_logprobs"):
                output["meta_info"][f"output_{kind}"] = (again["meta_info"].get(f"input_{kind}") or [])[1:]

    async def _ask(self, request: dict[str, Any]) -> Any:
        return await (self.client.post("/generate", request) if self.client else self.engine.async_generate(**request))

    def _step(self, output: dict[str, Any], sampling: Sampling) -> Step:
        tokens, meta = tuple(output["output_ids"]), output["meta_info"]
        logprobs = top = confidence = None
        if "output_token_logprobs" in meta:
            logprobs = tuple(float(entry[0]) for entry in meta["output_token_logprobs"])
        if places := meta.get("output_top_logprobs"):
            if sampling.top:
                top = tuple(self.spelled((entry[1], entry[0]) for entry in at or ()) for at in places)
            if count := sampling.confidence:
                confidence = tuple(confidence_of((float(entry[0]) for entry in at), count) for at in places)
        return Step(self.decode(tokens), tokens, _finish(meta["finish_reason"]), logprobs, top, confidence)

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
    raise RuntimeError(f"SGLang aborted a sample: {reason.get('message', reason)}")
