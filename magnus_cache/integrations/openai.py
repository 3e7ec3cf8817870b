"""Makes the responses of the OpenAI library storable: import this module once, in every process that reads them.

Registers the response models of ``openai.types`` and the models nested in them: chat completions, responses,
completions, embeddings, moderations, images, transcriptions, and the others. A stream is not a value; cache the result
that you collect from it.

:raises ImportError: if the library is not installed.
"""

from magnus_cache import register_type
from magnus_cache.integrations.models import library, models_of

__all__ = ["register"]

library("openai", extra="openai")


def register() -> None:
    """Register the response models. Importing this module does this; call it again after a reload of the library."""
    modules = ("openai.types", "openai.types.chat", "openai.types.responses", "openai.types.audio")
    for model in models_of(modules):
        register_type(model)


register()
