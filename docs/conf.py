"""Sphinx configuration."""

import inspect
import os
import pydoc
import re
import sys
import warnings
from pathlib import Path

import prefixembed
from prefixembed._utils.docstrings import PARAMETER_GROUPS

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
autodoc_typehints = "signature"
autodoc_type_aliases = {"ArrayLike": "ArrayLike"}  # instead of the union behind it
autodoc_preserve_defaults = True
# One parameter per line, with short names of types: legible at any width.
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
python_display_short_literal_types = True
numpydoc_show_class_members = False

sphinx_gallery_conf = {
    "examples_dirs": "../examples/gallery",
    "gallery_dirs": "auto_examples",
    "within_subsection_order": "FileNameSortKey",
    "doc_module": ("prefixembed",),
    "backreferences_dir": "generated/backreferences",
    "download_all_examples": False,
    "ignore_pattern": r"sentences\.py",  # what examples read
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
    "logo": {
        "text": f"prefixembed {release}",
        "image_light": "_static/logo.svg",
        "image_dark": "_static/logo.svg",
    },
    "navigation_with_keys": False,
    "show_prev_next": False,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
}
_SINGLE = ("index", "install", "quickstart", "is-this-for-me", "recipes", "changelog")
html_sidebars = {page: [] for page in _SINGLE}


def group_parameters(app, what, name, described, options, lines: list[str]) -> None:  # noqa: ANN001
    """Split the parameters of a class that has many into one list per group."""
    if what != "class" or ":Parameters:" not in lines:
        return
    start = lines.index(":Parameters:")
    ends = (k for k in range(start + 1, len(lines)) if lines[k][:1].strip())
    end = next(ends, len(lines))
    parameters: dict[str, list[str]] = {}
    for line in lines[start + 1 : end]:
        if match := re.match(r" {4}\*\*(\w+)\*\* : ", line):
            parameter = parameters.setdefault(match[1], [])
        if parameters:
            parameter.append(line)
    if len(parameters) < 15:
        return
    groups = {name: title for title, names in PARAMETER_GROUPS.items() for name in names}
    grouped = []
    for title in PARAMETER_GROUPS:
        members = [name for name in parameters if groups[name] == title]
        if members:
            grouped += [f":Parameters ({title}):", ""]
            grouped += [line for name in members for line in parameters[name]]
    lines[start:end] = grouped


def setup(app) -> None:  # noqa: ANN001
    """Group parameters after numpydoc has made a list of them."""
    app.connect("autodoc-process-docstring", group_parameters, priority=900)
