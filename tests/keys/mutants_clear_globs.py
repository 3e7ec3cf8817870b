"""The guards that `test_clear_globs` sees missing."""

from typing import Any, Final

from magnus_cache._engine.keys import globs, names
from magnus_cache._engine.store import clears
from tests.support.guards import guard, put

HERE: Final = "tests/keys/test_clear_globs.py"


async def _nothing(*_: Any) -> None:
    return None


@guard(f"{HERE}::test_a_glob_covers_the_key_as_it_was_written", f"{HERE}::test_a_string_is_matched_as_it_is")
def without_keys_as_their_callers_wrote_them() -> None:
    put(globs, "spellings", lambda text: [(text.decode("utf-8", "surrogateescape"), True)])


@guard(f"{HERE}::test_a_long_string_is_covered_by_each_of_its_beginnings")
def without_the_doubt_about_long_keys() -> None:
    put(globs._Shape, "may_match", lambda self, text: self.regex.fullmatch(text) is not None)


@guard(f"{HERE}::test_a_glob_covers_no_key_by_its_internal_text")
def without_a_look_at_what_is_known_of_long_keys() -> None:
    put(globs._Shape, "may_match", lambda *_: True)


@guard(f"{HERE}::test_a_clear_by_glob_removes_it_everywhere")
def without_all_kinds_of_keys_in_what_is_scanned() -> None:
    put(names, "key_pattern", lambda prefix, literal: globs.prefix_pattern(prefix + literal.encode()))


@guard(f"{HERE}::test_a_clear_by_glob_leaves_alone_what_it_does_not_cover")
def without_a_second_look_at_what_was_scanned() -> None:
    put(globs.ClearScope, "covers", lambda self, name: name.startswith(self.prefix))


@guard(f"{HERE}::test_the_default_prefix_under_another_one_is_refused")
def without_a_look_for_the_default_prefix() -> None:
    put(names, "DEFAULT_PREFIX", "\0")


@guard(f"{HERE}::test_the_prefix_of_any_other_cache_on_the_server_is_refused")
def without_a_look_for_other_prefixes() -> None:
    put(clears.Clears, "_check_prefix", _nothing)


@guard(f"{HERE}::test_the_prefix_of_any_other_cache_on_the_server_is_refused")
def without_the_namespaces_of_this_process_among_prefixes() -> None:
    put(names.Keyspace, "uses", lambda *_: False)
