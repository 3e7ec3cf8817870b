"""What a scrape shows, as a monitoring system reads it."""

from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from magnus_cache.observability.prometheus import CacheCollector

__all__ = ["Series", "parsed", "registry_of", "scraped", "summed"]

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]
"""The samples, by their names and sorted labels."""


def parsed(text: str) -> Series:
    """Return the samples of a scrape, each of which must be there once."""
    found: Series = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in found, f"{key} is there twice"
            found[key] = float(sample.value)
    return found


def registry_of(*caches: Any, **options: Any) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(CacheCollector(*caches, **options))
    return registry


def scraped(*caches: Any, **options: Any) -> Series:
    """Return the samples of a scrape of some caches."""
    return parsed(generate_latest(registry_of(*caches, **options)).decode())


def summed(series: Series, name: str, **labels: str) -> float:
    """Return the sum of the samples of a series that have these labels; there must be some."""
    wanted = f"magnus_cache_{name}"
    found = [value for (each, pairs), value in series.items() if each == wanted and labels.items() <= {*pairs}]
    assert found, f"no {name} with {labels}"
    return sum(found)
