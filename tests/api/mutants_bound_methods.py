"""The guards that `test_bound_methods` sees missing."""

from typing import Final

from magnus_cache._engine.api import bound
from tests.support.guards import guard, put

HERE: Final = "tests/api/test_bound_methods.py"


@guard(f"{HERE}::test_a_method_is_equal_to_itself_and_to_no_other")
def without_telling_methods_of_two_instances_apart() -> None:
    put(bound.BoundCached, "__eq__", lambda self, other: self.__func__ is other.__func__)


@guard(f"{HERE}::test_everything_a_cache_adds_is_there_on_a_bound_method")
def without_the_instance_in_what_a_cache_adds_to_a_method() -> None:
    put(bound.BoundCached, "invalidate", lambda self, *args: self.__func__.invalidate(*args))


@guard(f"{HERE}::test_copies")
def without_copying_the_instance_of_a_method() -> None:
    put(bound.BoundCached, "__deepcopy__", lambda self, memo: self)


@guard(f"{HERE}::test_methods_reach_other_processes")
def without_pickling_methods_by_name() -> None:
    put(bound.BoundCached, "__reduce__", lambda self: (type(self), (self.func, *self.args)))
