"""A client for JSON over HTTP that copes with servers that are busy, slow, broken or gone."""

from __future__ import annotations

import asyncio
import email.utils
import os
import random
import time
from typing import Any
from urllib.parse import urlsplit

import httpx

from tts.errors import InputError

BUSY = {408, 425, 429, 500, 502, 503, 504}
"""Status codes after which the same request may succeed."""


def key_from_environment() -> str | None:
    """Return the API key: the environment variable TTS_API_KEY, or else OPENAI_API_KEY, or None."""
    return os.environ.get("TTS_API_KEY") or os.environ.get("OPENAI_API_KEY")


class ServerError(RuntimeError):
    """A server failed to answer as expected. The message gives the address, the answer and what to try."""


class BadRequestError(ServerError):
    """The server rejected the request (status 400 or 422)."""


class NoSuchPathError(ServerError):
    """The server does not have this path (status 404 or 405)."""


class JsonClient:
    """A client for one server, to be used in a single event loop.

    A request is repeated, after waits that grow from about 0.5 s to 60 s, if the server is busy or does not answer. The key is
    sent in a header and stored nowhere.

    Args:
        url: The server's address, with or without /v1.
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
        self.url, self.retries, self.timeout = url.rstrip("/").removesuffix("/v1"), retries, timeout
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._slots = asyncio.Semaphore(concurrency)
        self._client: httpx.AsyncClient | None = None

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """Send a POST request; return the answer's JSON. Raises ServerError."""
        return await self._ask("POST", path, body)

    async def get(self, path: str) -> Any:
        """Send a GET request; return the answer's JSON. Raises ServerError."""
        return await self._ask("GET", path, None)

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        async with self._slots:
            for attempt in range(self.retries + 1):
                wait = min(60.0, 0.5 * 2**attempt) * random.uniform(0.5, 1.5)
                try:
                    response = await self._connected().request(method, self.url + path, json=body)
                except httpx.TimeoutException:
                    problem = f"did not answer within {self.timeout:g} s"
                except httpx.TransportError as error:
                    problem = f"cannot be reached or broke the connection: {error or type(error).__name__}"
                else:
                    if response.status_code not in BUSY:
                        return self._read(path, response)
                    problem = f"answered {response.status_code} {response.reason_phrase}: {_excerpt(response.text)}"
                    wait = max(wait, _retry_after(response))
                if attempt < self.retries:
                    await asyncio.sleep(wait)
        raise ServerError(f"the server at {self.url} {problem} ({self.retries + 1} attempts); is it running?")

    def _read(self, path: str, response: httpx.Response) -> Any:
        where = f"{self.url}{path}"
        match response.status_code:
            case 200:
                try:
                    return response.json()
                except ValueError:  # not JSON, or not even text
                    kind = response.headers.get("content-type", "no content type")
                    raise ServerError(f"{where} answered with {kind}, not JSON; is this the URL of an API?") from None
            case 401 | 403:
                raise ServerError(f"{where} rejected the API key ({response.status_code}); set TTS_API_KEY or OPENAI_API_KEY")
            case 404 | 405:
                raise NoSuchPathError(
                    f"{where} does not exist ({response.status_code}): {_excerpt(response.text)}; is the URL that of the right"
                    " server?"
                )
            case 400 | 422:
                raise BadRequestError(f"{where} rejected the request ({response.status_code}): {_excerpt(response.text)}")
        raise ServerError(f"{where} answered {response.status_code}: {_excerpt(response.text)}")

    def _connected(self) -> httpx.AsyncClient:
        if self._client is None:
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
            self._client = httpx.AsyncClient(headers=self._headers, timeout=self.timeout, limits=limits)
        return self._client

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None


def _retry_after(response: httpx.Response) -> float:
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


def _excerpt(text: str) -> str:
    return " ".join(text.split())[:200] or "(nothing)"
