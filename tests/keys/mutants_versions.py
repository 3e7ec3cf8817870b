"""The guards that `test_versions` sees missing."""

from typing import Final

from magnus_cache._engine.keys import calls as callkeys
from magnus_cache._engine.keys import versions
from magnus_cache._engine.store import batch_keys, key_refs
from tests.support.guards import guard, put

HERE: Final = "tests/keys/test_versions.py"


@guard(f"{HERE}::test_another_version_of_a_function_has_other_values")
def without_the_version_of_a_function() -> None:
    put(callkeys, "version_suffix", lambda *_: "")


@guard(f"{HERE}::test_a_namespace_of_another_version_has_other_values")
def without_the_version_of_a_namespace() -> None:
    for module in (batch_keys, key_refs):
        put(module, "version_suffix", lambda *_: "")


@guard(f"{HERE}::test_a_function_and_its_namespace_each_have_a_version")
def without_telling_two_kinds_of_versions_apart() -> None:
    original = versions.version_suffix
    for module in (batch_keys, key_refs):
        put(module, "version_suffix", lambda version, _kind="": original(version))
