"""Values as bytes and back: exact, without pickle, and safe whatever the bytes."""

from magnus_cache._engine.codec.budget import SMALL_BYTES
from magnus_cache._engine.codec.copy_plans import MOST_PLANNED_BYTES, CopyPlan, plan_for
from magnus_cache._engine.codec.immutable import is_immutable
from magnus_cache._engine.codec.registry import on_replaced, register_hint, register_result, register_type
from magnus_cache._engine.codec.reload import renewed
from magnus_cache._engine.codec.steps import LARGE, is_heavy, is_long
from magnus_cache._engine.codec.unregistered import changed_so_far
from magnus_cache._engine.codec.user_codec import Codec, decode_by, encode_by, is_opaque, mismatch
from magnus_cache._engine.codec.values import decode, decode_steps, encode, encode_steps, size_steps

__all__ = [
    "LARGE",
    "MOST_PLANNED_BYTES",
    "SMALL_BYTES",
    "Codec",
    "CopyPlan",
    "changed_so_far",
    "decode",
    "decode_by",
    "decode_steps",
    "encode",
    "encode_by",
    "encode_steps",
    "is_heavy",
    "is_immutable",
    "is_long",
    "is_opaque",
    "mismatch",
    "on_replaced",
    "plan_for",
    "register_hint",
    "register_result",
    "register_type",
    "renewed",
    "size_steps",
]  # fmt: skip
