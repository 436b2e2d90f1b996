"""Any OpenAI-compatible server: `/v1/completions`, with token ids if the server takes them, or `/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from tts.engines.http import BadRequestError, JsonClient, NoSuchPathError, ServerError, key_from_environment
from tts.errors import InputError
from tts.models import checkpoints
from tts.models.prompts import Prompter, check_chat_args
from tts.solving.confidence import confidence_of
from tts.trajectory import CLOSE, OPEN
from tts.types import Engine, Finish, Generation, Problem, Sampling, Step

EXTRAS: dict[str, dict[str, Any]] = {
    "vllm": {"include_stop_str_in_output": True, "return_token_ids": True},
    "sglang": {"no_stop_trim": True},
}
"""Options that make a server return stop strings and token ids, by `owned_by` in its /v1/models."""


MANY, FEW = 20, 5
"""Likeliest tokens per position that vLLM and SGLang report, and that the API allows elsewhere."""


class _Served(NamedTuple):
    """What a server says about the model."""

    name: str
    """The server's name for the model."""
    extras: dict[str, Any]
    """The options of EXTRAS for this kind of server; empty for a server that does not report why it stopped."""
    context: int | None
    """The model's context in tokens, if the server gives it."""


class ServerEngine(Engine):
    """A client of one server.

    The API key is taken from the environment variable TTS_API_KEY or OPENAI_API_KEY.

    Args:
        model: The server's name for the model. If it is also a bundled name, a folder or a hub id, its tokenizer is used.
        url: The server's address, such as http://127.0.0.1:8000.
        system: The system prompt, if any.
        prompt_template: The whole prompt in place of a chat template, as `Prompter` takes it.
        chat_template_args: Arguments of the chat template; with the chat API, its `chat_template_kwargs`.
        api: completions continues exact token ids, so that strategies can search step by step; chat gives only whole
            completions; auto (default) is completions, or chat if the server has no /v1/completions or no tokenizer is found.
        tokenizer: The model whose tokenizer is used, if it is not `model`.
        **client: Options of `tts.engines.http.JsonClient`: `concurrency`, `retries` and `timeout`.

    Raises:
        InputError: An option has a wrong value, or the tokenizer that `api=completions` needs is not found. `generate` raises
            it for a strategy that needs steps from an API that has none, and ServerError if the server fails.
    """

    address = "required"

    def __init__(
        self,
        model: str,
        *,
        url: str,
        system: str | None = None,
        prompt_template: str | None = None,
        chat_template_args: dict[str, Any] | None = None,
        api: Literal["auto", "completions", "chat"] = "auto",
        tokenizer: str | None = None,
        **client: Any,
    ) -> None:
        if api not in ("auto", "completions", "chat"):
            raise InputError(f"--engine-arg api is {api!r}; expected auto, completions or chat")
        key = key_from_environment()
        if prompt_template is not None and api == "chat":
            raise InputError(
                "--prompt-template needs /v1/completions: behind the chat API, the server applies its own chat template; omit"
                " --engine-arg api=chat, or --prompt-template"
            )
        self.model, self.system, self.chat_args = model, system, check_chat_args(chat_template_args)
        self.client = JsonClient(url, key=key, **client)
        self.prompter: Prompter | None = None
        if api != "chat":
            needed = api == "completions" or prompt_template is not None
            self.prompter = _find_prompter(tokenizer or model, system, prompt_template, self.chat_args, needed=needed)
        self.chat = self.prompter is None
        self._may_chat = api == "auto" and prompt_template is None
        self._problems: dict[tuple[int, ...], str] = {}
        self._served: _Served | None = None
        self._takes_ids = True

    def encode(self, problem: Problem) -> tuple[int, ...]:
        ids = self.prompter.encode(problem) if self.prompter else tuple(map(ord, problem.full_prompt))
        self._problems[ids] = problem.full_prompt
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        return self.prompter.decode(token_ids) if self.prompter else "".join(map(chr, token_ids))

    async def tells_steps(self) -> bool:
        """Return whether it reports why it stopped, as vLLM and SGLang do; chat completions have no steps."""
        served = await self._identify()
        return bool(served.extras) and not self.chat

    def tokenize(self, text: str) -> tuple[int, ...]:
        if self.prompter is None:
            raise InputError(f"{self.client.url} offers only whole chat completions; this strategy inserts text into solutions")
        return self.prompter.tokenize(text)

    async def generate(self, prefix: Sequence[int], n: int, sampling: Sampling) -> Generation:
        served = await self._identify()
        room = sampling.max_tokens
        if served.context is not None and not self.chat:  # some servers reject a max_tokens that does not fit
            room = min(room, checkpoints.room(served.context, len(prefix)))
        if sampling.temperature == 0 and n > 1:  # greedy samples are all equal, and vLLM refuses n > 1
            one = await self.generate(prefix, 1, sampling)
            return replace(one, steps=one.steps * n, generated_tokens=one.generated_tokens or len(one.steps[0].token_ids))
        body: dict[str, Any] = {
            "model": served.name, "n": n, "temperature": sampling.temperature, "top_p": sampling.top_p,
            "max_tokens": room, "seed": sampling.seed % 2**63,
        }  # fmt: skip
        if sampling.stop:
            if self.prompter is not None:
                self.prompter.check_stops(sampling.stop)
            body["stop"] = list(sampling.stop)
        if served.extras and self.prompter is not None and not self.prompter.skips_special:
            body["skip_special_tokens"] = False
        if not self.chat:
            try:
                return await self._complete(tuple(prefix), body | served.extras, sampling)
            except NoSuchPathError:
                if not self._may_chat:
                    raise
                self.chat, self.context = True, None
        return await self._converse(tuple(prefix), body, sampling)

    async def _complete(self, prefix: tuple[int, ...], body: dict[str, Any], sampling: Sampling) -> Generation:
        if sampling.logprobs or sampling.likeliest:
            served = await self._identify()
            body["logprobs"] = max(1, min(sampling.likeliest, MANY if served.extras else FEW))
        if self._takes_ids:
            try:
                answer = await self.client.post("/v1/completions", {**body, "prompt": list(prefix)})
            except BadRequestError as refusal:
                try:
                    answer = await self.client.post("/v1/completions", {**body, "prompt": self._as_text(prefix)})
                except BadRequestError:
                    raise refusal from None  # token ids were not the reason
                self._takes_ids = False
        else:
            answer = await self.client.post("/v1/completions", {**body, "prompt": self._as_text(prefix)})
        choices = _choices(answer, body["n"])
        return _with_usage(answer, tuple(self._step(choice, sampling) for choice in choices), len(prefix))

    def _step(self, choice: dict[str, Any], sampling: Sampling) -> Step:
        text, tokens = choice.get("text"), choice.get("token_ids")
        if not isinstance(text, str):
            raise ServerError(f"{self.client.url} returned a choice without text; is it an OpenAI-compatible server?")
        assert self.prompter is not None
        if tokens is None:  # a server that returns only text, which is tokenised here
            tokens = self.prompter.tokenizer.encode(text, add_special_tokens=False)
            if (self.decode(tokens) if self.prompter.skips_special else self._spelt_out(tokens)) != text:
                raise ServerError("the tokenizer does not reproduce the server's text; is it that of the model served?")
        logprobs = top = confidence = None
        if sampling.logprobs and choice.get("logprobs"):
            logprobs = tuple(float(value) for value in choice["logprobs"]["token_logprobs"])
        places = (choice.get("logprobs") or {}).get("top_logprobs") or () if sampling.likeliest else ()
        if sampling.top:
            top = tuple(place or {} for place in places) or None
        if sampling.confidence and places and all(isinstance(place, dict) and place for place in places):
            confidence = tuple(confidence_of(map(float, place.values()), sampling.confidence) for place in places)
        return Step(self.decode(tokens), tuple(tokens), _finish(choice, sampling), logprobs, top, confidence)

    def _as_text(self, prefix: tuple[int, ...]) -> str:
        """Return the prefix as text, for a server that takes only text. Raises ServerError if that would change its tokens."""
        assert self.prompter is not None
        text = self._spelt_out(prefix)
        if tuple(self.prompter.tokenizer.encode(text, add_special_tokens=False)) != prefix:
            raise ServerError("the server takes only text, and this prefix cannot be converted to text and back unchanged")
        return text

    def _spelt_out(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, with all special tokens."""
        assert self.prompter is not None
        decode: Any = self.prompter.tokenizer.decode
        return str(decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    async def _converse(self, prefix: tuple[int, ...], body: dict[str, Any], sampling: Sampling) -> Generation:
        if sampling.stop or prefix not in self._problems:
            raise InputError(
                f"{self.client.url} offers only whole chat completions; this strategy extends solutions step by step, or --stop"
                " ends them, which needs /v1/completions"
            )
        messages = [{"role": "system", "content": self.system}] if self.system is not None else []
        messages.append({"role": "user", "content": self._problems[prefix]})
        if self.chat_args:
            body["chat_template_kwargs"] = self.chat_args
        answer = await self.client.post("/v1/chat/completions", {**body, "messages": messages})
        steps = []
        for choice in _choices(answer, body["n"]):
            message = choice.get("message")
            if not isinstance(message, dict):
                raise ServerError(f"{self.client.url} returned a choice without message; is it an OpenAI-compatible server?")
            thinking = message.get("reasoning_content") or message.get("reasoning")
            text = (f"{OPEN}\n{thinking}\n{CLOSE}\n\n" if thinking else "") + (message.get("content") or "")
            steps.append(Step(text, (), "length" if choice.get("finish_reason") == "length" else "stop"))
        return _with_usage(answer, tuple(steps), len(prefix))

    async def _identify(self) -> _Served:
        """Ask the server about the model. Raises InputError if it serves several models, and not this one."""
        if self._served is None:
            try:
                answer = await self.client.get("/v1/models")
            except NoSuchPathError:
                answer = {"data": []}
            try:
                known = {str(entry["id"]): entry for entry in answer["data"]}
            except (KeyError, TypeError) as error:
                raise ServerError(
                    f"{self.client.url}/v1/models did not return a list of models; is it an OpenAI-compatible server?"
                ) from error
            wanted = [name for name in (self.model, _folder(self.model)) if name in known] or list(known)
            if len(wanted) > 1 and self.model not in known:
                raise InputError(f"{self.client.url} does not serve {self.model!r}; it serves: {', '.join(known)}")
            entry = known[wanted[0]] if wanted else {}
            extras = EXTRAS.get(str(entry.get("owned_by")), {})
            self._served = _Served(wanted[0] if wanted else self.model, extras, entry.get("max_model_len"))
            self.context = None if self.chat else self._served.context
            self.served = ", ".join([self._served.name, *(f"{k} {entry[k]}" for k in ("owned_by", "root") if entry.get(k))])
        return self._served

    async def close(self) -> None:
        await self.client.close()


def _find_prompter(model: str, *prompting: Any, needed: bool) -> Prompter | None:
    try:
        checkpoints.load_tokenizer(model)
    except InputError as error:
        if needed:
            raise InputError(f"{error}; name a model with the same tokenizer by --engine-arg tokenizer=NAME") from error
        return None  # a name that only the server knows
    return Prompter(model, *prompting)


def _folder(model: str) -> str:
    try:
        return checkpoints.locate(model)
    except InputError:
        return model


def _choices(answer: Any, n: int) -> list[dict[str, Any]]:
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or len(choices) != n or not all(isinstance(choice, dict) for choice in choices):
        raise ServerError(f"the server's answer does not have the {n} choices that were requested")
    return sorted(choices, key=lambda choice: choice.get("index", 0))


def _finish(choice: dict[str, Any], sampling: Sampling) -> Finish:
    if choice.get("finish_reason") == "length":
        return "length"
    if not sampling.stop:
        return "stop"
    for key in ("stop_reason", "matched_stop"):  # what was matched, in vLLM's and in SGLang's answers
        if key in choice:
            return "step" if isinstance(choice[key], str) else "stop"
    if str(choice["text"]).endswith(sampling.stop):
        return "step"
    raise ServerError(
        "the server does not report whether it stopped at a stop string or at the end of the text, which extending solutions"
        " step by step needs; vLLM and SGLang report it"
    )


def _with_usage(answer: dict[str, Any], steps: tuple[Step, ...], prefix: int) -> Generation:
    usage = answer.get("usage") or {}
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Generation(steps, usage.get("prompt_tokens", prefix), cached, usage.get("completion_tokens"))
