#!/usr/bin/env bash
# The student's notebook that llamactl grew out of: its shape, batch and AdamW on OpenWebText (docs/notebook.md).
set -euo pipefail

llamactl prepare openwebtext --max-tokens 200M
llamactl train --data openwebtext --preset notebook --run notebook
llamactl plot-loss notebook --reference notebook
