"""Small programs for operators: feed, watch, score."""
