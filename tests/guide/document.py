"""The guide and its Python blocks, by their place in the document."""

import re
from pathlib import Path

PATH = Path(__file__).with_name("redis_cache_integration_guide.md")
SHA256 = "d5e6fc692da7431fec35e3ac93cba6d3abcd68bd096c64fd629d987d2f8cba68"
ORIGINAL = Path(__file__).parents[2] / ".." / "shared" / PATH.name
"""Where the document itself is while the project is worked on; a fresh clone has the copy only."""

_BLOCK = re.compile(r"^```py\w*[^\S\n]*\n(.*?)^```[^\S\n]*$", re.MULTILINE | re.DOTALL)

_IMPORTS = {
    "src.cache.redis_cache_manager": "magnus_cache.redis_cache_manager",
    # The script that warms the cache imports Example 1's client, which the tests provide.
    "src.robinhood_client": "robinhood_client",
}


def blocks_of(text: str) -> list[str]:
    """Return the text of each block marked as Python, in order."""
    return _BLOCK.findall(text)


BLOCKS = blocks_of(PATH.read_text(encoding="utf-8"))


def with_our_imports(block: str) -> str:
    """Return a block with nothing changed but where it imports from."""
    for theirs, ours in _IMPORTS.items():
        block = re.sub(rf"^(\s*from ){re.escape(theirs)}(?= import )", rf"\g<1>{ours}", block, flags=re.MULTILINE)
    return block


def module_name(block: str) -> str:
    """Return the name of the module that a block's first line, such as ``# src/options_scanner.py``, tells of."""
    found = re.match(r"# (?:\w+/)*(\w+)\.py\n", block)
    return found.group(1) if found else "guide_block"
