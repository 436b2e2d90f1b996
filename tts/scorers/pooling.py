"""Reward models run by vLLM's pooling runner, in this process or behind a server: batched and cached as vLLM does it.

vLLM knows two-class step heads and token classification; it answers with class probabilities, of which the second is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import count
from typing import Any

from tts.engines.http import BadRequestError, JsonClient, ServerError, key_from_environment
from tts.engines.vllm import start
from tts.errors import InputError
from tts.models import checkpoints
from tts.scorers.reader import Query

TASK = "token_classify"


class VLLMReader:
    """vLLM in this process. Keyword arguments are those of its AsyncEngineArgs. Raises InputError where it refuses them."""

    def __init__(self, name: str, **arguments: Any) -> None:
        try:
            from vllm.config import PoolerConfig
        except ImportError:
            raise InputError("--scorer-engine vllm needs vLLM; install it with: pip install 'tts-toolkit[vllm]'") from None
        settings = {"runner": "pooling", "pooler_config": PoolerConfig(pooling_type="ALL"), "disable_log_stats": True}
        self.llm: Any = start(name, **(settings | arguments))
        self.context: int = self.llm.model_config.max_model_len
        self._number = count()

    async def read(self, queries: Sequence[Query]) -> list[list[float]]:
        return list(await asyncio.gather(*(self._one(query) for query in queries)))

    async def _one(self, query: Query) -> list[float]:
        from vllm import PoolingParams, TokensPrompt

        ids = list(query.ids[: query.positions[-1] + 1])
        prompt, parameters = TokensPrompt(prompt_token_ids=ids), PoolingParams(task=TASK)
        async for output in self.llm.encode(prompt, parameters, f"tts-score-{next(self._number)}"):
            return pick(query, output.outputs.data.tolist())
        raise RuntimeError("vLLM gave a sequence up")

    async def close(self) -> None:
        self.llm.shutdown()
        self.llm = None  # it would shut down once more while the interpreter ends, and complain


class ServerReader:
    """A server started by `vllm serve MODEL --runner pooling`, with or without step pooling."""

    def __init__(
        self, name: str, url: str, *, served: str | None = None, concurrency: int = 64, retries: int = 5, timeout: float = 600.0
    ) -> None:
        """`served` is the server's name for the model, where it is another."""
        key = key_from_environment()
        self.client = JsonClient(url, key=key, concurrency=concurrency, retries=retries, timeout=timeout)
        self.model = served or checkpoints.locate(name)
        context = checkpoints.context_length(checkpoints.load_config(name))
        if context is None:
            raise InputError(f"config.json of {name!r} does not say how long a text it can read")
        self.context = context

    async def read(self, queries: Sequence[Query]) -> list[list[float]]:
        return list(await asyncio.gather(*(self._one(query) for query in queries)))

    async def _one(self, query: Query) -> list[float]:
        body = {"model": self.model, "task": TASK, "input": list(query.ids[: query.positions[-1] + 1])}
        try:
            answer = await self.client.post("/pooling", body)
        except BadRequestError as error:
            raise ServerError(f"{error}; is it a reward model, served by `vllm serve MODEL --runner pooling`?") from error
        try:
            return pick(query, answer["data"][0]["data"])
        except (KeyError, IndexError, TypeError) as error:
            raise ServerError(
                f"{self.client.url}/pooling did not answer as vLLM does: {checkpoints.first_line(error)}"
            ) from error

    async def close(self) -> None:
        await self.client.close()


def pick(query: Query, rows: Sequence[Sequence[float]]) -> list[float]:
    """The rewards at a query's positions, of one row for every token, or one for every token like those that are read."""
    last = query.positions[-1]
    where = list(range(last + 1))
    if len(rows) != len(where):
        where = [i for i in where if query.ids[i] == query.ids[last]]
    if len(rows) != len(where) or any(len(row) != 2 for row in rows):
        raise ServerError(
            f"vLLM answered {last + 1} tokens with {len(rows)} rows; expected two numbers for each, or for each of"
            f' {len(where)} steps. Start it with --pooler-config \'{{"pooling_type": "ALL"}}\''
        )
    by_position = dict(zip(where, rows, strict=True))
    return [float(by_position[at][1]) for at in query.positions]
