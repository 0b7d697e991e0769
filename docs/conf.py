"""Sphinx configuration."""

import prefixembed

project = "prefixembed"
version = release = prefixembed.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autosummary_generate = False
autodoc_typehints = "none"
numpydoc_show_class_members = False

html_theme = "pydata_sphinx_theme"
html_title = f"prefixembed {release}"
html_theme_options = {"show_prev_next": False, "secondary_sidebar_items": ["page-toc"]}
