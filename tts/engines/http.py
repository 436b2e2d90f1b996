"""The client of a server: the official `openai` client, with an end to every request however the server behaves.

Addresses, keys, proxies, Azure and connections are the official client's. What it lacks is here:

- It repeats requests by their status code alone. A server may also report a passing error in a body of status 200, or send a
  body that breaks off or is empty, so its retries are turned off and there is one loop for all of them, bounded in time.
- It reads bodies of any length for any time, and decompresses what was not asked for.
- It has no paths besides OpenAI's, such as /pooling and SGLang's /generate, which stand beside /v1.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import random
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit, urlunsplit

import openai

from tts.errors import InputError

T = TypeVar("T")

LARGEST = 256 * 2**20
"""Bytes of an answer, at most."""

BUSY = {408, 409, 425, 429}
"""Status codes, besides all from 500, after which the same request may succeed."""

VERSION = re.compile(r"/v\d[\w.]*(/openai)?$|/openai(/|$)")
"""How the path of an API ends; to any other address, /v1 is added."""


def key_from_environment() -> str | None:
    """Return the API key: the environment variable TTS_API_KEY, or else OPENAI_API_KEY, or None."""
    return os.environ.get("TTS_API_KEY") or os.environ.get("OPENAI_API_KEY")


class ServerError(RuntimeError):
    """A server failed to answer as expected. The message gives the address, the answer and what to try."""


class BusyError(ServerError):
    """The same request may succeed later: the server is busy, cannot be reached, or its answer is broken."""

    def __init__(self, message: str, *, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait
        """Seconds that the server asks to wait."""


class LostError(BusyError):
    """The server cannot be reached, broke the connection or did not answer in time."""


class BadRequestError(ServerError):
    """The server rejected the request (status 400, 413 or 422)."""

    def __init__(self, message: str, *, said: str = "") -> None:
        super().__init__(message)
        self.said = said
        """The server's own words, whole."""


class NoSuchPathError(ServerError):
    """The server does not have this path, or the model (status 404 or 405)."""


class DeniedError(ServerError):
    """The server does not accept the API key (status 401 or 403)."""


