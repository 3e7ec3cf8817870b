"""The guards that `test_changes` sees missing."""

from typing import Any, Final

from magnus_cache._engine.api import changes as api
from magnus_cache._engine.api import scanning
from magnus_cache._engine.coordination import changes
from magnus_cache._engine.redis import watch
from magnus_cache._engine.runtime import feeds
from tests.support.guards import guard, nothing, put

HERE: Final = "tests/api/test_changes.py"


@guard(f"{HERE}::test_who_is_told_reads_the_new_value_from_a_cache_that_had_the_old_one")
def without_dropping_a_value_before_its_change_is_told() -> None:
    put(changes.Changes, "values_changed", lambda self, names: self._tell(names))


@guard(f"{HERE}::test_who_is_told_of_a_clear_finds_nothing_of_before")
def without_dropping_a_namespace_before_its_clear_is_told() -> None:
    put(changes.Changes, "_drop", nothing)


@guard(f"{HERE}::test_a_value_whose_load_was_overtaken_is_told")
def without_telling_a_load_that_was_overtaken() -> None:
    put(changes.Changes, "refused", nothing)


@guard(f"{HERE}::test_new_epochs_are_no_changes")
def without_asking_the_guard_about_a_new_tag() -> None:
    put(watch.Watch, "_ask_guard", lambda self, name, epoch, connection: self._reports.rose(name))


@guard(f"{HERE}::test_an_epoch_that_is_gone_is_told")
def without_telling_an_epoch_that_is_gone() -> None:
    original = watch.Watch._read

    def read(self: Any, name: bytes, reply: Any, connection: Any, sent: float) -> None:
        if reply is not None:
            original(self, name, reply, connection, sent)

    put(watch.Watch, "_read", read)


@guard(f"{HERE}::test_a_change_waits_once_and_too_many_are_one_gap")
def without_a_bound_of_what_waits() -> None:
    original = feeds.Feed.put

    def unbounded(self: Any, change: Any) -> None:
        self.most = 10**9
        original(self, change)

    put(feeds.Feed, "put", unbounded)


@guard(f"{HERE}::test_leaving_the_loop_ends_the_watch")
def without_closing_a_consumer_that_nothing_refers_to() -> None:
    put(api._Consumer, "__del__", nothing)


@guard(f"{HERE}::test_each_consumer_is_told_and_all_share_one_connection")
def without_closing_the_watch_with_its_last_consumer() -> None:
    put(changes.Changes, "_stop_unused", nothing)


@guard(f"{HERE}::test_a_version_tells_its_own_keys")
def without_leaving_out_keys_of_other_versions() -> None:
    put(scanning, "version_suffix", lambda *_: "")


@guard(f"{HERE}::test_a_busy_consumer_lets_other_tasks_run")
def without_turns_for_other_tasks() -> None:
    async def at_once() -> None:
        pass

    put(api, "turn", at_once)


@guard(f"{HERE}::test_a_server_that_does_not_announce_is_refused_with_the_remedy")
def without_refusing_a_server_that_does_not_announce() -> None:
    async def watch_one(self: Any, wire: Any) -> None:
        if not wire.up:
            await wire.renew()
        self._watched.setdefault(wire, set()).update(self._prefixes)

    put(watch.Watch, "_watch_one", watch_one)
