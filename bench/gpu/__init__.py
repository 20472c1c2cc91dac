"""`make gpu`: everything that only a GPU can say, in one command and one report."""
