"""The README's Python examples run as they stand."""

import re
from pathlib import Path
from typing import Any

import pytest

import magnus_cache
from magnus_cache.embedded import EmbeddedServer

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=[str(index) for index in range(len(BLOCKS))])
def test_an_example_runs(block: str, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_PORT", str(server.port))
    names: dict[str, Any] = {"__name__": "readme", "slow_rate_limited_api": lambda ticker: {"ticker": ticker}}
    exec(compile(block, "README.md", "exec"), names)
    if "get_stock_price" in names:
        assert names["get_stock_price"]("AAPL") == names["get_stock_price"]("AAPL") == {"ticker": "AAPL"}
        assert names["get_stock_price"].cache_info()[:3] == (1, 1, 1)
    if "options_chain" in names:
        assert names["options_chain"].cache_info().loads == 2
    if "cache" in names:
        names["cache"].close()


def test_every_public_name_is_in_the_readme() -> None:
    text = README.read_text(encoding="utf-8")
    undocumented = [name for name in magnus_cache.__all__ if name not in text]
    assert undocumented == []
