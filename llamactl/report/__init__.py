"""Runs become one page that needs nothing else: curves to explore, figures side by side, what the model said as it learned."""
