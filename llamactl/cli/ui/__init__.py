"""Terminal output of the commands: console, live screen, plan, samples."""
