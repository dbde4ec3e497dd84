#!/usr/bin/env bash
# A model of your own text: bash examples/own_text.sh FILES_OR_FOLDERS...
# Vocabulary, model size and budget follow from the amount of text; llamactl plan says what others would cost.
set -euo pipefail

llamactl prepare "$@" --name own-text
llamactl train --data own-text --run own-text
llamactl plot-loss own-text
llamactl sample --run own-text@best --n 3 "The "
llamactl export hf own-text@best --out own-text-model
