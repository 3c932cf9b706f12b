"""The reference, as it is told by the program: command line, settings, schema, HTTP.

Each module here has a ``text()`` that returns Markdown; where something has no description it is in ``missing()``,
which a test holds empty.
"""
