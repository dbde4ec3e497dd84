"""TOKENS -> LOGITS: no files, no processes, no printing."""
