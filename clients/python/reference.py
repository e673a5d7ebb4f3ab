"""Writes the reference of the Python client as HTML: `python reference.py DIRECTORY`, as `make docs` does."""

import sys
import warnings
from pathlib import Path

import headgate
import pdoc
from pdoc.render import configure

MODULES = ("headgate", *(f"headgate.{name}" for name in ("errors", "options", "testing", "langchain", "llamaindex")))


def main() -> None:
    for name in headgate.__all__:
        getattr(headgate, name)  # loads what is lazy, so that it stands under its public name
    warnings.filterwarnings("ignore", "Cannot determine where", UserWarning)  # keys that a TypedDict inherits
    warnings.filterwarnings("ignore", "Error parsing type annotation pb.InferenceServiceAsyncStub", UserWarning)
    configure(docformat="markdown", footer_text=f"headgate {headgate.__version__}", show_source=False)
    pdoc.pdoc(*MODULES, "!headgate.v1", output_directory=Path(sys.argv[1]))


if __name__ == "__main__":
    main()
