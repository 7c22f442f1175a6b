"""What a person sees: figures, HTML pages and the charts in them."""
