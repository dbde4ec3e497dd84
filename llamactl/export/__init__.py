"""A model for other programs: Hugging Face, GGUF."""
