"""What it takes to run Reconstream somewhere."""
