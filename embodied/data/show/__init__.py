"""Pages and recordings to look at a data set with."""
