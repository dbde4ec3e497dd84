"""Every setting: names, defaults, bounds, presets."""
