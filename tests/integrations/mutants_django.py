"""The guards that the tests of Django see missing."""

from typing import Any, Final

from magnus_cache._engine.codec import registry
from magnus_cache.integrations.django import backend, managers, models, options, values
from tests.support.guards import guard, put, rewrite

HERE: Final = "tests/integrations/test_django.py"
VALUES: Final = "tests/integrations/test_django_values.py"
VIEWS: Final = "tests/integrations/test_django_views.py"


@guard(f"{HERE}::test_numbers")
def without_a_look_whether_a_counter_of_django_exists() -> None:
    rewrite(backend.MagnusCache.incr, "create=False, ", "")


@guard(f"{HERE}::test_timeouts")
def without_a_longest_timeout_of_django() -> None:
    rewrite(backend.MagnusCache._life, "min(seconds, TTL_FOREVER)", "seconds")


@guard(f"{HERE}::test_a_key_function")
def without_a_key_for_an_empty_text_of_django() -> None:
    rewrite(backend.MagnusCache._key, ' or ("",)', "")


@guard(f"{HERE}::test_all_threads_share_a_manager_that_outlives_them_and_requests")
def without_sharing_managers_among_the_backends_of_threads() -> None:
    class Forgetful(dict[Any, Any]):
        def get(self, key: Any, default: Any = None) -> Any:
            return default

        def setdefault(self, key: Any, default: Any = None) -> Any:
            return default

    put(managers, "_MANAGERS", Forgetful())


@guard(f"{HERE}::test_a_manager_that_no_entry_uses_any_more_is_closed")
def without_closing_managers_that_no_entry_uses() -> None:
    rewrite(managers._settings_changed, "_MANAGERS.pop(key).close()", "pass")


@guard(f"{HERE}::test_namespaces_of_one_name_with_their_own_policies")
def without_telling_namespaces_with_a_policy_from_names() -> None:
    rewrite(options.frozen, "(id(value), value) if isinstance(value, Namespace) else value", "value")


@guard(f"{VALUES}::test_a_model_with_other_fields_than_before_is_a_miss")
def without_comparing_the_fields_of_a_stored_model() -> None:
    rewrite(models.model_from, '!= set(state["fields"])', "is None")


@guard(f"{VALUES}::test_a_template_response_is_stored_once_it_is_rendered")
def without_a_look_whether_a_response_is_rendered() -> None:
    rewrite(values._response_state, 'not getattr(response, "is_rendered", True)', "False")


@guard("tests/codec/test_typed_results.py::test_a_registration_may_serve_subclasses")
def without_forgetting_classes_that_no_family_had() -> None:
    rewrite(registry._registered, "_in_families.clear()", "pass")


@guard(f"{HERE}::test_a_name_has_the_policy_that_it_is_registered_with[valkey-plain]")
def without_the_policy_that_a_name_is_registered_with() -> None:
    rewrite(options._namespace, "return name\n", "return Namespace(name)\n")


@guard(f"{HERE}::test_a_name_has_the_policy_that_it_is_registered_with[valkey-pickle]")
def without_the_policy_that_a_name_with_a_codec_is_registered_with() -> None:
    rewrite(options._namespace, "**default_registry.resolve(name).policy, ", "")
