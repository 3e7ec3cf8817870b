"""Makes the responses of the Anthropic library storable: import this module once, in every process that reads them.

Registers the response models of ``anthropic.types``, with the events of streams and the beta ones, and the models
nested in them. `LLMCache` does this by itself.

:raises ImportError: if the library is not installed.
"""

from magnus_cache import register_type
from magnus_cache.integrations.models import library, models_of

__all__ = ["register"]

library("anthropic", extra="anthropic")


def register() -> None:
    """Register the response models. Importing this module does this; call it again after a reload of the library."""
    for model in models_of(("anthropic.types", "anthropic.types.beta", "anthropic.types.messages")):
        register_type(model)


register()
