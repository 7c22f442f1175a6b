"""Files of many formats -> documents."""
