"""Stream processors that people would use instead, in an environment of their own."""
