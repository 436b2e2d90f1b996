"""Any OpenAI-compatible server: `/v1/completions`, with token ids if the server takes them, or `/v1/chat/completions`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from tts.engines.answers import Answer, Choice, reader
from tts.engines.counting import bias_of, check_counts, cut_at_stop
from tts.engines.dialect import Dialect
from tts.engines.http import BadRequestError, JsonClient, LostError, NoSuchPathError, ServerError, excerpt, key_from_environment
from tts.engines.served import Served, read_models
from tts.errors import InputError, UnsupportedError
from tts.models import checkpoints
from tts.models.prompts import Prompter, check_chat_args
from tts.solving.confidence import confidence_of
from tts.trajectory import CLOSE, OPEN
from tts.types import PARAMETERS, Engine, Finish, Generation, Problem, Sampling, Step

MANY, FEW = 20, 5
"""Likeliest tokens per position that vLLM and SGLang report, and that the API allows elsewhere."""

SEEDS = 2**31
"""Number of seeds: all servers take those below, and some no others."""

DOUBTS = 3
"""Requests of which all choices are equal that are looked into: does the server repeat itself under one seed?"""

PROBE = Problem("probe", "Hello", None)
"""What a server is asked before the first problem."""


class ServerEngine(Engine):
    """A client of one server.

    The API key is taken from the environment variable TTS_API_KEY or OPENAI_API_KEY. What a server refuses is not sent again,
    or under another name; what it leaves out is asked for again. `notices` says so.

    Args:
        model: The server's name for the model. If it is also a bundled name, a folder or a hub id, its tokenizer is used.
        url: The server's address, such as http://127.0.0.1:8000; by default that of the environment variable OPENAI_BASE_URL.
        system: The system prompt, if any.
        prompt_template: The whole prompt in place of a chat template, as `Prompter` takes it.
        chat_template_args: Arguments of the chat template; with the chat API, its `chat_template_kwargs`.
        api: completions continues exact token ids, so that strategies can search step by step; chat gives only whole
            completions; auto (default) is completions, or chat if the server has no /v1/completions or no tokenizer is found.
        tokenizer: The model whose tokenizer is used, if it is not `model`.
        drop: Parameters that are not sent, with commas between, such as seed,top_p; n for one candidate a request.
        rename: Other names of parameters, such as max_tokens:max_completion_tokens, with commas between.
        **client: Options of `tts.engines.http.JsonClient`: `concurrency`, `retries` and `timeout`.

    Raises:
        InputError: An option has a wrong value, or the tokenizer that `api=completions` needs is not found. `check` raises it
            for a server that cannot be used. `generate` raises UnsupportedError for a strategy that needs steps from an API
            that has none, and ServerError if the server fails.
    """

    address = "required"

    def __init__(
        self,
        model: str,
        *,
        url: str | None = None,
        system: str | None = None,
        prompt_template: str | None = None,
        chat_template_args: dict[str, Any] | None = None,
        api: Literal["auto", "completions", "chat"] = "auto",
        tokenizer: str | None = None,
        drop: str = "",
        rename: str = "",
        **client: Any,
    ) -> None:
        if api not in ("auto", "completions", "chat"):
            raise InputError(f"--engine-arg api is {api!r}; expected auto, completions or chat")
        if prompt_template is not None and api == "chat":
            raise InputError(
                "--prompt-template needs /v1/completions: behind the chat API, the server applies its own chat template; omit"
                " --engine-arg api=chat, or --prompt-template"
            )
        url = url or os.environ.get("OPENAI_BASE_URL")
        if not url:
            raise InputError("--engine server needs --url, such as --url http://127.0.0.1:8000, or OPENAI_BASE_URL")
        self.model, self.system, self.chat_args = model, system, check_chat_args(chat_template_args)
        self.client = JsonClient(url, key=key_from_environment(), **client)
        self.dialect = Dialect(self.client.url, filter(None, drop.split(",")), _pairs(rename))
        self.prompter: Prompter | None = None
        if api != "chat":
            needed = api == "completions" or prompt_template is not None
            self.prompter = _find_prompter(tokenizer or model, system, prompt_template, self.chat_args, needed=needed)
        self._may_chat = api == "auto" and prompt_template is None
        self._prompts: dict[tuple[int, ...], str] = {}
        """Of what was encoded before it was known that the server only chats."""
        self._served: Served | None = None
        self._asking = asyncio.Lock()
        self._takes_ids = True
        self._doubts = DOUBTS

    @property
    def chat(self) -> bool:
        """Whether it speaks the chat API. Then token ids are characters, as no tokenizer is known."""
        return self.prompter is None

    @property
    def notices(self) -> Sequence[str]:
        return self.dialect.notices

    def encode(self, problem: Problem) -> tuple[int, ...]:
        text = problem.full_prompt
        if self.prompter is None:
            return tuple(map(ord, text))
        ids = self.prompter.encode(problem)
        if self._may_chat:
            self._prompts[ids] = text
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        return self.prompter.decode(token_ids) if self.prompter else "".join(map(chr, token_ids))

    async def tells_steps(self) -> bool:
        """Return whether it reports why it stopped, as vLLM and SGLang do; chat completions have no steps."""
        served = await self._identify()
        return bool(served.extras) and not self.chat

    def tokenize(self, text: str) -> tuple[int, ...]:
        if self.prompter is None:
            raise UnsupportedError(
                f"{self.client.url} offers only whole chat completions; this strategy inserts text into solutions"
            )
        return self.prompter.tokenize(text)

    async def check(self) -> None:
        """Ask for the models and for one token, and learn what the server takes. Raises InputError if it cannot be used."""
        try:
            served = await self._identify(retries=1)
            body = self._body(served, 1, replace(Sampling(), max_tokens=1), self.encode(PROBE))
            await self._ask(self.encode(PROBE), body)
        except BadRequestError:
            return  # one token may be too little; what is wrong with a problem's request is said then
        except NoSuchPathError as error:
            known = self._served.known if self._served else ()
            listed = f"it serves: {', '.join(known)}" if known else "it does not list its models"
            raise InputError(f"{error}; --model is {self.model!r}, and {listed}") from error
        except ServerError as error:
            raise InputError(str(error)) from error
        if served.known and served.name not in served.known:
            self.dialect.note(
                f"the server at {self.client.url} lists {', '.join(served.known[:5])}, but answers as {served.name}"
            )

    async def generate(self, prefix: Sequence[int], n: int, sampling: Sampling) -> Generation:
        served = await self._identify()
        if sampling.temperature == 0 and n > 1:  # greedy samples are all equal, and vLLM refuses n > 1
            one = await self.generate(prefix, 1, sampling)
            return replace(one, steps=one.steps * n, generated_tokens=one.generated_tokens or len(one.steps[0].token_ids))
        body = self._body(served, n, sampling, prefix)
        choices, answers = await self._draw(tuple(prefix), body, n, sampling.seed)
        counts = [answer.generated_tokens for answer in answers]
        if self.chat and None in counts:
            self.dialect.note(f"the server at {self.client.url} does not say how many tokens it generated; they count as 0")
        return Generation(
            tuple(self._step(choice, sampling) for choice in choices),
            next((answer.prompt_tokens for answer in answers if answer.prompt_tokens is not None), len(prefix)),
            max(answer.cached_tokens for answer in answers),
            None if None in counts else sum(filter(None, counts)),
        )

    def _body(self, served: Served, n: int, sampling: Sampling, prefix: Sequence[int]) -> dict[str, Any]:
        """A request without its prompt."""
        if self.chat and sampling.stop:
            raise self._chats_only()
        room = sampling.max_tokens
        if served.context is not None and not self.chat:  # some servers reject a max_tokens that does not fit
            room = min(room, checkpoints.room(served.context, len(prefix)))
        body: dict[str, Any] = {"model": served.name, "n": n, "max_tokens": room, "seed": sampling.seed % SEEDS}
        check_counts(sampling, f"the server at {self.client.url}", repeats_prompt=served.owner != "sglang")
        if served.owner == "sglang" and (sampling.logprobs or sampling.likeliest) and not sampling.raw:
            raise UnsupportedError(
                f"{self.client.url} reports log-probabilities after temperature and penalties; use --engine sglang with this"
                " --url, which reports the model's own, or --temperature 1 without penalties"
            )
        # what is at its default is sent only to servers that would put the model's own default in its place
        body |= sampling.parameters(neutral=served.fills)
        if "min_tokens" in body:
            body["min_tokens"] = min(sampling.min_tokens, room)
        if sampling.logprobs or sampling.likeliest:
            count = min(sampling.likeliest, MANY if served.extras else FEW)
            body |= {"logprobs": True, "top_logprobs": count} if self.chat else {"logprobs": max(1, count)}
        if self.chat:
            return body | ({"chat_template_kwargs": self.chat_args} if self.chat_args else {})
        assert self.prompter is not None
        if bias := bias_of(sampling, prefix):
            body["logit_bias"] = {str(token): value for token, value in bias.items()}
        if sampling.stop:
            self.prompter.check_stops(sampling.stop)
            body["stop"] = list(sampling.stop)
        if served.extras and not self.prompter.skips_special:
            body["skip_special_tokens"] = False
        return body | served.extras

    async def _draw(
        self, prefix: tuple[int, ...], body: dict[str, Any], n: int, seed: int
    ) -> tuple[list[Choice], list[Answer]]:
        """n choices that did not fail, and all answers. Failed and missing choices are drawn again, with seeds of their own.

        Raises ServerError where more often than the client's `retries` no choice of a request was good.
        """
        choices: list[Choice] = []
        answers: list[Answer] = []
        asked = barren = 0
        doubtful = False
        while len(choices) < n:
            missing = n - len(choices)
            together = (self.dialect.many and not doubtful) or missing == 1
            sizes = [missing] if together else [1] * missing
            bodies = [body | {"n": size, "seed": (seed + asked + i) % SEEDS} for i, size in enumerate(sizes)]
            asked += missing
            got = await asyncio.gather(*(self._ask(prefix, one) for one in bodies))
            answers += got
            good = [choice for answer in got for choice in answer.choices]
            failed = [reason for answer in got for reason in answer.failed]
            if together and missing > 1:
                if len(good) + len(failed) < missing:
                    self.dialect.single(f"answers n = {missing} with {len(good) + len(failed)}")
                elif self._doubts and len(good) == missing and len({choice.key for choice in good}) == 1:
                    self._doubts -= 1
                    doubtful, good = True, good[:1]
            choices += good[:missing]
            barren = 0 if good else barren + 1
            if barren > self.client.retries:
                why = failed[0] if failed else "no choices"
                raise ServerError(
                    f"{self.client.url} failed at {missing} of {n} candidates, {barren} times in a row: {excerpt(why)}"
                )
        if doubtful and len({choice.key for choice in choices}) > 1:
            self.dialect.single("answers n > 1 with equal samples under one seed")
        return choices, answers

    async def _ask(self, prefix: tuple[int, ...], body: dict[str, Any]) -> Answer:
        """The answer to one request, made in the way that the server takes. Raises ServerError."""
        if self.prompter is not None:
            try:
                return await self._complete(prefix, body)
            except NoSuchPathError:
                if not self._may_chat:
                    raise
                self.prompter = self.context = None
                kept = ("model", "n", "max_tokens", "seed", *PARAMETERS)
                if body.get("stop"):
                    raise self._chats_only() from None
                body = {name: value for name, value in body.items() if name in kept}
        messages = [{"role": "system", "content": self.system}] if self.system is not None else []
        messages.append({"role": "user", "content": self._prompts.get(prefix) or self.decode(prefix)})
        return await self._post("/v1/chat/completions", {**body, "messages": messages}, chat=True)

    def _chats_only(self) -> UnsupportedError:
        return UnsupportedError(
            f"{self.client.url} offers only whole chat completions; this strategy extends solutions step by step, or --stop"
            " ends them, which needs /v1/completions"
        )

    async def _complete(self, prefix: tuple[int, ...], body: dict[str, Any]) -> Answer:
        path = "/v1/completions"
        if not self._takes_ids:
            return await self._post(path, {**body, "prompt": self._as_text(prefix)})
        try:
            answer = await self._post(path, {**body, "prompt": list(prefix)})
        except BadRequestError as refusal:
            try:
                answer = await self._post(path, {**body, "prompt": self._as_text(prefix)})
            except BadRequestError:
                raise refusal from None  # token ids were not the reason
            self._takes_ids = False
        self._may_chat = False
        self._prompts.clear()
        return answer

    async def _post(self, path: str, body: dict[str, Any], *, chat: bool = False) -> Answer:
        """Send a request until the server takes it, without what it refuses. Raises ServerError."""
        read = reader(self.client.address(path), chat=chat)
        while True:
            sent = self.dialect.write(body)
            try:
                return await self.client.ask(path, sent, read)
            except BadRequestError as refusal:
                # another request may have learned the same meanwhile
                if self.dialect.write(body) == sent and not self.dialect.learn(refusal, sent):
                    raise

    def _step(self, choice: Choice, sampling: Sampling) -> Step:
        top = confidence = None
        places = choice.likeliest if sampling.likeliest else ()
        if sampling.top:
            top = places or None
        if sampling.confidence and places and all(places):
            confidence = tuple(confidence_of(place.values(), sampling.confidence) for place in places)
        logprobs = choice.logprobs if sampling.logprobs and choice.logprobs else None
        if self.prompter is None:
            unclosed = choice.finish == "length" and not choice.text
            thinking = choice.thinking and f"{OPEN}\n{choice.thinking}" + ("" if unclosed else f"\n{CLOSE}\n\n")
            return Step(thinking + choice.text, (), choice.finish, logprobs, top, confidence)
        tokens, text = choice.token_ids, choice.text
        if tokens is None:  # a server that returns only text, which is tokenised here
            tokens = tuple(self.prompter.tokenizer.encode(text, add_special_tokens=False))
            if (self.decode(tokens) if self.prompter.skips_special else self._spelt_out(tokens)) != text:
                self.dialect.note(
                    f"the tokenizer of {self.model} does not reproduce all texts of the server at {self.client.url}, so numbers"
                    " of tokens are estimates; is the server's model another one?"
                )
        else:
            text = self.decode(tokens)
        if logprobs is not None and len(logprobs) != len(tokens):
            logprobs = None  # not of these tokens
        step = Step(text, tokens, self._finish(choice, sampling), logprobs, top, confidence)
        return cut_at_stop(step, sampling, self.decode)

    def _finish(self, choice: Choice, sampling: Sampling) -> Finish:
        if choice.finish == "length" or not sampling.stop:
            return choice.finish
        if choice.tells:
            return "step" if choice.matched is not None else "stop"
        if choice.text.endswith(sampling.stop):
            return "step"
        raise UnsupportedError(
            f"{self.client.url} does not report whether it stopped at a stop string or at the end of the text, which extending"
            " solutions step by step needs, and --stop; vLLM and SGLang report it"
        )

    def _as_text(self, prefix: tuple[int, ...]) -> str:
        """Return the prefix as text, for a server that takes only text."""
        assert self.prompter is not None
        text = self._spelt_out(prefix)
        if tuple(self.prompter.tokenizer.encode(text, add_special_tokens=False)) != prefix:
            self.dialect.note(
                f"the server at {self.client.url} takes only text, and some prefixes become other tokens than were drawn"
            )
        return text

    def _spelt_out(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, with all special tokens."""
        assert self.prompter is not None
        decode: Any = self.prompter.tokenizer.decode
        return str(decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    async def _identify(self, *, retries: int | None = None) -> Served:
        """Ask the server about the model, once. Raises ServerError."""
        async with self._asking:
            if self._served is None:
                try:
                    answer = await self.client.get("/v1/models", retries=retries)
                except LostError:
                    raise
                except ServerError:  # it does not list its models, or not to everybody: a request says whether it can be used
                    answer = None
                self._served = read_models(answer, self.model)
                self.served = self._served.about
                if self._served.extras:
                    self._doubts = 0  # vLLM and SGLang draw n different samples
                self.context = None if self.chat else self._served.context
        return self._served

    async def close(self) -> None:
        await self.client.close()


def _pairs(text: str) -> dict[str, str]:
    pairs = [pair.partition(":") for pair in text.split(",") if pair]
    if bad := [old for old, colon, new in pairs if not (old and colon and new)]:
        raise InputError(f"--engine-arg rename has {bad[0]!r}; expected OLD:NEW, such as max_tokens:max_completion_tokens")
    return {old: new for old, _, new in pairs}


def _find_prompter(model: str, *prompting: Any, needed: bool) -> Prompter | None:
    try:
        checkpoints.load_tokenizer(model)
    except InputError as error:
        if needed:
            raise InputError(f"{error}; name a model with the same tokenizer by --engine-arg tokenizer=NAME") from error
        return None  # a name that only the server knows
    return Prompter(model, *prompting)
