"""What a build kept and dropped, as a page."""
