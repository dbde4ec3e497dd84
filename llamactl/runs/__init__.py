"""The folder of a run: its files, its log of metrics, its summary."""
