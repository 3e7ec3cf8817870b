"""The guards that `test_lane_connection` sees missing."""

from typing import Any, Final

from magnus_cache._engine.redis.lane_connection import LaneConnection
from magnus_cache._engine.redis.lane_tls import LaneTls
from tests.support.guards import guard, put, rewrite

HERE: Final = "tests/redis/test_lane_connection.py"
DEADLINES: Final = f"{HERE}::test_all_of_an_exchange_has_one_deadline"


@guard(f"{DEADLINES}[a reply in parts-tcp]", f"{DEADLINES}[a greeting in parts-tcp]")
def without_a_deadline_for_the_parts_of_a_reply() -> None:
    rewrite(LaneConnection._rest, "sock.settimeout(self._left(deadline))\n        data", "data")


@guard(f"{DEADLINES}[a reply in parts-tcp]")
def without_a_deadline_that_begins_with_the_request() -> None:
    rewrite(LaneConnection._rest, "self._send(", "deadline = self._clock() + self._timeout\n    self._send(")


@guard(f"{HERE}::test_what_comes_before_an_exchange_has_its_own_deadline")
def without_a_deadline_for_what_comes_before_an_exchange() -> None:
    def ask_all(self: Any, packed: list[bytes], deadline: float) -> list[Any]:
        return [self.ask(command, deadline) for command in packed]

    put(LaneConnection, "ask_all", ask_all)


@guard(f"{DEADLINES}[a reply to what was sent slowly-tcp]")
def without_one_deadline_for_request_and_reply() -> None:
    rewrite(LaneConnection.ask, "sock.send(packed)", "sock.sendall(packed) or len(packed)")


@guard(f"{DEADLINES}[a server that does not read-tcp]")
def without_a_deadline_for_sending() -> None:
    rewrite(LaneConnection._send, "sock.settimeout(self._left(deadline))", "pass")


@guard(f"{HERE}::test_after_a_reply_in_parts_the_next_exchange_has_all_its_time")
def without_all_of_the_time_for_the_next_exchange() -> None:
    rewrite(LaneConnection._rest, "sock.settimeout(self._timeout)", "pass")


@guard(f"{HERE}::test_ctrl_c_leaves_no_socket")
def without_a_socket_that_is_kept_before_it_is_made() -> None:
    kept = "socket.SocketType.__new__(socket.SocketType)\n    socket.SocketType.__init__(sock, "
    rewrite(LaneConnection._connect, kept, "socket.SocketType(")


@guard(f"{HERE}::test_what_a_frame_claims_is_counted_that_begins_behind_another_reply")
def without_a_look_at_bytes_that_wait_behind_a_reply() -> None:
    rewrite(LaneConnection._taken, "if not self._reader.has_data():", "if True:")


@guard(f"{HERE}::test_the_end_of_a_tls_session_ends_the_exchange_whatever_follows_it")
def without_an_end_at_the_end_of_a_tls_session() -> None:
    rewrite(LaneTls.decrypted, "if parts:", "if True:")
