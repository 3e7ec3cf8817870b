"""The wheel and the sdist of the checkout: those that a session of nox has built, or new ones."""

import os
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parents[2]

__all__ = ["Distributions", "built_in"]


class Distributions(NamedTuple):
    wheel: Path
    sdist: Path


def built_in(folder: Path) -> Distributions:
    """Return the distributions of the session, or build them in a folder."""
    place = os.environ.get("MAGNUS_CACHE_DIST")
    if place is None:
        from hatchling.builders.sdist import SdistBuilder
        from hatchling.builders.wheel import WheelBuilder

        for builder in (SdistBuilder, WheelBuilder):
            list(builder(str(ROOT)).build(directory=str(folder), versions=["standard"]))
    found = Path(place) if place is not None else folder
    (wheel,), (sdist,) = found.glob("*.whl"), found.glob("*.tar.gz")
    return Distributions(wheel, sdist)
