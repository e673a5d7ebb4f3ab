"""One row a call and one an upstream attempt, whatever became of the caller."""
