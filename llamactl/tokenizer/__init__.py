"""Turn text into tokens: byte-level BPE, and faster encoders that give the same ids."""
