"""Model instances as values: their fields and annotations, as Django's own pickling takes them, but as plain data.

An instance comes back as one that was read from the database: without a call of ``__init__`` or a signal. Forward
relations that it had loaded come with it. Prefetched and reverse relations do not; they are queried again.
"""

from typing import Any

import django
from django.apps import apps
from django.db import DJANGO_VERSION_PICKLE_KEY
from django.db.models.base import ModelState
from django.db.models.enums import Choices
from django.db.models.fields.files import FieldFile

from magnus_cache import CacheEncodeError

__all__ = ["model_from", "model_state"]

_NOT_STORED = ("_state", "_prefetched_objects_cache", "_memoryview_attrs", DJANGO_VERSION_PICKLE_KEY)


def model_state(instance: Any) -> dict[str, Any]:
    """Return what is stored of a model instance.

    :raises CacheEncodeError: for a model that its application does not have, and for a state that is not a dict.
    """
    meta = instance._meta
    try:
        known = apps.get_model(meta.label) is type(instance)
    except LookupError:
        known = False
    state = instance.__getstate__()
    if not known or not isinstance(state, dict):
        problem = "it is not in INSTALLED_APPS" if not known else "its __getstate__ returns no dict"
        raise CacheEncodeError(meta.label, f"the model {meta.label} cannot be stored: {problem}")
    binary = dict(state.get("_memoryview_attrs", ()))
    values = {name: _plain(value) for name, value in state.items() if name not in _NOT_STORED}
    forward = {field.name for field in meta.concrete_fields if field.is_relation}
    loaded = instance._state.fields_cache
    return {
        "model": meta.label, "values": values | binary, "binary": list(binary),
        "fields": [field.attname for field in meta.concrete_fields],
        "db": instance._state.db, "adding": instance._state.adding,
        "related": {name: related for name, related in loaded.items() if name in forward},
    }  # fmt: skip


def _plain(value: Any) -> Any:
    """Return a field's value as the database has it."""
    if isinstance(value, FieldFile):
        return value.name
    return value.value if isinstance(value, Choices) else value


def model_from(state: dict[str, Any]) -> Any:
    """Return the instance that was stored.

    :raises LookupError: if its model has other fields than then, or no longer exists; the stored value is then a miss.
    """
    model: Any = apps.get_model(state["model"])
    values, binary = state["values"], state["binary"]
    if {field.attname for field in model._meta.concrete_fields} != set(state["fields"]):
        raise LookupError(f"the model {state['model']} has other fields now")
    instance = model.__new__(model)
    record: Any = ModelState()
    record.db, record.adding, record.fields_cache = state["db"], state["adding"], dict(state["related"])
    given = {name: memoryview(value) if name in binary else value for name, value in values.items()}
    given |= {"_state": record, DJANGO_VERSION_PICKLE_KEY: django.__version__}
    instance.__setstate__(given)
    instance.__dict__.pop(DJANGO_VERSION_PICKLE_KEY, None)
    return instance
