"""Makes the responses of the OpenAI library storable: import this module once, in every process that reads them.

Registers the response models of ``openai.types`` and what is nested in them: chat completions, responses, completions,
embeddings, moderations, images, transcriptions, and the others. Streams are no values; cache what they add up to.

:raises ImportError: if the library is not there.
"""

from magnus_cache._engine.codec import register_type
from magnus_cache.integrations.models import library, models_of

__all__ = ["register"]

library("openai", extra="openai")


def register() -> None:
    """Register the response models; importing this module has done so. Again after the library was reloaded."""
    modules = ("openai.types", "openai.types.chat", "openai.types.responses", "openai.types.audio")
    for model in models_of(modules):
        register_type(model)


register()
