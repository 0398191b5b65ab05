"""`python -m hf_finetune` is `hf-finetune`."""

import sys

from hf_finetune.cli import main

if __name__ == "__main__":
    sys.exit(main())
