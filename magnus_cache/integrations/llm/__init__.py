"""A cache for the calls of language models, by any client: openai, anthropic, or functions of your own.

`LLMCache` calls the client, and stores its replies by a digest of the request. Streams are stored when they have ended
well, and replayed as streams. What calls cost, and what the cache saves, is read from the `usage` of replies.
"""

from magnus_cache.integrations.llm.async_streams import AsyncLLMStream
from magnus_cache.integrations.llm.blocking_streams import LLMStream
from magnus_cache.integrations.llm.cache import LLMCache
from magnus_cache.integrations.llm.prices import LLMPrice, TokenCounts
from magnus_cache.integrations.llm.replies import is_unfinished
from magnus_cache.integrations.llm.usage import LLMUsage

__all__ = ["AsyncLLMStream", "LLMCache", "LLMPrice", "LLMStream", "LLMUsage", "TokenCounts", "is_unfinished"]
