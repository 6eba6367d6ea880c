"""``python -m pipeline.plan``: see ``pipeline.tensorrt.plan``."""

import sys

from pipeline.tensorrt.plan import main

if __name__ == "__main__":
    sys.exit(main())
