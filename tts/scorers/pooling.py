"""Reward models run by vLLM's pooling runner, in this process or in a server, with vLLM's batching and prefix caching.

vLLM computes two-class step heads and token classification. It answers with class probabilities, of which the second is used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BaseModel, Field, ValidationError

from tts.engines.http import BadRequestError, JsonClient, NoSuchPathError, ServerError, key_from_environment
from tts.engines.vllm import start
from tts.errors import InputError
from tts.models import checkpoints
from tts.scorers.reader import Query

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tts.scorers.formats import Format

TASK = "token_classify"
"""vLLM's name for a reward at every token."""


class _Rows(BaseModel):
    data: list[list[float]]


class _Pooled(BaseModel):
    """What /pooling answers."""

    data: Annotated[list[_Rows], Field(min_length=1)]


class VLLMReader:
    """vLLM's pooling runner in this process.

    Args:
        name: A bundled model's name, a folder or a hub id.
        format: Not used: vLLM takes the head from the architecture.
        tokenizer: Not used: vLLM is given token ids.
        **arguments: Arguments of vLLM's AsyncEngineArgs, such as `dtype` or `tensor_parallel_size`.

    Raises:
        InputError: vLLM is not installed, or refuses the model or an argument.
    """

    needs_url: ClassVar[bool] = False
    pooling: ClassVar[bool] = True

    def __init__(self, name: str, format: Format, tokenizer: PreTrainedTokenizerBase, **arguments: Any) -> None:
        try:
            from vllm.config import PoolerConfig
        except ImportError:
            raise InputError("--scorer-engine vllm needs vLLM; install it with: pip install 'tts-toolkit[vllm]'") from None
        settings = {"runner": "pooling", "pooler_config": PoolerConfig(pooling_type="ALL"), "disable_log_stats": True}
        self.llm: Any = start(name, **(settings | arguments))
        self.context: int = self.llm.model_config.max_model_len
        self._number = count()

    async def prepare(self) -> None:
        """Do nothing: the model is loaded."""

    async def check(self) -> None:
        return

    async def read(self, queries: Sequence[Query]) -> list[list[float]]:
        return list(await asyncio.gather(*(self._one(query) for query in queries)))

    async def _one(self, query: Query) -> list[float]:
        from vllm import PoolingParams, TokensPrompt

        ids = list(query.ids[: query.positions[-1] + 1])
        prompt, parameters = TokensPrompt(prompt_token_ids=ids), PoolingParams(task=TASK)
        async for output in self.llm.encode(prompt, parameters, f"tts-score-{next(self._number)}"):
            return pick(query, output.outputs.data.tolist())
        raise RuntimeError("vLLM aborted a sequence")

    async def close(self) -> None:
        self.llm.shutdown()
        self.llm = None  # else it shuts down again at interpreter exit, with an error message


class ServerReader:
    """A client of a server started by `vllm serve MODEL --runner pooling`, with or without step pooling.

    Args:
        name: The model, a bundled name, a folder or a hub id; its config.json gives the context, unless the server says that
            its own is shorter (`max_model_len` in /v1/models, as vLLM does).
        format: Not used: vLLM takes the head from the architecture.
        tokenizer: Not used: the server is given token ids.
        url: The server's address, such as http://127.0.0.1:8000.
        served: The server's name for the model, if it is not the same.
        concurrency: Maximum number of requests under way at once.
        retries: How often a request is repeated if the server is busy or does not answer.
        timeout: Seconds to wait for an answer.

    Raises:
        InputError: The URL is malformed, or config.json of the model does not give its context.
    """

    needs_url: ClassVar[bool] = True
    pooling: ClassVar[bool] = True

    def __init__(
        self,
        name: str,
        format: Format,
        tokenizer: PreTrainedTokenizerBase,
        *,
        url: str,
        served: str | None = None,
        concurrency: int = 64,
        retries: int = 5,
        timeout: float = 600.0,
    ) -> None:
        key = key_from_environment()
        self.client = JsonClient(url, key=key, concurrency=concurrency, retries=retries, timeout=timeout)
        self.model = served or checkpoints.locate(name)
        context = checkpoints.context_length(checkpoints.load_config(name))
        if context is None:
            raise InputError(f"config.json of {name!r} does not say how many tokens the model can read")
        self.context = context
        self._asked = False

    async def prepare(self) -> None:
        """Ask the server for its context, which may be shorter than that of the model."""
        if self._asked:
            return
        try:
            entries = (await self.client.get("/v1/models"))["data"]
            own = [entry["max_model_len"] for entry in entries if entry["id"] == self.model or len(entries) == 1]
        except (NoSuchPathError, KeyError, TypeError):
            own = []
        self.context = min([self.context, *(length for length in own if isinstance(length, int))])
        self._asked = True

    async def check(self) -> None:
        """Ask for the reward of one token. Raises InputError if the server cannot be used."""
        try:
            await self._rows([0], retries=1)
        except ServerError as error:
            raise InputError(str(error)) from error

    async def read(self, queries: Sequence[Query]) -> list[list[float]]:
        return list(await asyncio.gather(*(self._one(query) for query in queries)))

    async def _one(self, query: Query) -> list[float]:
        return pick(query, await self._rows(query.ids[: query.positions[-1] + 1]))

    async def _rows(self, ids: Sequence[int], *, retries: int | None = None) -> list[list[float]]:
        """The class probabilities of each token, or of each step token. Raises ServerError."""
        body = {"model": self.model, "task": TASK, "input": list(ids)}
        try:
            return await self.client.ask("/pooling", body, self._checked, retries=retries)
        except (BadRequestError, NoSuchPathError) as error:
            raise ServerError(f"{error}; is it a reward model served by `vllm serve MODEL --runner pooling`?") from error

    def _checked(self, answer: Any) -> list[list[float]]:
        try:
            return _Pooled.model_validate(answer).data[0].data
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"])) or "the answer"
            raise ServerError(f"{self.client.url}/pooling did not answer in vLLM's format: {place}: {first['msg']}") from None

    async def close(self) -> None:
        await self.client.close()


def pick(query: Query, rows: Sequence[Sequence[float]]) -> list[float]:
    """Return the rewards at a query's positions.

    `rows` are class probabilities, [classes] each: one row for each token, or, with step pooling, one for each token that is
    the same as the last. Raises ServerError for any other number of rows or classes.
    """
    last = query.positions[-1]
    where = list(range(last + 1))
    if len(rows) != len(where):
        where = [i for i in where if query.ids[i] == query.ids[last]]
    if len(rows) != len(where) or any(len(row) != 2 for row in rows):
        raise ServerError(
            f"vLLM answered {last + 1} tokens with {len(rows)} rows; expected two numbers for each token, or for each of"
            f' {len(where)} step tokens. Start it with --pooler-config \'{{"pooling_type": "ALL"}}\''
        )
    by_position = dict(zip(where, rows, strict=True))
    return [float(by_position[at][1]) for at in query.positions]
