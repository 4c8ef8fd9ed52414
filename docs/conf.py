"""How Sphinx builds the documentation: `make docs`."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]

project = "Observation Execution Tool"
author = "SKA Observatory"
release = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
extensions = ["myst_parser", "sphinx.ext.graphviz"]
exclude_patterns = ["README.md", "changes/README.md"]
html_theme = "furo"
html_title = f"OET {release}"
html_static_path = ["_static"]
html_css_files = ["oet.css"]
html_show_copyright = False
graphviz_output_format = "svg"
myst_heading_anchors = 4
# Links to files of the repository that are no pages; tests/project looks whether they lead somewhere.
suppress_warnings = ["myst.xref_missing"]
