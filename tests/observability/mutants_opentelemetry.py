"""The guards that `test_opentelemetry` sees missing."""

from typing import Any, Final

from magnus_cache.observability import opentelemetry
from tests.support.guards import guard, put, rewrite

HERE: Final = "tests/observability/test_opentelemetry.py"


@guard(f"{HERE}::test_a_load_in_the_background_begins_a_trace_with_a_link")
def without_a_trace_of_its_own_for_a_load_in_the_background() -> None:
    rewrite(opentelemetry.Instrumentation._begin, "event.background and caller.is_valid", "False")


@guard(f"{HERE}::test_a_load_is_a_child_of_its_caller_and_the_parent_of_what_the_loader_does")
def without_the_current_span_while_a_loader_runs() -> None:
    rewrite(
        opentelemetry.Instrumentation._begin,
        "context.attach(trace.set_span_in_context(span))",
        "context.attach(context.get_current())",
    )


@guard(f"{HERE}::test_a_failed_load_tells_the_class_of_its_error_alone")
def without_leaving_out_the_message_of_an_error() -> None:
    rewrite(
        opentelemetry.Instrumentation._end,
        'span.set_status(StatusCode.ERROR, attributes["error.type"])',
        "span.record_exception(event.error)",
    )


@guard(f"{HERE}::test_the_process_wide_cache_is_followed_and_not_opened")
def without_leaving_a_process_wide_cache_closed() -> None:
    def opened(self: Any) -> Any:
        return opentelemetry.get_cache_manager()._engine.state if self._follows else self._state

    put(opentelemetry.Instrumentation, "_current", opened)
