"""The guards that `test_client` sees missing."""

from typing import Any, Final

from magnus_cache._engine.redis import client, topology
from tests.support.guards import guard, put

HERE: Final = "tests/redis/test_client.py"


@guard(f"{HERE}::test_what_is_no_comparison_is_an_error_of_the_exchange")
def without_a_form_of_comparisons() -> None:
    def compared(receive: Any, reply: Any, *source: Any) -> Any:
        return receive(client.Comparison(*reply), *source)

    put(client, "_compared", compared)


@guard(f"{HERE}::test_what_is_no_answer_about_a_lease_grants_none")
def without_a_form_of_answers_about_leases() -> None:
    def leased(receive: Any, reply: Any, *source: Any) -> Any:
        return receive(client.LeaseReply(granted=not isinstance(reply, bytes)), *source)

    put(client, "_leased", leased)


@guard(f"{HERE}::test_what_is_asked_after_the_end_is_unavailable")
def without_an_error_of_an_outage_for_who_asks_after_the_end() -> None:
    put(topology.Topology, "wire", lambda self, key: self.connection(key))


@guard(f"{HERE}::test_an_error_within_a_transaction_is_its_error")
def without_a_look_at_errors_within_a_transaction() -> None:
    def done(receive: Any, reply: Any, *source: Any) -> Any:
        return receive(reply[-1] == 1, *source)

    put(client, "done", done)
