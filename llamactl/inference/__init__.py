"""RUN -> TEXT."""
