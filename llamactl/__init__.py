"""llamactl: train a real Llama from scratch, on your own machine, and understand every step."""

__version__ = "0.1.0"
