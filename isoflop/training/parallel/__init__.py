"""Work spread over devices."""
