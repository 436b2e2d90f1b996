"""What runs a reward model: the interface of a reader, and the built-in readers by name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from tts.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tts.scorers.formats import Format

READERS = {
    "transformers": "tts.scorers.local:LocalReader",
    "vllm": "tts.scorers.pooling:VLLMReader",
    "server": "tts.scorers.pooling:ServerReader",
}
"""Import paths of the readers, by the name given to --scorer-engine."""


class Query(NamedTuple):
    """One token sequence, and the positions in it at which rewards are read."""

    ids: Sequence[int]
    positions: Sequence[int]
    """In ascending order. A readout with `marks_start` has one more in front: the last token before what its rewards add up."""
    whole: bool = False
    """Whether the reward rates the trace as a whole. Some checkpoints have a separate head for that."""


class Reader(Protocol):
    """A backend that runs a reward model: token ids and positions in, rewards out."""

    needs_url: ClassVar[bool]
    """Whether it is a client of a server and takes the keyword argument `url`."""
    pooling: ClassVar[bool]
    """Whether it computes only what vLLM's pooling runner does: readouts with `vllm` set, and no reward_head.pt."""

    def __init__(self, name: str, format: Format, tokenizer: PreTrainedTokenizerBase, **options: Any) -> None:
        """Load or connect to the model.

        Args:
            name: A bundled model's name, a folder or a hub id.
            format: How the model is shown a trace; its `readout` says how rewards are computed.
            tokenizer: The model's tokenizer.
            **options: Options of this reader, from --scorer-arg.

        Raises:
            InputError: The model cannot be loaded, or an option has a wrong value.
        """

    @property
    def context(self) -> int:
        """Maximum length of a sequence, in tokens."""
        ...

    async def prepare(self) -> None:
        """Ask for what only a running model knows, such as the context that a server was started with; called before `read`."""
        return

    async def check(self) -> None:
        """Find out whether it can be used. Raises InputError if not."""
        return

    async def read(self, queries: Sequence[Query]) -> list[list[float]]:
        """Return the rewards at each query's positions, in the order of the queries."""
        ...

    async def close(self) -> None:
        """Release processes and connections. The reader is not used afterwards."""
        ...


class LoadedModel(Protocol):
    """A reward model in the memory of this process, which is what a readout loads."""

    exact: bool
    """Whether its rewards are the same to the last bit whatever is computed beside them."""

    @property
    def context(self) -> int:
        """Maximum length of a sequence, in tokens."""
        ...

    def rewards(self, queries: Sequence[Query]) -> list[list[float]]:
        """Return the rewards at each query's positions."""
        ...


def load_reader(
    backend: str,
    name: str,
    format: Format,
    tokenizer: PreTrainedTokenizerBase,
    *,
    url: str | None = None,
    has_trace_head: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Reader:
    """Load a reward model with one of READERS.

    Args:
        backend: A name in READERS.
        name: The model: a bundled name, a folder or a hub id.
        format: How the model is shown a trace.
        tokenizer: The model's tokenizer.
        url: The server's address, for a reader that needs one.
        has_trace_head: Whether a reward_head.pt is going to be read.
        options: Keyword arguments of the reader.

    Raises:
        InputError: There is no such reader, it cannot compute this model's rewards, or it refuses an option.
    """
    if backend not in READERS:
        raise InputError(f"--scorer-engine is {backend!r}; expected one of {', '.join(READERS)}")
    module, _, attribute = READERS[backend].partition(":")
    reader: type[Reader] = getattr(importlib.import_module(module), attribute)
    settings = dict(options or {})
    if reader.needs_url:
        if url is None:
            raise InputError(f"--scorer-engine {backend} needs --scorer-url, such as --scorer-url http://127.0.0.1:8000")
        settings["url"] = url
    elif url is not None:
        raise InputError(f"--scorer-url does not go with --scorer-engine {backend}, which runs in this process")
    if reader.pooling and not format.readout.vllm:
        raise InputError(f"vLLM cannot compute the rewards of {name!r}; omit --scorer-engine")
    if reader.pooling and has_trace_head:
        raise InputError(
            f"{name!r} rates a trace with reward_head.pt, which vLLM cannot compute: omit --scorer-engine, or use --alpha 0 to"
            " score by the steps alone"
        )
    try:
        return reader(name, format, tokenizer, **settings)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        argument = str(error).rsplit(" ", 1)[-1]
        raise InputError(f"--scorer-arg: --scorer-engine {backend} does not accept {argument} for {name!r}") from error
