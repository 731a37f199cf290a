"""What can be wrong with a data set, found and named; and its repair."""
