"""Training and clustering of images with the hardware in the loop."""
