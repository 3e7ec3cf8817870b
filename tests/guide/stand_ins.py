"""Stand-ins for the two packages that are not worth installing for this: `yfinance` and `streamlit`."""

from collections.abc import Callable
from types import ModuleType, TracebackType
from typing import Self


def yfinance(fetch: Callable[[str], float]) -> ModuleType:
    """Return a `yfinance` whose prices are fetched by a function."""

    class Ticker:
        def __init__(self, ticker: str) -> None:
            self._ticker = ticker

        @property
        def info(self) -> dict[str, float]:
            return {"currentPrice": fetch(self._ticker)}

    module = ModuleType("yfinance")
    module.Ticker = Ticker  # type: ignore[attr-defined]  # a module made here
    return module


class Streamlit(ModuleType):
    """A page that remembers what was put on it, and whose button is pressed or not."""

    def __init__(self, *, pressed: bool) -> None:
        super().__init__("streamlit")
        self.pressed = pressed
        self.headers: list[str] = []
        self.metrics: dict[str, object] = {}
        self.buttons: list[str] = []
        self.successes: list[str] = []

    def subheader(self, text: str) -> None:
        self.headers.append(text)

    def columns(self, count: int) -> list["Column"]:
        return [Column() for _ in range(count)]

    def metric(self, label: str, value: object) -> None:
        self.metrics[label] = value

    def button(self, label: str) -> bool:
        self.buttons.append(label)
        return self.pressed

    def success(self, text: str) -> None:
        self.successes.append(text)


class Column:
    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing."""
