"""The tokenizer of the bundled models: byte-level BPE, so that any text can be encoded, with one token per word of `arith`."""

from __future__ import annotations

import json
import random
from itertools import islice
from typing import TYPE_CHECKING

from tts.demo import arith

if TYPE_CHECKING:
    from transformers import Qwen2Tokenizer

SEPARATOR = "<extra_0>"
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_tokenizer() -> Qwen2Tokenizer:
    """Train the tokenizer on the teacher's solutions, with Qwen's pre-tokenization.

    Its control tokens are those of Qwen2.5-Math-PRM and Qwen3. It has to be a Qwen2Tokenizer, because AutoTokenizer uses
    that class for every model of type qwen2, whatever the folder says.
    """
    from transformers import AddedToken, Qwen2Tokenizer

    rng = random.Random(0)
    texts = [f"user\n{c.prompt}\nassistant\n{arith.teach(c, rng)}" for c in islice(arith.chains("train", 0, (2, 8)), 2000)]
    trained = Qwen2Tokenizer().train_new_from_iterator(texts, vocab_size=512, show_progress=False).backend_tokenizer
    model = json.loads(trained.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],  # type: ignore[misc]
        unk_token=None,  # type: ignore[arg-type]
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>", SEPARATOR],
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in ("<think>", "</think>")])
    tokenizer.chat_template = TEMPLATE
    return tokenizer
