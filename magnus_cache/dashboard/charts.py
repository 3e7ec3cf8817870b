"""The charts, as specifications of Vega-Lite. They never change: new data moves them, without drawing them anew."""

from typing import Any, Final

__all__ = ["BLUE", "HIT_RATE", "LATENCY", "TRAFFIC"]

_HEIGHT: Final = 250
BLUE: Final = "#3b82c4"
_LIGHT_BLUE, _ORANGE, _RED = "#9cc4e8", "#e0823d", "#d64545"
"""Colours that can be told apart on a light and a dark page, and by most people who are colour-blind."""

_TIME: Final = {
    "field": "at", "type": "temporal", "title": None, "axis": {"format": "%H:%M", "tickCount": 4, "grid": False},
}  # fmt: skip
_MINUTE: Final = {**_TIME, "timeUnit": "yearmonthdatehoursminutes"}
_WHEN: Final = {"field": "at", "type": "temporal", "title": "minute", "format": "%H:%M"}


def _chart(*layers: dict[str, Any]) -> dict[str, Any]:
    return {"height": _HEIGHT, "layer": list(layers), "config": {"view": {"stroke": None}}, "autosize": {"type": "fit"}}


def _colours(**names: str) -> dict[str, Any]:
    """Return what names and colours have to do with each other: all charts have a legend, at the same place."""
    named = {name.replace("_", " "): colour for name, colour in names.items()}
    return {
        "type": "nominal",
        "legend": {
            "orient": "bottom",
            "title": None,
            "symbolType": "square",
            "symbolSize": 90,
            "symbolOpacity": 1,
            "symbolStrokeWidth": 0,
        },
        "scale": {"domain": list(named), "range": list(named.values())},
    }


_RATE_COLOURS: Final = _colours(hit_rate=BLUE, a_process_lost_Redis=_RED)

HIT_RATE: Final = _chart(
    {
        "mark": {"type": "line", "point": {"size": 14}, "interpolate": "monotone"},
        "encoding": {
            "x": _TIME,
            "y": {
                "field": "rate", "type": "quantitative", "title": None, "scale": {"domain": [0, 100]},
                "axis": {"tickCount": 5, "labelExpr": "datum.label + ' %'"},
            },
            "color": {"datum": "hit rate", **_RATE_COLOURS},
            "tooltip": [
                _WHEN,
                {"field": "rate", "type": "quantitative", "title": "hit rate, %", "format": ".1f"},
                {"field": "calls", "type": "quantitative", "title": "calls", "format": ",d"},
            ],
        },
    },
    {
        "transform": [{"filter": "datum.outages > 0"}],
        "mark": {"type": "rule", "strokeDash": [3, 3], "strokeWidth": 2},
        "encoding": {
            "x": _TIME,
            "color": {"datum": "a process lost Redis", **_RATE_COLOURS},
            "tooltip": [_WHEN, {"field": "outages", "type": "quantitative", "title": "processes that lost Redis"}],
        },
    },
)  # fmt: skip
"""Of the columns of `rows.hit_rates`."""

TRAFFIC: Final = _chart(
    {
        "mark": {"type": "bar", "binSpacing": 0},
        "encoding": {
            "x": _MINUTE,
            "y": {
                "field": "rate", "type": "quantitative", "title": None, "stack": "zero",
                "axis": {"tickCount": 4, "format": "~s"},
            },
            "color": {"field": "result", **_colours(memory=BLUE, Redis=_LIGHT_BLUE, miss=_ORANGE)},
            "order": {"field": "order", "type": "quantitative"},
            "tooltip": [
                _WHEN,
                {"field": "result", "type": "nominal", "title": "found in"},
                {"field": "rate", "type": "quantitative", "title": "calls per second", "format": ",.1f"},
            ],
        },
    }
)  # fmt: skip
"""Of the columns of `rows.traffic`."""

_MILLISECONDS: Final = {
    "type": "quantitative", "title": None, "scale": {"type": "log"},
    "axis": {
        "values": [0.01, 0.1, 1, 10, 100, 1_000, 10_000, 100_000],
        "labelExpr": "datum.value < 1000 ? datum.value + ' ms' : datum.value / 1000 + ' s'",
    },
}  # fmt: skip
_LATENCY_COLOURS: Final = {"field": "kind", **_colours(load=_ORANGE, read_of_Redis=BLUE)}
_LATENCIES: Final = [
    _WHEN,
    {"field": "kind", "type": "nominal", "title": "what"},
    {"field": "median", "type": "quantitative", "title": "median, ms", "format": ",.3~r"},
    {"field": "slow", "type": "quantitative", "title": "99th percentile, ms", "format": ",.3~r"},
]

LATENCY: Final = _chart(
    {
        "mark": {"type": "area", "opacity": 0.22, "interpolate": "monotone"},
        "encoding": {
            "x": _TIME, "y": {"field": "median", **_MILLISECONDS}, "y2": {"field": "slow"}, "color": _LATENCY_COLOURS,
        },
    },
    {
        "mark": {"type": "line", "point": {"size": 14}, "interpolate": "monotone"},
        "encoding": {
            "x": _TIME, "y": {"field": "median", **_MILLISECONDS}, "color": _LATENCY_COLOURS, "tooltip": _LATENCIES,
        },
    },
)  # fmt: skip
"""Of the columns of `rows.latencies`."""
