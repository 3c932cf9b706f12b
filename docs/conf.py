"""How `make docs` turns the pages into a site. The repository is the source directory, so that links which work in a
checkout work there as well."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

from pgvec_queue import __version__  # noqa: E402

project = "pgvec-queue"
author = "the authors of pgvec-queue"
project_copyright = author
version = release = __version__

extensions = ["myst_parser", "pgvec_reference.extension"]
root_doc = "docs/index"
include_patterns = [
    f"{place}*.md" for place in ("", "docs/", "docs/**/", "benchmarks/**/", "deploy/", "deploy/**/", "tests/model/")
]
exclude_patterns = ["build", "dist", ".*", "**/__pycache__"]
nitpicky = True
smartquotes = False

myst_heading_anchors = 4
myst_enable_extensions = ["attrs_block"]
# Examples in JSON leave something out with an ellipsis.
suppress_warnings = ["misc.highlighting_failure"]

html_theme = "furo"
html_title = f"pgvec-queue {release}"
html_static_path = ["_static"]
html_css_files = ["pgvec.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "default"
pygments_dark_style = "monokai"
