"""The guards that `test_cachelib` sees missing."""

from typing import Any, Final

from magnus_cache.integrations import cachelib
from tests.support.guards import guard, put, rewrite

HERE: Final = "tests/integrations/test_cachelib.py"


@guard(f"{HERE}::test_a_timeout_is_what_cachelib_says", f"{HERE}::test_a_default_timeout_of_zero_is_no_end")
def without_an_endless_life_for_a_timeout_of_zero() -> None:
    put(cachelib, "TTL_FOREVER", 300)


@guard(f"{HERE}::test_prefixes_keep_applications_apart_and_clear_removes_one")
def without_escaping_the_prefix_that_is_cleared() -> None:
    put(cachelib, "_escaped", lambda text: text)


@guard(f"{HERE}::test_a_value_that_cannot_be_stored_is_refused_with_the_remedy")
def without_the_remedy_of_a_codec() -> None:
    put(cachelib, "_REMEDY", "")


@guard(f"{HERE}::test_an_outage_hangs_no_one_and_counts_nothing")
def without_an_answer_for_counts_in_an_outage() -> None:
    put(cachelib, "CacheUnavailableError", ZeroDivisionError)


@guard(f"{HERE}::test_a_namespace_keeps_its_policy")
def without_the_policy_of_a_namespace() -> None:
    def empty(namespace: str) -> dict[str, Any]:
        return {}

    put(cachelib, "_policy", empty)


@guard(f"{HERE}::test_a_codec_stores_what_it_can")
def without_a_codec_of_the_users_choice() -> None:
    rewrite(cachelib.MagnusCache._store_by, '{**self._policy, "codec": functions}', "self._policy")


@guard(f"{HERE}::test_a_name_has_the_policy_that_it_is_registered_with")
def without_the_policy_of_a_registered_name() -> None:
    rewrite(
        cachelib._policy, "return default_registry.resolve(namespace).policy", "return getattr(namespace, 'policy', {})"
    )


@guard(f"{HERE}::test_a_name_has_the_policy_that_it_is_registered_with")
def without_clearing_all_of_a_sealed_namespace() -> None:
    rewrite(cachelib.MagnusCache.clear, '"" if self.namespace.seal else self._key("")', 'self._key("")')