class JsonClient:
    """A client for one server, to be used in a single event loop.

    A request is repeated, after waits that grow from about 0.5 s to 60 s, if the server is busy, does not answer or answers
    with something broken; all of it takes at most twice the timeout. The key is sent in a header and stored nowhere.

    Args:
        url: The server's address. /v1 is added unless it has the path of an API, such as /v1beta/openai, or of a deployment on
            Azure, with its ?api-version=.
        key: The API key, if any.
        concurrency: Maximum number of requests under way at once.
        retries: How often a request is repeated.
        timeout: Seconds to wait for an answer.

    Raises:
        InputError: The URL is malformed.
    """

    def __init__(
        self, url: str, *, key: str | None = None, concurrency: int = 64, retries: int = 5, timeout: float = 600.0
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise InputError(f"{url!r} is not the URL of a server; it should look like http://127.0.0.1:8000")
        path = parts.path.rstrip("/")
        api = path if VERSION.search(path) else f"{path}/v1"
        self.base = urlunsplit((parts.scheme, parts.netloc, api, "", ""))
        """Where the paths of OpenAI's API are."""
        self.url = urlunsplit((parts.scheme, parts.netloc, api.removesuffix("/v1"), "", ""))
        """Where other paths are, and the server's name in messages."""
        self.query, self.retries, self.timeout = dict(parse_qsl(parts.query)), retries, timeout
        self.waits_for_lost = True
        """Whether a request is repeated where the server is lost; not where another one can take it."""
        self._key = key or "none"
        self._options: Any = {} if key else {"headers": {"Authorization": openai.Omit()}}
        self._slots = asyncio.Semaphore(concurrency)
        self._client: openai.AsyncOpenAI | None = None

    def address(self, path: str) -> str:
        """The whole address: of OpenAI's API for a path that begins with /v1, otherwise beside it."""
        return self.base + path.removeprefix("/v1") if path.startswith("/v1/") else self.url + path

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """Send a POST request; return the answer's JSON. Raises ServerError."""
        return await self.ask(path, body, lambda answer: answer)

    async def ask(self, path: str, body: dict[str, Any], read: Callable[[Any], T], *, retries: int | None = None) -> T:
        """Send a POST request.

        Args:
            path: Of OpenAI's API if it begins with /v1, as /v1/completions; otherwise beside it, as /pooling.
            body: What is sent, as JSON.
            read: Makes the result of the answer's JSON. Where it raises BusyError, the request is repeated.
            retries: How often it is repeated; by default as often as the client repeats requests.

        Raises:
            ServerError: There is no good answer.
        """
        return await self._ask("POST", path, body, read, retries)

    async def get(self, path: str, *, retries: int | None = None) -> Any:
        """Send a GET request; return the answer's JSON. Raises ServerError."""
        return await self._ask("GET", path, None, lambda answer: answer, retries)

    async def _ask(
        self, method: str, path: str, body: dict[str, Any] | None, read: Callable[[Any], T], retries: int | None = None
    ) -> T:
        retries, end = self.retries if retries is None else retries, time.monotonic() + 2 * self.timeout
        async with self._slots:
            for attempt in range(retries + 1):
                try:
                    return read(self._parse(path, await self._send(method, path, body)))
                except BusyError as error:
                    wait = max(min(60.0, 0.5 * 2**attempt) * random.uniform(0.5, 1.5), error.wait)
                    final = isinstance(error, LostError) and not self.waits_for_lost
                    if attempt == retries or final or time.monotonic() + wait > end:
                        tried = f" ({attempt + 1} attempts)" if attempt else ""
                        running = "; is it running?" if isinstance(error, LostError) else ""
                        raise type(error)(f"{error}{tried}{running}") from error
                    await asyncio.sleep(wait)
        raise AssertionError

    async def _send(self, method: str, path: str, body: dict[str, Any] | None) -> str:
        """The text of an answer. Raises ServerError."""
        where, client = self.address(path), self._connected()
        try:
            async with asyncio.timeout(self.timeout):
                if method == "GET":
                    return await client.get(where, cast_to=str, options=self._options)
                return await client.post(where, cast_to=str, body=body, options=self._options)
        except (TimeoutError, openai.APITimeoutError):
            raise LostError(f"the server at {self.url} did not answer within {self.timeout:g} s") from None
        except openai.APIStatusError as error:
            raise self._refusal(where, error) from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            if isinstance(cause, ServerError):
                raise cause from None
            why = " ".join(str(cause).split()) or type(cause).__name__
            raise LostError(f"the server at {self.url} cannot be reached or broke the connection: {why}") from None

    def _refusal(self, where: str, error: openai.APIStatusError) -> ServerError:
        """What an answer with an error status comes to."""
        status, said = error.status_code, words_of(error.response.text)
        match status:
            case 401 | 403:
                return DeniedError(
                    f"{where} rejected the API key ({status}): {excerpt(said)}; set TTS_API_KEY or OPENAI_API_KEY"
                )
            case 404 | 405:
                return NoSuchPathError(f"{where} answered {status}: {excerpt(said)}")
            case 400 | 413 | 422:
                return BadRequestError(f"{where} rejected the request ({status}): {excerpt(said)}", said=said)
        if status in BUSY or status >= 500:
            return BusyError(f"the server at {self.url} answered {status}: {excerpt(said)}", wait=_retry_after(error.response))
        return ServerError(f"{where} answered {status}: {excerpt(said)}")

    def _parse(self, path: str, text: str) -> Any:
        """The JSON of an answer of status 200, which may be an error all the same. Raises ServerError."""
        where = self.address(path)
        if not text.strip():
            raise BusyError(f"{where} answered with an empty body")
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError):
            if text.lstrip().startswith("<"):
                raise ServerError(f"{where} answered with a web page, not JSON; is this the URL of an API?") from None
            raise BusyError(f"{where} answered with something other than JSON: {excerpt(text)}") from None
        if isinstance(answer, dict) and answer.get("error") and not answer.get("choices"):
            said, code = words_of(text), answer["error"].get("code") if isinstance(answer["error"], dict) else None
            if str(code) in ("400", "404", "413", "422"):
                raise BadRequestError(f"{where} rejected the request: {excerpt(said)}", said=said)
            raise BusyError(f"{where} answered with an error: {excerpt(said)}")
        return answer

    def _connected(self) -> openai.AsyncOpenAI:
        if self._client is None:
            common: dict[str, Any] = {
                "api_key": self._key, "max_retries": 0, "timeout": self.timeout,
                "http_client": _Bounded(timeout=self.timeout, headers={"Accept-Encoding": "gzip, deflate"}),
            }  # fmt: skip
            query = dict(self.query)
            if (version := query.pop("api-version", None)) is not None:
                self._client = openai.AsyncAzureOpenAI(
                    base_url=self.base, api_version=version, default_query={"api-version": version, **query}, **common
                )
            else:
                self._client = openai.AsyncOpenAI(base_url=self.base, default_query=query or None, **common)
        return self._client

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()
            self._client = None


class _Bounded(openai.DefaultAsyncHttpxClient):
    """An HTTP client that reads no more than LARGEST bytes of a body, decompressed."""

    async def send(self, request: Any, **options: Any) -> Any:
        response = await super().send(request, **{**options, "stream": True})
        where = f"{request.url.scheme}://{request.url.netloc.decode()}{request.url.path}"
        try:
            if response.headers.get("content-encoding", "identity") not in ("identity", "gzip", "deflate", ""):
                raise ServerError(f"{where} answered in an encoding that was not asked for")
            body = bytearray()
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > LARGEST:
                    raise ServerError(f"{where} sent more than {LARGEST // 2**20} MiB; is it the right server?")
        finally:
            await response.aclose()
        about = {name: value for name, value in response.headers.items() if name in ("content-type", "retry-after")}
        return type(response)(response.status_code, headers=about, content=bytes(body), request=request)


def words_of(text: str) -> str:
    """A server's own words of an error, in whatever shape they come."""
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        return re.sub(r"<[^>]*>", " ", text)
    for key in ("error", "detail", "message"):
        if isinstance(answer, dict) and answer.get(key):
            answer = answer[key]
    if isinstance(answer, list):  # as FastAPI lists what is wrong: {"loc": ["body", "seed"], "msg": "…"}
        answer = "; ".join(
            f"{'.'.join(map(str, item.get('loc', ())))}: {item.get('msg')}" if isinstance(item, dict) else str(item)
            for item in answer
        )
    return answer if isinstance(answer, str) else json.dumps(answer)


def _retry_after(response: Any) -> float:
    """Return how many seconds the server asks to wait, as a number or a date; at most 120, and 0 if it does not say."""
    value = response.headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return 0.0
    return min(max(seconds, 0.0), 120.0)


def excerpt(text: str) -> str:
    """The beginning of a text from outside, on one line and without control characters."""
    printable = "".join(char if char.isprintable() else " " for char in text[:2000])
    return " ".join(printable.split())[:300] or "(nothing)"
