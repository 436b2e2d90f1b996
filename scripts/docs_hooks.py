"""Add pages to the site that are not files under docs/: the reference generated from code, CONTRIBUTING.md and CHANGELOG.md.

mkdocs calls the functions named on_…; mkdocs.yml names this file under `hooks`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
GENERATED = "Reference"
"""Heading of the navigation that gets the generated pages."""
COPIED = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
"""Pages of the site to files of the repository."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the generated pages into the navigation, before those that are listed there."""
    section: list[Any] = next(entry[GENERATED] for entry in config.nav or [] if GENERATED in entry)
    listed = {path for entry in section if isinstance(entry, dict) for path in entry.values()}
    new = [{title(text): path} for path, text in reference_pages().items() if path not in listed]
    section[1:1] = new  # behind the section's index
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and the repository's own documents with their links adjusted."""
    pages = reference_pages()
    for page, source in COPIED.items():
        pages[page] = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
    for path, text in pages.items():
        if files.get_file_from_path(path) is not None:
            raise PluginError(f"docs/{path} is generated; remove the file")
        files.append(File.generated(config, path, content=text))
    return files


def reference_pages() -> dict[str, str]:
    """Paths under docs/ to Markdown, from `tts.show.reference.pages`. Raises PluginError where it cannot be had."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    try:
        from tts.show.reference import pages
    except ImportError as error:
        raise PluginError(f"the command reference cannot be generated: {error}") from error
    found = pages()
    if not found or not all(path.endswith(".md") and text.startswith("# ") for path, text in found.items()):
        raise PluginError(
            f"tts.show.reference.pages() should map paths that end in .md to Markdown with a title; got {[*found]}"
        )
    return dict(found)


def title(text: str) -> str:
    """The first heading of a page."""
    match = re.match(r"# (.+)", text)
    assert match is not None
    return match[1].strip()
