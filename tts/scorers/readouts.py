"""Readouts: how the hidden states of a reward model become rewards.

A readout is a small value that a format carries, such as `TwoTokens("+", "-")`. Only `load` imports torch, so that formats can
be listed without it. To add a readout, subclass `HeadReadout`: its `heads` returns the checkpoint's decoder and a function from
hidden states to rewards.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tts.scorers.heads import Heads
    from tts.scorers.reader import LoadedModel

TRACE_HEAD = "reward_head.pt"
"""The file of a checkpoint that holds a linear layer for the reward of a whole trace."""


class Readout(Protocol):
    """How one family of checkpoints turns hidden states into rewards."""

    vllm: ClassVar[bool]
    """Whether vLLM's pooling runner computes these rewards."""
    marks_start: ClassVar[bool]
    """Whether rewards add up from where the answer begins: a text then has one more READ than it has steps, the first of which
    marks that place and has no reward. The reward of the last step is that of the trace as a whole."""

    def load(
        self, name: str, tokenizer: PreTrainedTokenizerBase, *, cache_gib: float, batch_tokens: int, **options: Any
    ) -> LoadedModel:
        """Load a checkpoint into this process.

        Args:
            name: A bundled model's name, a folder or a hub id.
            tokenizer: The model's tokenizer.
            cache_gib: Memory for prefixes that may be read again, in GiB.
            batch_tokens: Tokens that go through the model at once.
            **options: Options of `tts.models.checkpoints.load_weights`.

        Raises:
            InputError: The checkpoint does not have what this readout needs.
        """
        ...


class HeadReadout(Readout, Protocol):
    """A readout that applies a function to the hidden state of each position. Subclass it as a frozen dataclass."""

    vllm: ClassVar[bool] = False
    marks_start: ClassVar[bool] = False

    @abstractmethod
    def heads(self, name: str, tokenizer: PreTrainedTokenizerBase, **options: Any) -> Heads:
        """Load a checkpoint's decoder and its reward heads; the arguments are those of `load`."""

    def load(
        self, name: str, tokenizer: PreTrainedTokenizerBase, *, cache_gib: float, batch_tokens: int, **options: Any
    ) -> LoadedModel:
        from tts.scorers.local import HeadModel

        return HeadModel(name, self.heads(name, tokenizer, **options), cache_gib=cache_gib, batch_tokens=batch_tokens)


@dataclass(frozen=True)
class TwoClasses(HeadReadout):
    """The probability of class 1 under a two-layer head with two classes, `score.0` and `score.2`.

    If the checkpoint has a `reward_head.pt`, that rates a trace as a whole.
    """

    vllm: ClassVar[bool] = True

    def heads(self, name: str, tokenizer: PreTrainedTokenizerBase, **options: Any) -> Heads:
        from tts.scorers import heads

        return heads.two_classes(name, **options)


@dataclass(frozen=True)
class TokenClasses(HeadReadout):
    """The probability of label 1 under transformers' token classification head with two labels."""

    vllm: ClassVar[bool] = True

    def heads(self, name: str, tokenizer: PreTrainedTokenizerBase, **options: Any) -> Heads:
        from tts.scorers import heads

        return heads.token_classes(name, **options)


@dataclass(frozen=True)
class TwoTokens(HeadReadout):
    """The probability that `good` comes next, divided by the probability that `good` or `bad` comes next."""

    good: str
    """Text of a single token that says that a step is correct."""
    bad: str
    """Text of a single token that says that a step is wrong."""

    def heads(self, name: str, tokenizer: PreTrainedTokenizerBase, **options: Any) -> Heads:
        from tts.scorers import heads

        return heads.two_tokens(name, tokenizer, self.good, self.bad, **options)


@dataclass(frozen=True)
class ValueHead(HeadReadout):
    """The sigmoid of a value head, the linear layer `v_head.summary` of a language model's checkpoint."""

    def heads(self, name: str, tokenizer: PreTrainedTokenizerBase, **options: Any) -> Heads:
        from tts.scorers import heads

        return heads.value_head(name, **options)


@dataclass(frozen=True)
class TraceHead(HeadReadout):
    """The sigmoid of the linear layer in `reward_head.pt`, next to a language model's weights."""

    def heads(self, name: str, tokenizer: PreTrainedTokenizerBase, **options: Any) -> Heads:
        from tts.scorers import heads

        return heads.trace_head(name, **options)


@dataclass(frozen=True)
class Implicit(Readout):
    """The log-ratio of two language models, summed from the start of the answer (implicit PRM, arXiv 2412.01981)."""

    vllm: ClassVar[bool] = False
    marks_start: ClassVar[bool] = True

    reference: str
    """The reference model that the checkpoint was trained from; `--scorer-arg reference=NAME` replaces it."""

    def load(
        self,
        name: str,
        tokenizer: PreTrainedTokenizerBase,
        *,
        cache_gib: float,
        batch_tokens: int,
        reference: str | None = None,
        **options: Any,
    ) -> LoadedModel:
        from tts.scorers.local import LogRatioModel

        return LogRatioModel(name, reference or self.reference, cache_gib=cache_gib, batch_tokens=batch_tokens, **options)
