"""Reports: pandas frames from records; the table, the figures and the page made of them."""
