"""AdamW and Muon, on one rank and split over several, and the learning-rate schedule."""
