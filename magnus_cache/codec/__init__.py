"""Values as bytes and back: exact, without pickle, and safe whatever the bytes."""

from magnus_cache.codec.registry import register_type
from magnus_cache.codec.sharing import shareable
from magnus_cache.codec.values import check_decoded_size, decode, encode

__all__ = ["check_decoded_size", "decode", "encode", "register_type", "shareable"]
