"""The settings of a cache: keywords, environment, `.env` file."""
