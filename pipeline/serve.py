"""``python -m pipeline.serve``: see ``pipeline.serving.command``."""

import sys

from pipeline.serving.command import main

if __name__ == "__main__":
    sys.exit(main())
