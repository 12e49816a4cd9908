"""The steps of the ensemble as Triton calls them."""
