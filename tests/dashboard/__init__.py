"""Tests of the dashboard: its page as Streamlit makes it, and in a browser with `nox -s browser`."""
