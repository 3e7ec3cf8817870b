"""The guards that `test_sealing` sees missing."""

from typing import Any, Final

from magnus_cache._engine.codec import sealing
from magnus_cache._engine.codec.sealing import SealRing
from tests.support.guards import guard, put, rewrite

HERE: Final = "tests/codec/test_sealing.py"


@guard(HERE)
def without_a_value_bound_to_its_key() -> None:
    rewrite(SealRing._associated, "namespace.encode(), name)", "namespace.encode(), b'')")
    rewrite(SealRing._key_of, 'found["id"], namespace)', '"one", namespace)')


@guard(f"{HERE}::test_a_value_belongs_to_its_key_its_namespace_and_its_prefix")
def without_a_value_bound_to_its_namespace() -> None:
    """Neither by what is associated nor by the derived key: each of the two is enough."""
    rewrite(SealRing._associated, "namespace.encode(), name)", "b'', name[-40:])")
    rewrite(SealRing._of, "_lengths(self._prefix, place[1].encode())", "_lengths(self._prefix)")


@guard(f"{HERE}::test_a_value_belongs_to_its_key_its_namespace_and_its_prefix")
def without_a_value_bound_to_its_prefix() -> None:
    rewrite(SealRing._associated, "self._prefix, namespace.encode(), name)", "b'', namespace.encode(), name[-40:])")
    rewrite(SealRing._of, "_lengths(self._prefix, place[1].encode())", "_lengths(place[1].encode())")


@guard(f"{HERE}::test_each_namespace_has_keys_of_its_own", f"{HERE}::test_texts_of_keys_are_keyed")
def without_keys_of_its_own_for_each_namespace() -> None:
    rewrite(SealRing._of, "_lengths(self._prefix, place[1].encode())", "_lengths(self._prefix)")


@guard(f"{HERE}::test_no_field_of_the_header_can_be_changed", f"{HERE}::test_tags_cannot_be_changed")
def without_the_header_of_a_sealed_value_bound_to_it() -> None:
    rewrite(SealRing._associated, "_lengths(clear, ", "_lengths(b'', ")


@guard(f"{HERE}::test_an_unsealed_value_is_refused")
def without_a_refusal_of_unsealed_values() -> None:
    original = SealRing.opened

    def opened(self: Any, namespace: str, name: bytes, raw: bytes) -> bytes:
        try:
            return original(self, namespace, name, raw)
        except sealing.CacheDecodeError as error:
            if error.reason == "unsealed":
                return raw
            raise

    put(SealRing, "opened", opened)


@guard(f"{HERE}::test_no_two_seals_are_alike")
def without_a_nonce_for_each_seal() -> None:
    rewrite(SealRing.sealed, "os.urandom(_NONCE)", "bytes(_NONCE)")


@guard(f"{HERE}::test_derived_keys_are_bounded_in_number")
def without_a_bound_on_derived_keys() -> None:
    put(sealing, "_MOST_DERIVED", 1 << 40)
