"""The guards that `test_large_writes` sees missing."""

from magnus_cache._engine.store import writes
from tests.support.guards import guard, rewrite


@guard("tests/store/test_large_writes.py")
def without_a_thread_for_large_values() -> None:
    rewrite(writes.Writes._send, "len(payload) >> 5", "0")
