#!/usr/bin/env bash
# The 0.15B model on OpenWebText with one GPU. Needs the Hugging Face hub, some 25 GB of disk, and hours to days.
set -euo pipefail

llamactl doctor
llamactl prepare openwebtext --max-tokens 3B
llamactl plan --data openwebtext --preset 150m --tokens 3B
llamactl train --data openwebtext --preset 150m --tokens 3B --run openwebtext # interrupted? llamactl train --resume openwebtext
llamactl report openwebtext --out openwebtext.html
llamactl eval --run openwebtext@best
llamactl sample --run openwebtext@best "California is "
