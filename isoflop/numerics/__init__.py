"""How a matrix product is computed."""
