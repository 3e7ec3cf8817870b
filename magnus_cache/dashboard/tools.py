"""What a page can do beside showing figures: look for keys, explain one, and clear."""

from itertools import islice
from typing import Final, NamedTuple

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from magnus_cache import CacheManager, CacheStats
from magnus_cache._engine.keys.names import KeyText
from magnus_cache._engine.keys.shown import key_shown
from magnus_cache.dashboard.texts import plain_text
from magnus_cache.dashboard.watch import Watch
from magnus_cache.errors import CacheError, CacheUnavailableError

__all__ = ["browse_keys", "clear_values"]

_MOST_KEYS: Final = 1_000
_EVERYTHING: Final = "all namespaces"


def _emptied(place: DeltaGenerator) -> None:
    """Empty a place, and say so to the browser.

    A browser removes by itself what a fragment no longer draws, but not if another fragment runs at the same moment.
    """
    place.empty()


def _used_namespaces(watch: Watch) -> list[str]:
    """Return the namespaces that the figures know, the one with most calls first."""
    found = (watch.look().figures or CacheStats()).get("namespaces", {})
    names = sorted(found, key=lambda name: (-(found[name]["hit_count"] + found[name]["miss_count"]), name))
    return [name for name in names if name == plain_text(name)]


# -- keys -------------------------------------------------------------------------------------------------------


@st.fragment
def browse_keys(cache: CacheManager, watch: Watch) -> None:
    """Draw the list of the keys of a namespace, and what is known of one of them."""
    with st.form("magnus_keys", border=False), st.container(horizontal=True, vertical_alignment="bottom"):
        namespace = st.selectbox(
            "Namespace", _used_namespaces(watch), index=None, accept_new_options=True,
            placeholder="Choose one, or type its name", key="magnus_keys_namespace",
        )  # fmt: skip
        match = st.text_input("Keys that match", "*", key="magnus_keys_match", help="As in users:*")
        asked = st.form_submit_button("List keys")
    state = st.session_state
    if asked and namespace is not None:
        state["magnus_listed"] = _listed(cache, namespace, match)
    below = st.empty()
    listed = state.get("magnus_listed")
    if listed is None:
        below.caption("Redis looks through its whole database for the keys of a namespace.")
        return
    name, texts, problem = listed
    if problem is not None:
        below.error(problem)
    elif not texts:
        below.caption(f"No key of {plain_text(name)!r} matches.")
    else:
        with below.container():
            _choose(cache, name, texts)


def _listed(cache: CacheManager, namespace: str, match: str) -> tuple[str, list[str], str | None]:
    """Return a namespace, the texts of its keys in order, and what is wrong with the question, if anything."""
    try:
        with st.spinner("Redis looks through its database …"):
            found = sorted(islice(cache.scan(namespace, match or "*"), _MOST_KEYS + 1))
    except CacheError as error:
        return namespace, [], _told(error)
    return namespace, [str(key) for key in found], None


def _told(error: CacheError) -> str:
    problem = plain_text(str(error))
    return f"Redis cannot be used: {problem}" if isinstance(error, CacheUnavailableError) else problem


def _choose(cache: CacheManager, namespace: str, texts: list[str]) -> None:
    left, right = st.columns([2, 3], gap="large")
    shown = [plain_text(key_shown(text)) for text in texts[:_MOST_KEYS]]
    with left:
        more = len(texts) > _MOST_KEYS
        st.caption(f"The first {_MOST_KEYS:,} keys" if more else f"{len(texts):,} key{'' if len(texts) == 1 else 's'}")
        chosen = st.dataframe(
            {"Key": shown}, hide_index=True, on_select="rerun", selection_mode="single-row", key="magnus_keys_chosen"
        )
    with right:
        places = chosen["selection"]["rows"]
        if not places or places[0] >= len(shown):
            st.caption("Select a key to see what is known of it.")
            return
        _explain(cache, namespace, texts[places[0]])


def _explain(cache: CacheManager, namespace: str, text: str) -> None:
    if plain_text(text) != text:
        st.warning("Another program has stored this: the name has bytes that no key of a cache has.")
        return
    try:
        found = cache.explain(namespace, KeyText(text))
    except CacheError as error:
        st.error(_told(error))
        return
    if found.level is None and found.opaque:
        st.badge("opaque bytes", color="blue", help="The codec of its namespace has stored them.")
    elif found.level is None:
        st.badge("a miss", color="orange")
    else:
        st.badge("in memory" if found.level == "l1" else "in Redis", color="green")
    st.code(plain_text(str(found)), language=None, wrap_lines=True)


# -- clear ------------------------------------------------------------------------------------------------------


@st.fragment
def clear_values(cache: CacheManager, watch: Watch) -> None:
    """Draw the button that removes values, and ask before it does."""
    state = st.session_state
    with st.container(horizontal=True, vertical_alignment="bottom"):
        chosen = st.selectbox(
            "Remove the values of", [_EVERYTHING, *_used_namespaces(watch)], accept_new_options=True,
            key="magnus_clear_what", help="A namespace, or a glob such as users:eu*",
        )  # fmt: skip
        st.button("Clear …", key="magnus_clear", icon=":material/delete:", on_click=_ask)
    below = st.empty()
    # Another choice is another question.
    if chosen is not None and state.get("magnus_asked") == chosen:
        with below.container():
            _confirm(cache, watch, chosen)
    elif (done := state.pop("magnus_cleared", None)) is not None:
        (below.success if done.ok else below.error)(done.text)
    else:
        _emptied(below)


def _ask() -> None:
    # What is chosen now: the page that was clicked may not know it yet.
    st.session_state["magnus_asked"] = st.session_state["magnus_clear_what"]


def _forget() -> None:
    st.session_state.pop("magnus_asked", None)


def _confirm(cache: CacheManager, watch: Watch, chosen: str) -> None:
    prefix = cache._state.keyspace.prefix
    everything = chosen == _EVERYTHING
    what = f"all namespaces of {prefix!r}" if everything else repr(plain_text(chosen))
    with st.container(border=True):
        # No Markdown: a name may have any characters.
        st.text(
            f"Remove the values of {what} from Redis and from the memory of every process? "
            "The next calls load them again."
        )
        with st.container(horizontal=True):
            target = f"{prefix}:*" if everything else chosen
            st.button(
                "Remove values", type="primary", key="magnus_clear_confirm", on_click=_clear,
                args=(cache, watch, target),
            )  # fmt: skip
            st.button("Cancel", key="magnus_clear_cancel", on_click=_forget)


def _clear(cache: CacheManager, watch: Watch, target: str) -> None:
    _forget()
    st.session_state["magnus_cleared"] = _cleared(cache, target)
    watch.expire()


class _Cleared(NamedTuple):
    ok: bool
    text: str


def _cleared(cache: CacheManager, target: str) -> _Cleared:
    """Clear, and return whether that worked, and what happened."""
    try:
        removed = cache.clear(target)
    except CacheError as error:
        return _Cleared(False, _told(error))
    if cache._state.endpoint is not None and not cache.redis_available:
        return _Cleared(True, "Redis is away. It removes the values once it is back, if this page's server still runs.")
    if not removed:
        return _Cleared(True, "There was nothing to remove.")
    return _Cleared(True, f"{removed:,} value{'' if removed == 1 else 's'} removed.")
