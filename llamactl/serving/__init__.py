"""Serve models over HTTP: OpenAI's completions, and a page to write with."""
