"""The page that ``magnus-cache dashboard`` serves, in a folder of its own: Streamlit puts that on the import path."""
