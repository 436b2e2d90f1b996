"""What a model's generation_config.json recommends for sampling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tts.errors import InputError
from tts.models.checkpoints import first_line, locate
from tts.types import PARAMETERS

FILE = "generation_config.json"
RENAMED = {"min_new_tokens": "min_tokens"}
"""Names of transformers for fields of `tts.types.Sampling`."""


def recommended(name: str, *, required: bool = True) -> dict[str, Any]:
    """The parameters of sampling in a model's generation_config.json, by their names in `tts.types.Sampling`, not validated.

    `do_sample` is ignored, as servers ignore it, and so is `max_new_tokens`.

    Args:
        name: A bundled model's name, a folder or a hub id.
        required: Whether the file has to be there. Otherwise a file that is not on this machine, or cannot be read, recommends
            nothing.

    Raises:
        InputError: The file is required and cannot be read.
    """
    from transformers.utils.hub import cached_file

    try:
        path = cached_file(locate(name), FILE, local_files_only=not required)
        found = json.loads(Path(str(path)).read_text())
        if not isinstance(found, dict):
            raise InputError(f"{FILE} of {name!r} is not a JSON object")
    except (InputError, OSError, ValueError) as error:
        if not required:
            return {}
        raise InputError(f"--generation-config model: cannot read {FILE} of {name!r}: {first_line(error)}") from error
    values = {RENAMED.get(key, key): value for key, value in found.items() if value is not None}
    return {key: values[key] for key in PARAMETERS if key in values}
