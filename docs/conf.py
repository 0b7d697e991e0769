"""Sphinx configuration."""

import inspect
import os
import pydoc
import sys
import warnings
from pathlib import Path

import prefixembed

sys.path.append(str(Path(__file__).parent / "_ext"))

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # examples need no model hub
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two examples run at a time

project = "prefixembed"
author = "the prefixembed developers"
version = release = prefixembed.__version__

extensions = [
    "mathml",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "auto_examples/*.ipynb", "auto_examples/*.py"]
templates_path = ["_templates"]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"


def own_members(fullname: str) -> list[str]:
    """Name the public methods and properties of a class that were written here."""
    described = pydoc.locate(fullname)
    found = []
    for name in dir(described):
        member = inspect.getattr_static(described, name)
        function = getattr(member, "__func__", None) or getattr(member, "fget", None) or member
        module = getattr(function, "__module__", None) or ""
        if module.startswith("prefixembed") and function.__doc__ and not name.startswith("_"):
            found.append(name)
    return found


autosummary_generate = True
autosummary_context = {"own_members": own_members}
suppress_warnings = ["config.cache"]  # of that function, which cannot be kept between builds
autodoc_typehints = "none"
numpydoc_show_class_members = False

sphinx_gallery_conf = {
    "examples_dirs": "../examples/gallery",
    "gallery_dirs": "auto_examples",
    "within_subsection_order": "FileNameSortKey",
    "doc_module": ("prefixembed",),
    "backreferences_dir": "generated/backreferences",
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_memory": False,
    "show_signature": False,
    "parallel": 2,
    "ignore_repr_types": r"prefixembed\.inspection",
}
# Small fits may well leave the loss at chance.
warnings.filterwarnings("ignore", message="the training loss is stuck")

html_theme = "pydata_sphinx_theme"
html_title = "prefixembed"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "header_links_before_dropdown": 6,
    "navigation_with_keys": False,
    "show_prev_next": False,
    "secondary_sidebar_items": ["page-toc"],
}
html_sidebars = {page: [] for page in ("index", "install", "quickstart", "changelog")}
