"""Values as bytes and back: exact, without pickle, and safe whatever the bytes."""

from magnus_cache.codec.registry import register_type
from magnus_cache.codec.sharing import shareable
from magnus_cache.codec.steps import LARGE, is_heavy
from magnus_cache.codec.values import decode, decode_steps, encode, encode_steps, size_steps

__all__ = [
    "LARGE",
    "decode",
    "decode_steps",
    "encode",
    "encode_steps",
    "is_heavy",
    "register_type",
    "shareable",
    "size_steps",
]
