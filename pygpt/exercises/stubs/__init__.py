"""What an exercise starts from: a statement, and functions to be written."""
