"""Makes the results of LangChain storable: import this module once, in every process that reads them.

Registers the models of ``langchain_core``: messages and their chunks, generations and their results, documents, prompt
values, and the decisions of agents.

:raises ImportError: if the library is not installed.
"""

from typing import Any

from magnus_cache._engine.codec import register_type
from magnus_cache.integrations.models import library, models_of

__all__ = ["register"]

library("langchain_core", extra="langchain")


def register() -> None:
    """Register the models. Importing this module does this; call it again after a reload of the library."""
    modules = (
        "langchain_core.messages",
        "langchain_core.outputs",
        "langchain_core.documents",
        "langchain_core.prompt_values",
        "langchain_core.agents",
    )
    for model in models_of(modules):
        register_type(model)
    # The text of a message, a str that can also be called.
    text: Any = getattr(library("langchain_core.messages.base", extra="langchain"), "TextAccessor", None)
    if text is not None:
        register_type(text, encode=str.__str__, decode=text)


register()
