"""What it costs: a tool for each question, and the documentation's generated parts."""
