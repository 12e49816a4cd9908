"""Public data sets of questions over real passages, read from several forms of file into one type of row."""
